"""Generates docs/configuration.md from the settings.

    python -m dareu_jax.pipeline.configuration > docs/configuration.md
"""

import inspect
import typing
from typing import Any

from dareu_jax.methods.base import METHODS
from dareu_jax.pipeline.settings import Settings, all_settings

_HEAD = """# Configuration

Every setting, generated from the settings classes by `python -m dareu_jax.pipeline.configuration`.
Change one with a flag (`--config.data.num_owners=8`), in a config file
(`default_config(data=dict(num_owners=8))`) or from Python
(`dareu_jax.run({"data": {"num_owners": 8}}, workdir)`). The defaults are those of the tiny preset,
`configs/tofu.py`. Lengths are in tokens unless a line says otherwise."""


def document() -> str:
  """The page as Markdown."""
  groups: dict[str, list[str]] = {}
  for setting in all_settings():
    group, _, name = setting.key.rpartition(".")
    meaning = setting.meaning.replace("|", "\\|")
    groups.setdefault(group, []).append(
      f"| `{name}` | {setting.type} | `{setting.default!r}` | {meaning} |")
  blocks = [_HEAD]
  for group, lines in groups.items():
    title = f"config.{group}" if group else "config"
    blocks.append(f"## {title}\n\n{_summary(group)}\n\n| setting | type | default | meaning |\n"
                  "|---|---|---|---|\n" + "\n".join(lines))
  return "\n\n".join(blocks) + "\n"


def _summary(group: str) -> str:
  """The purpose of a group of settings: the docstring of its class, without its sections."""
  cls: Any = Settings
  for name in filter(None, group.split(".")):
    cls = METHODS[name] if name in METHODS else typing.get_type_hints(cls).get(name, cls)
  return inspect.cleandoc(cls.__doc__).partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
  print(document(), end="")

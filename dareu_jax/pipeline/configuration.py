"""Generates docs/configuration.md from the settings.

    python -m dareu_jax.pipeline.configuration > docs/configuration.md
"""

import inspect
import typing
from collections.abc import Iterable
from typing import Any

from dareu_jax.core.settings import Setting
from dareu_jax.methods.base import METHODS
from dareu_jax.pipeline.settings import Settings, all_settings

_HEAD = """# Configuration

Every setting, generated from the settings classes by `python -m dareu_jax.pipeline.configuration`.
Change one with a flag (`--config.data.num_owners=8`), in a config file
(`default_config(data=dict(num_owners=8))`) or from Python
(`dareu_jax.run({"data": {"num_owners": 8}}, workdir)`). The defaults are those of the tiny preset,
`configs/tofu.py`. Lengths are in tokens unless a line says otherwise. The studies have settings of
their own: [studies.md](studies.md)."""


def document() -> str:
  """The page as Markdown."""
  return "\n\n".join([_HEAD, *tables(Settings, all_settings())]) + "\n"


def tables(cls: type, settings: Iterable[Setting], level: str = "##") -> list[str]:
  """A block of Markdown for each group of settings: a title, its purpose and a table.

  Args:
    cls: the class of all settings.
    settings: those to show.
    level: of the titles.
  """
  groups: dict[str, list[str]] = {}
  for setting in settings:
    group, _, name = setting.key.rpartition(".")
    meaning = setting.meaning.replace("|", "\\|")
    groups.setdefault(group, []).append(
      f"| `{name}` | {setting.type} | `{setting.default!r}` | {meaning} |")
  return [f"{level} config{group and f'.{group}'}\n\n{_summary(cls, group)}\n\n"
          "| setting | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(lines)
          for group, lines in groups.items()]


def _summary(cls: Any, group: str) -> str:
  """The purpose of a group of settings: the docstring of its class, without its sections."""
  for name in filter(None, group.split(".")):
    # A mapping, `config.unlearning`, has a method's settings under the method's name.
    cls = typing.get_type_hints(cls)[name] if isinstance(cls, type) else METHODS[name]
  return inspect.cleandoc(cls.__doc__).partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
  print(document(), end="")

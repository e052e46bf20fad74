"""Generates docs/studies.md from the settings of the studies.

    python -m studies.configuration > docs/studies.md
"""

from dareu_jax.core.settings import Setting, describe
from dareu_jax.pipeline.configuration import tables
from studies.faithfulness.settings import FaithfulnessSettings
from studies.scaling.settings import ScalingSettings

_HEAD = """# Settings of the studies

Every setting of a study, generated from the settings classes by `python -m studies.configuration`.
A flag sets one (`--config.retraining.seeds=5`), as for a [run](configuration.md)."""

_FAITHFULNESS = """## Faithfulness

Of `python -m studies.faithfulness`; the defaults are the study of
[faithfulness.md](faithfulness.md)."""

_SCALING = """## Scaling

Of `python -m studies.scaling`, see [scaling.md](scaling.md). `config.run` holds all settings of a
[run](configuration.md) as well, such as `--config.run.mesh.tensor=4`."""


def faithfulness_settings() -> tuple[Setting, ...]:
  """Every setting of a faithfulness study."""
  return tuple(describe(FaithfulnessSettings))


def scaling_settings() -> tuple[Setting, ...]:
  """The settings of a scaling study beside those of its run."""
  return tuple(setting for setting in describe(ScalingSettings)
               if not setting.key.startswith("run."))


def document() -> str:
  """The page as Markdown."""
  return "\n\n".join([
    _HEAD, _FAITHFULNESS, *tables(FaithfulnessSettings, faithfulness_settings(), "###"),
    _SCALING, *tables(ScalingSettings, scaling_settings(), "###")]) + "\n"


if __name__ == "__main__":
  print(document(), end="")

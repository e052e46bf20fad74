"""Generates docs/studies.md from the settings of the studies.

    python -m studies.configuration > docs/studies.md
"""

from dareu_jax.core.settings import Setting, describe
from dareu_jax.pipeline.configuration import tables
from studies.faithfulness.settings import FaithfulnessSettings
from studies.scaling.settings import ScalingSettings
from studies.sequential.settings import SequentialSettings

_HEAD = """# Settings of the studies

Every setting of a study, generated from the settings classes by `python -m studies.configuration`.
A flag sets one (`--config.retraining.seeds=5`), as for a [run](configuration.md)."""

_FAITHFULNESS = """## Faithfulness

Of `python -m studies.faithfulness`; the defaults are the study of
[faithfulness.md](faithfulness.md)."""

_SCALING = """## Scaling

Of `python -m studies.scaling`, see [scaling.md](scaling.md). `config.run` holds all settings of a
[run](configuration.md) as well, such as `--config.run.mesh.tensor=4`."""

_SEQUENTIAL = """## Sequential unlearning

Of `python -m studies.sequential`; `configs/sequential.py` is the study of
[sequential.md](sequential.md). `config.run` holds all settings of a [run](configuration.md) as
well, such as `--config.run.methods="('dareu','npo')"`."""


def faithfulness_settings() -> tuple[Setting, ...]:
  """Every setting of a faithfulness study."""
  return tuple(describe(FaithfulnessSettings))


def scaling_settings() -> tuple[Setting, ...]:
  """The settings of a scaling study beside those of its run."""
  return _beside_its_run(ScalingSettings)


def sequential_settings() -> tuple[Setting, ...]:
  """The settings of a study of sequential unlearning beside those of its run."""
  return _beside_its_run(SequentialSettings)


def _beside_its_run(settings):
  return tuple(setting for setting in describe(settings) if not setting.key.startswith("run."))


def document() -> str:
  """The page as Markdown."""
  return "\n\n".join([
    _HEAD, _FAITHFULNESS, *tables(FaithfulnessSettings, faithfulness_settings(), "###"),
    _SCALING, *tables(ScalingSettings, scaling_settings(), "###"),
    _SEQUENTIAL, *tables(SequentialSettings, sequential_settings(), "###")]) + "\n"


if __name__ == "__main__":
  print(document(), end="")

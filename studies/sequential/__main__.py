"""Entry: flags to settings to `experiment.run`.

    python -m studies.sequential --config=configs/sequential.py --workdir=runs/sequential
    python -m studies.sequential --config=configs/sequential.py:streaming --workdir=runs/streaming
"""

from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, enter
from studies.sequential import experiment
from studies.sequential.settings import SequentialSettings


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file: configs/sequential.py, or configs/sequential.py:streaming.",
    lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of models and metrics.")
  flags.DEFINE_bool(
    "overwrite", False, "Accept a workdir with another configuration; affected stages run again.")


def main(options: Flags) -> None:
  """Runs the study as the flags say."""
  settings = SequentialSettings.from_config(options.config)
  _, page = experiment.run(settings, options.workdir, overwrite=options.overwrite)
  print(f"Report: {page}")


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command resumes from the last checkpoint.")

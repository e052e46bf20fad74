"""Entry: flags to settings to `experiment.run`.

    python -m studies.faithfulness --config=configs/faithfulness.py --workdir=runs/faithfulness
"""

from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, enter
from studies.faithfulness import experiment
from studies.faithfulness.settings import FaithfulnessSettings


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file: configs/faithfulness.py.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of models and metrics.")
  flags.DEFINE_bool(
    "overwrite", False, "Accept a workdir with another configuration; affected stages run again.")


def main(options: Flags) -> None:
  """Runs the study as the flags say."""
  settings = FaithfulnessSettings.from_config(options.config)
  _, page = experiment.run(settings, options.workdir, overwrite=options.overwrite)
  print(f"Report: {page}")


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command resumes from the last group of models.")

"""Entry: flags to settings to `study.study.run`.

    python -m dareu_jax.attribution.faithfulness --config=configs/faithfulness.py \
        --workdir=runs/faithfulness
"""

import jax
from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import enter
from studies.faithfulness import study
from studies.faithfulness.settings import FaithfulnessSettings


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file: configs/faithfulness.py.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of models and figures.")
  flags.DEFINE_bool(
    "overwrite", False, "Take a workdir that holds another configuration; what changed runs again.")


def main(given):
  """Runs the study, by its flags."""
  # What is float32 by rule (log-probs, losses, heads) is not to be rounded on accelerators.
  jax.config.update("jax_default_matmul_precision", "highest")
  settings = FaithfulnessSettings.from_config(given.config)
  _, page = study.run(settings, given.workdir, overwrite=given.overwrite)
  print(f"Report: {page}")


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command goes on from the last group of models.")

"""Entry: flags to settings to `study.study.run`.

    python -m dareu_jax.attribution.faithfulness --config=configs/faithfulness.py \
        --workdir=runs/faithfulness
"""

import jax
from absl import app, flags
from ml_collections import config_flags

from dareu_jax.attribution.study import study
from dareu_jax.attribution.study.settings import FaithfulnessSettings
from dareu_jax.command_line import guarded, parse_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file: configs/faithfulness.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of models and figures.")
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Take a workdir that holds another configuration; what changed runs again.")


def main(argv):
  """Runs the study."""
  return guarded(_run, argv, hint="The same command goes on from the last group of models.")


def _run():
  # What is float32 by rule (log-probs, losses, heads) is not to be rounded on accelerators.
  jax.config.update("jax_default_matmul_precision", "highest")
  settings = FaithfulnessSettings.from_config(_CONFIG.value)
  _, page = study.run(settings, _WORKDIR.value, overwrite=_OVERWRITE.value)
  print(f"Report: {page}")


def _parse(args):
  flags.mark_flags_as_required(["config", "workdir"])
  # A config file that is not there fails only when it is looked at.
  return parse_flags(args, check=lambda: _CONFIG.value.keys())


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)

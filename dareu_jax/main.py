"""Entry: flags to settings to `experiment.run`.

    python -m dareu_jax.main --config=configs/tofu.py --workdir=runs/tofu
"""

import shlex
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from dareu_jax import experiment, plan
from dareu_jax.command_line import guarded, parse_flags
from dareu_jax.report.tables import stage_table, text_table
from dareu_jax.settings import InputError, Settings

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, with a preset behind a colon: configs/tofu.py:qwen3_0_6b.",
  lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and results.")
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Take a workdir that holds another configuration; what changed runs again.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print stages, sizes, memory, time and two samples, and stop.")
_WANDB = flags.DEFINE_string(
  "wandb_project", None, "Weights & Biases project to mirror the metrics to (extra: wandb).")


def main(argv):
  """Runs the job."""
  return guarded(_run, argv, hint="The same command goes on from the last checkpoint.")


def _run():
  # What is float32 by rule (log-probs, losses, heads) is not to be rounded on accelerators.
  jax.config.update("jax_default_matmul_precision", "highest")
  settings = Settings.from_config(_CONFIG.value)
  if _DRY_RUN.value:
    for run in experiment.prepare(settings, _WORKDIR.value)[:1]:
      print(plan.describe(run))
    return
  mirror = _wandb_mirror() if _WANDB.value else None
  command = "python -m dareu_jax.main " + " ".join(map(shlex.quote, sys.argv[1:]))
  summary, page = experiment.run(
    settings, _WORKDIR.value, command=command, overwrite=_OVERWRITE.value, mirror=mirror)
  print("", text_table(summary["models"]), "\n".join(summary["notes"]),
        stage_table(summary["stages"]), f"Report: {page}", sep="\n\n")


def _wandb_mirror():
  """Begins a run at W&B; gives what takes it the metrics, each stage under its own step."""
  try:
    import wandb
  except ImportError:
    raise InputError("--wandb_project needs the extra: pip install '.[wandb]'.") from None
  run = wandb.init(
    project=_WANDB.value, name=str(_WORKDIR.value), config=_CONFIG.value.to_dict())
  run.define_metric("*", step_metric="step")

  def mirror(stage, step, metrics):
    run.log({"step": step} | {f"{stage}/{name}": value for name, value in metrics.items()})

  return mirror


def _parse(args):
  flags.mark_flags_as_required(["config", "workdir"])
  # A config file that is not there fails only when it is looked at.
  return parse_flags(args, check=lambda: _CONFIG.value.keys())


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)

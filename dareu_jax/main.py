"""Entry: flags to settings to `experiment.run`.

    python -m dareu_jax.main --config=configs/tofu.py --workdir=runs/tofu
"""

import errno
import os
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dareu_jax import experiment, plan
from dareu_jax.report.tables import stage_table, text_table
from dareu_jax.settings import InputError, Settings

FLAGS = flags.FLAGS
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
  """Runs the job; what a user can mend is printed alone, and the exit status is 2."""
  if len(argv) > 1:
    return _fail(f"{argv[1]!r} is no flag. Settings are given as --config.section.key=value.")
  try:
    return _run()
  except InputError as error:
    return _fail(error)
  except KeyboardInterrupt:
    return _fail("interrupted. The same command goes on from the last checkpoint.")
  except Exception as error:
    full = _disk_full(error)
    if full:
      return _fail(f"no space left on the disk of {_WORKDIR.value} ({full}). Free some and give "
                   "the same command again: it goes on from the last checkpoint.")
    raise


def _run():
  settings = Settings.from_config(_CONFIG.value)
  if _DRY_RUN.value:
    for run in experiment.prepare(settings, _WORKDIR.value)[:1]:
      print(plan.describe(run))
    return 0
  mirror = _wandb_mirror() if _WANDB.value else None
  command = "python -m dareu_jax.main " + " ".join(map(shlex.quote, sys.argv[1:]))
  summary, page = experiment.run(
    settings, _WORKDIR.value, command=command, overwrite=_OVERWRITE.value, mirror=mirror)
  print("", text_table(summary["models"]), "\n".join(summary["notes"]),
        stage_table(summary["stages"]), f"Report: {page}", sep="\n\n")
  return 0


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


def _disk_full(error):
  """The message of a full disk somewhere in the chain of causes, or ''."""
  while error is not None:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
      return str(error).strip().splitlines()[0]
    error = error.__cause__ or error.__context__
  return ""


def _fail(message):
  print(f"error: {message}", file=sys.stderr)
  return 2


def _parse(args):
  """Flags from the command line; a wrong one ends the program with one line."""
  try:
    flags.mark_flags_as_required(["config", "workdir"])
    rest = FLAGS(args)
    _CONFIG.value.keys()  # a file that is not there fails only when it is looked at
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError,
          ImportError) as error:
    sys.exit(_fail(_flag_error(error, args)))
  logging.set_verbosity(logging.ERROR if FLAGS["verbosity"].using_default_value
                        else FLAGS.verbosity)
  return rest


def _flag_error(error, args):
  """One line of what absl and ml_collections say; of a config file's own error the last one."""
  for arg in args:
    file = arg.removeprefix("--config=").partition(":")[0]
    if arg.startswith("--config=") and not os.path.exists(file):
      return f"{arg}: there is no such file."
  lines = str(error).strip().strip("'\"").splitlines() or [type(error).__name__]
  return lines[-1 if "whilst parsing config file" in lines[0] else 0]


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)

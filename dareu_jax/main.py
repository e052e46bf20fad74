"""Entry: runs an experiment from flags.

    python -m dareu_jax.main --config=configs/tofu.py --workdir=runs/tofu
"""

from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, define_hosts, enter, keep_programs, typed
from dareu_jax.core.compilation import compilation_cache_dir
from dareu_jax.core.errors import InputError
from dareu_jax.parallel import hosts
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.settings import Settings
from dareu_jax.report.tables import stage_table, text_table, time_line


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon: configs/tofu.py:qwen3_0_6b.",
    lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of checkpoints and results.")
  flags.DEFINE_bool(
    "overwrite", False, "Accept a workdir with another configuration; affected stages run again.")
  flags.DEFINE_bool(
    "dry_run", False, "Print stages, sizes, memory, time and two samples, and stop.")
  flags.DEFINE_bool(
    "precompile", False, "Compile all programs into JAX's persistent cache, and stop.")
  define_hosts()
  flags.DEFINE_string(
    "wandb_project", None, "Weights & Biases project to mirror the metrics to (extra: wandb).")


def main(options: Flags) -> None:
  """Runs the job as the flags say."""
  settings = Settings.from_config(options.config)
  hosts.start_by_flags(options)
  with hosts.ended_together():
    _main(settings, options)


def _main(settings, options):
  if options.dry_run:
    text = experiment.describe(settings, options.workdir)
    if hosts.is_first():
      print(text)
    return
  keep_programs()
  if options.precompile:
    experiment.precompile(settings, options.workdir)
    if hosts.is_first():
      print(f"Compiled programs are in {compilation_cache_dir()}.")
    return
  mirror = _wandb_mirror(options) if options.wandb_project and hosts.is_first() else None
  summary, page = experiment.run(
    settings, options.workdir, command=typed(), overwrite=options.overwrite, mirror=mirror)
  if hosts.is_first():
    print("", text_table(summary["models"]), "\n".join(summary["notes"]),
          stage_table(summary["stages"]), time_line(summary["time"]), f"Report: {page}",
          sep="\n\n")


def _wandb_mirror(options):
  """Starts a W&B run; returns the function that logs metrics, each stage under its own step."""
  try:
    import wandb
  except ImportError:
    raise InputError("--wandb_project needs the extra: pip install '.[wandb]'.") from None
  run = wandb.init(
    project=options.wandb_project, name=str(options.workdir), config=options.config.to_dict())
  run.define_metric("*", step_metric="step")

  def mirror(stage, step, metrics):
    run.log({"step": step} | {f"{stage}/{name}": value for name, value in metrics.items()})

  return mirror


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command resumes from the last checkpoint.")

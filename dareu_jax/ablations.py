"""Entry: a grid of runs that differ in one setting each, in one table and one plot.

    python -m dareu_jax.ablations --config=configs/ablations.py --workdir=runs/ablations

Stages that runs share (base, original and retrained model, classifiers) run once. The same command
resumes a stopped grid.
"""

from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, enter, typed
from dareu_jax.pipeline import ablations
from dareu_jax.report import comparison


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file: the base config and the studies.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the runs, the table and the plots.")
  flags.DEFINE_bool("overwrite", False, "Accept a workdir of other configs; affected stages rerun.")
  flags.DEFINE_list("only", None, "Studies to run, separated by commas; all if not given. Earlier "
                    "runs of the others stay in the table.")


def main(options: Flags) -> None:
  """Runs the grid as the flags say."""
  records = ablations.run(ablations.variants(options.config, options.only), options.workdir,
                          beside=ablations.variants(options.config), command=typed(),
                          overwrite=options.overwrite)
  print(comparison.table(records), f"Report: {options.workdir}/ablations.md", sep="\n\n")


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command resumes from the last checkpoint.")

"""Entry: a grid of runs that differ in a setting each, in one table and one plot.

    python -m dareu_jax.ablations --config=configs/ablations.py --workdir=runs/ablations

What several runs have in common (base, original and retrained model, classifiers) is made once.
Given again, the same command goes on where it was.
"""

import ast
import copy
import pathlib
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

from dareu_jax import experiment
from dareu_jax.command_line import enter, typed
from dareu_jax.report import comparison
from dareu_jax.run import seed_folder
from dareu_jax.settings import InputError, Settings
from dareu_jax.training.checkpoints import read_json, write_json


class Variant(NamedTuple):
  """A run of the grid."""

  study: str
  label: str  # what it sets, as in the config
  settings: Settings

  @property
  def folder(self):
    return f"{self.study}/{self.label.replace(' ', ',').replace('/', '_')}"


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file: the base config and the studies.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the runs, the table and the plots.")
  flags.DEFINE_bool("overwrite", False, "Take a workdir of other configs; what changed runs again.")
  flags.DEFINE_list("only", None, "Studies to run, apart by commas; all if not given.")


def main(given):
  """Runs the grid, by its flags."""
  jax.config.update("jax_default_matmul_precision", "highest")
  records = run(variants(given.config, given.only), given.workdir, command=typed(),
                overwrite=given.overwrite)
  print(comparison.table(records), f"Report: {given.workdir}/ablations.md", sep="\n\n")


def variants(config, only=None):
  """The runs that a config asks for.

  Args:
    config: ConfigDict; `base` is a config of `dareu_jax.main`, `studies` maps a name to
      assignments, each of one or more "key=value" apart by spaces.
    only: names of the studies to take; None: all.

  Returns: list of Variant.

  Raises:
    InputError: for an unknown study, or an assignment that is none of a setting.
  """
  studies = config.studies.to_dict()
  unknown = sorted(set(only or ()) - set(studies))
  if unknown:
    raise InputError(f"--only names {unknown[0]!r}: the studies are {', '.join(studies)}.")
  return [Variant(study, label, Settings.from_config(_changed(config.base, label)))
          for study, labels in studies.items() if not only or study in only for label in labels]


def _changed(base, assignments):
  config = copy.deepcopy(base)
  for assignment in assignments.split():
    path, _, text = assignment.partition("=")
    *groups, name = path.split(".")
    block = config
    for group in groups:
      block = block.get(group) if hasattr(block, "get") else None
    if not hasattr(block, "keys") or name not in block:
      raise InputError(f"{assignment!r} of the studies: config.{path} is no setting.")
    block[name] = _value(text)
  return config


def _value(text):
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def run(grid, workdir, *, command, overwrite=False):
  """Runs all variants, and writes ablations.json, ablations.md and the plots.

  Args:
    grid: list of Variant.
    workdir: folder; each run has its own in it.
    command: what the user typed, for the reports.
    overwrite: as for `experiment.run`.

  Returns: a record for each variant: {"study", "label", "method", "models", "seeds", "epochs",
    "chosen"}; `epochs` are the epoch reports of each seed, `chosen` the epochs that were kept. Of
    several methods in a run it is the first.
  """
  workdir = pathlib.Path(workdir)
  records, done = [], []
  for number, variant in enumerate(grid):
    print(f"{variant.study}: {variant.label} ({number + 1} of {len(grid)})", flush=True)
    folder = workdir / variant.folder
    summary, _ = experiment.run(variant.settings, folder, command=command, overwrite=overwrite,
                                share=done)
    done.append(folder)
    method, name = next(iter(summary["chosen"].items()))
    epochs = [read_json(seed_folder(folder, seed, variant.settings) / name / "epochs.json")
              for seed in variant.settings.seeds]
    records.append({"study": variant.study, "label": variant.label, "method": method,
                    "models": summary["models"],
                    "seeds": len(epochs), "epochs": [each["epochs"] for each in epochs],
                    "chosen": [each["chosen_epoch"] for each in epochs]})
    write_json(workdir / "ablations.json", records)
  comparison.write(workdir, records, command)
  return records


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"],
        hint="The same command goes on from the last checkpoint.")

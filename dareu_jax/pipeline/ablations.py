"""A grid of runs that differ in one setting each. Stages that they share run once."""

import ast
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import to_plain
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.run import decided, seed_folder
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.workdir import read_config
from dareu_jax.report import comparison
from dareu_jax.training.checkpoints import read_json, write_json


class Variant(NamedTuple):
  """A run of the grid."""

  study: str
  label: str  # its assignments, as in the config
  settings: Settings

  @property
  def folder(self) -> str:
    return f"{self.study}/{self.label.replace(' ', ',').replace('/', '_')}"


def variants(config: ConfigDict, only: Iterable[str] | None = None) -> list[Variant]:
  """The runs that a config asks for.

  Args:
    config: ConfigDict; `base` is a config of `dareu_jax.main`, `studies` maps a name to
      assignments, each of one or more "key=value" separated by spaces.
    only: names of the studies to take; None: all.

  Raises:
    InputError: for an unknown study, an assignment to an unknown setting, or a run without a
      retrained model.
  """
  studies = config.studies.to_dict()
  unknown = sorted(set(only or ()) - set(studies))
  if unknown:
    raise InputError(f"--only names {unknown[0]!r}: the studies are {', '.join(studies)}.")
  grid = [Variant(study, label, Settings.from_config(_changed(config.base, label)))
          for study, labels in studies.items() if not only or study in only for label in labels]
  for variant in grid:
    experiment.check_reference(variant.settings)
  return grid


def _changed(base, assignments):
  config = to_plain(base)
  for assignment in assignments.split():
    path, _, text = assignment.partition("=")
    *groups, name = path.split(".")
    block = config
    for group in groups:
      block = block.get(group) if isinstance(block, dict) else None
    if not isinstance(block, dict) or name not in block:
      raise InputError(f"{assignment!r} of the studies: config.{path} is not a setting.")
    block[name] = _value(text)
  return config


def _value(text):
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def run(grid: Sequence[Variant], workdir: str | pathlib.Path, *, beside: Sequence[Variant] = (),
        command: str = "", overwrite: bool = False) -> list[dict[str, Any]]:
  """Runs all variants, and writes ablations.json, ablations.md and the plots.

  Args:
    grid: list of Variant.
    workdir: folder; each run gets a subfolder.
    beside: all variants of the config; of those that are not in the grid, an earlier command's
      records are kept.
    command: command line of the user, for the reports.
    overwrite: as for `experiment.run`.

  Returns: a record for each variant: {"study", "label", "method", "models", "seeds", "epochs",
    "chosen"}; `epochs` are the epoch reports of each seed, `chosen` the epochs that were kept. If
    a run has several methods, these are of the first.
  """
  workdir = pathlib.Path(workdir)
  order = list(dict.fromkeys(variant.folder for variant in (*beside, *grid)))
  every = _earlier([variant for variant in beside if variant not in grid], workdir)
  records = list(every.values())
  done: list[pathlib.Path] = []
  for number, variant in enumerate(grid):
    print(f"{variant.study}: {variant.label} ({number + 1} of {len(grid)})", flush=True)
    folder = workdir / variant.folder
    summary, _ = experiment.run(variant.settings, folder, command=command, overwrite=overwrite,
                                share=done)
    done.append(folder)
    method, name = next(iter(summary["chosen"].items()))
    epochs = [read_json(seed_folder(folder, seed, variant.settings) / name / "epochs.json")
              for seed in variant.settings.seeds]
    every[variant.folder] = {
      "study": variant.study, "label": variant.label, "method": method,
      "models": summary["models"],
      "seeds": len(epochs), "epochs": [each["epochs"] for each in epochs],
      "chosen": [each["chosen_epoch"] for each in epochs]}
    records = [every[name] for name in order if name in every]
    write_json(workdir / "ablations.json", records)
  comparison.write(workdir, records, command)
  return records


def _earlier(variants, workdir):
  """{folder: record} of variants whose runs an earlier command has finished."""
  written = {(record["study"], record["label"]): record
             for record in read_json(workdir / "ablations.json") or ()}
  kept = {}
  for variant in variants:
    record = written.get((variant.study, variant.label))
    if record is not None and _is_of(variant.settings, workdir / variant.folder):
      kept[variant.folder] = record
    elif record is not None:
      print(f"{variant.study}: {variant.label} is left out of the table: its run had other "
            "settings, or is gone. Name its study in --only to run it again.", flush=True)
  return kept


def _is_of(settings, folder):
  """Whether a folder holds a run of these settings."""
  try:
    return Settings.from_config(read_config(folder)) == decided(settings, folder)
  except InputError:  # no run, or one of another format
    return False

"""What a report says of the methods beside the table of figures: rates, time, how sure it is."""

import re
from typing import NamedTuple

from dareu_jax.report import tables


class Table(NamedTuple):
  """A table with what is to be said about it."""

  title: str
  note: str
  header: tuple
  rows: list


def of_summary(summary):
  """The tables that a run's summary.json has the figures for.

  Args:
    summary: {"models", "stages"} and, of a whole run, "chosen" and "examples".
  """
  found = []
  if summary.get("chosen"):
    found.append(methods_table(summary))
  if summary.get("examples"):
    found.append(examples_table(summary))
  return tuple(found)


def methods_table(summary):
  """A method a line: its learning rate and seconds, and how it does against the best by ToW."""
  chosen, models = summary["chosen"], summary["models"]
  best, paired = (summary.get("examples", {}).get(key) for key in ("best", "paired"))
  header = ("method", "learning rate", "ToW", "seconds")
  if paired:
    header += (f"ΔD_F to {best}", "p", f"ΔD_R to {best}", "p")
  rows = []
  for method in tables.best_first(chosen, models):
    row = [method, chosen[method].partition("@")[2] or "its own",
           tables.format_number(models[method]["tug_of_war"]),
           tables.format_number(mean_seconds(summary["stages"], chosen[method]), 0)]
    for split in ("forget", "retain") if paired else ():
      gap = paired.get(method, {}).get(split)
      row += [tables.DASH] * 2 if gap is None else [
        f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]", f"{gap['p']:.4f}"]
    rows.append(row)
  note = "seconds: of the method's own stage, mean over the seeds."
  if paired:
    note += (f" Δ: how much farther its answers are from the retrained model's than those of "
             f"{best}, |ROUGE - ROUGE of the retrained model| example by example, with a 95% "
             "bootstrap interval and the p of a sign-flip permutation test, not corrected for the "
             "number of methods.")
  return Table("Methods", note, header, rows)


def mean_seconds(stages, name):
  """Mean over the seeds of what a stage took; None where it is not told."""
  own = re.compile(rf"(seed_\d+/)?{re.escape(name)}")
  found = [stage["seconds"] for key, stage in stages.items()
           if own.fullmatch(key) and tables.is_number(stage.get("seconds"))]
  return sum(found) / len(found) if found else None


def examples_table(summary):
  """A model a line: figures with their 95% intervals over the examples."""
  intervals = summary["examples"]["intervals"]
  columns = [column for column in tables.COLUMNS
             if any(column.key in figures for figures in intervals.values())]
  rows = [[name, *(_interval(intervals[name].get(column.key), column.decimals)
                   for column in columns)] for name in tables.ordered(intervals)]
  note = ("In brackets the 95% bootstrap interval over the examples, each with its mean over the "
          "seeds.")
  return Table("Over the examples", note, ("model", *(column.name for column in columns)), rows)


def _interval(given, decimals):
  if given is None:
    return tables.DASH
  mean, low, high = (f"{value:.{decimals}f}" for value in given)
  return f"{mean} [{low}, {high}]"

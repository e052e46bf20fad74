"""Tables of the methods besides the main metrics: rates, time, confidence intervals."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dareu_jax.evaluation.metrics.base import METRICS, example_metrics
from dareu_jax.report import tables

Summary = Mapping[str, Any]  # the content of summary.json


class Table(NamedTuple):
  """A table with a note on how to read it."""

  title: str
  note: str
  header: tuple[str, ...]
  rows: list[list[str]]


def of_summary(summary: Summary) -> tuple[Table, ...]:
  """The tables that can be made from a run's summary.json.

  Args:
    summary: {"models", "stages"} and, for a whole run, "chosen" and "examples".
  """
  tables = []
  if summary.get("chosen"):
    tables.append(methods_table(summary))
  if summary.get("examples"):
    tables.append(examples_table(summary))
  return tuple(tables)


def _columns():
  return sorted(example_metrics(), key=lambda column: column.position)


def methods_table(summary: Summary) -> Table:
  """A line per method: its learning rate and seconds, and its comparison with the best by ToW."""
  chosen, models = summary["chosen"], summary["models"]
  best, paired = (summary.get("examples", {}).get(key) for key in ("best", "paired"))
  key = tables.closeness_key(models)
  header: tuple[str, ...] = ("method", "learning rate", METRICS[key].name, "seconds")
  compared = [column for column in _columns() if column.paired] if paired else []
  for column in compared:
    header += (f"Δ{column.name} to {best}", "p")
  rows = []
  for method in tables.best_first(chosen, models):
    row = [method, chosen[method].partition("@")[2] or "its own",
           tables.format_number(models[method].get(key)),
           tables.format_number(mean_seconds(summary["stages"], chosen[method]), 0)]
    for column in compared:
      gap = paired.get(method, {}).get(column.paired)
      row += [tables.DASH] * 2 if gap is None else [
        f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]", f"{gap['p']:.4f}"]
    rows.append(row)
  note = "seconds: of the method's own stage, mean over the seeds."
  if paired:
    note += (f" Δ: how much farther its answers are from the retrained model's than those of "
             f"{best}, |x - x of the retrained model| example by example, with a 95% bootstrap "
             "interval and the p of a sign-flip permutation test, not corrected for the number of "
             "methods.")
  return Table("Methods", note, header, rows)


def mean_seconds(stages: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
  """Mean seconds of a stage over the seeds; None if not recorded."""
  own = re.compile(rf"(seed_\d+/)?{re.escape(name)}")
  seconds = [stage["seconds"] for key, stage in stages.items()
             if own.fullmatch(key) and tables.is_number(stage.get("seconds"))]
  return sum(seconds) / len(seconds) if seconds else None


def examples_table(summary: Summary) -> Table:
  """A line per model: metrics with their 95% intervals over the examples."""
  intervals = summary["examples"]["intervals"]
  columns = [column for column in _columns()
             if any(column.key in row for row in intervals.values())]
  rows = [[name, *(_interval(intervals[name].get(column.key), column.digits)
                   for column in columns)] for name in tables.ordered(intervals)]
  note = ("In brackets the 95% bootstrap interval over the examples, each with its mean over the "
          "seeds.")
  return Table("Over the examples", note, ("model", *(column.name for column in columns)), rows)


def _interval(values, digits):
  if values is None:
    return tables.DASH
  mean, low, high = (f"{value:.{digits}f}" for value in values)
  return f"{mean} [{low}, {high}]"

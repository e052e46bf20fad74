"""Tables of a run: models by metrics, and stages by time, for the terminal, Markdown and HTML.

Columns are the declared metrics: their titles and meanings are in `evaluation.metrics.base`.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from dareu_jax.evaluation.metrics.base import (
  CLOSER,
  GROUPS,
  HIGHER,
  MAIN,
  Metric,
  in_group,
)
from dareu_jax.evaluation.records import ORIGINAL, REPLICA, RETRAINED, UNSEEN

DASH = "—"
# Reference rows, which are not candidates for the best.
REFERENCES = (ORIGINAL, RETRAINED, REPLICA, UNSEEN)
Models = Mapping[str, Mapping[str, float]]  # {model: {metric: number}}
Columns = Sequence[Metric]


def main_columns(models: Models) -> Columns:
  """The metrics of the main table that some model has."""
  return tuple(column for column in in_group(MAIN)
               if any(row.get(column.key) is not None for row in models.values()))


def closeness_key(models: Models) -> str:
  """The metric that methods are chosen and sorted by: ToW, in the form that the models have."""
  retrained = any("tug_of_war" in row for row in models.values())
  return "tug_of_war" if retrained else "tug_of_war_unseen"


def is_reference(name: str) -> bool:
  """Whether a row is a reference, such as "retrained" or "<run>: retrained"."""
  return name.rpartition(": ")[2] in REFERENCES


@dataclasses.dataclass(frozen=True)
class Cell:
  """A formatted metric: "0.401", "± 0.012" or "", and whether it is the best of its column."""

  value: str
  interval: str = ""
  best: bool = False


def is_number(value: Any) -> TypeGuard[float]:
  """Whether `value` is a finite number."""
  return isinstance(value, numbers.Real) and math.isfinite(value)


def format_number(value: float | None, digits: int = 3) -> str:
  """"0.401"; a dash if the value is absent, "nan" if the measured value is not finite."""
  if value is None:
    return DASH
  return f"{value:.{digits}f}"


def format_seconds(seconds: float | None) -> str:
  """"8.2 s", "4 min 05 s" or "2 h 03 min"; a dash if the time is absent."""
  if not is_number(seconds):
    return DASH
  if seconds < 59.95:
    return f"{seconds:.1f} s"
  whole = round(seconds)
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  minutes = round(seconds / 60)
  return f"{minutes // 60} h {minutes % 60:02d} min"


def ordered(models: Iterable[str]) -> list[str]:
  """The names of the models: original, retrained, then the others in the order given."""
  references = [name for name in REFERENCES if name in models]
  return references + [name for name in models if name not in REFERENCES]


def best_first(names: Iterable[str], models: Models) -> list[str]:
  """The names sorted by ToW; a model without a finite ToW comes last."""
  key = closeness_key(models)

  def loss(name):
    value = models[name].get(key)
    return -value if is_number(value) else math.inf

  return sorted(names, key=loss)


def best_models(models: Models, column: Metric) -> set[str]:
  """The names of the best rows of a column, excluding both references.

  Closest to the retrained model if the arrow is (→), highest if it is (↑). Rows that tie at
  the printed decimals are all best. Empty unless two rows can be compared.
  """
  values = {name: metrics.get(column.key) for name, metrics in models.items()}
  rivals = {n: v for n, v in values.items() if not is_reference(n) and is_number(v)}
  if len(rivals) < 2:
    return set()
  target = values.get(RETRAINED, values.get(UNSEEN))
  if column.arrow == HIGHER:
    losses = {name: -value for name, value in rivals.items()}
  elif is_number(target):
    losses = {name: abs(value - target) for name, value in rivals.items()}
  else:
    return set()
  losses = {name: round(loss, column.digits) for name, loss in losses.items()}
  return {name for name, loss in losses.items() if loss == min(losses.values())}


def more(models: Models) -> dict[str, Columns]:
  """{title: columns} of the tables below the main one: the metrics that some model has."""
  measured = {title: tuple(column for column in in_group(group)
                           if any(row.get(column.key) is not None for row in models.values()))
              for group, title in GROUPS.items() if group != MAIN}
  return {title: columns for title, columns in measured.items() if columns}


def model_cells(models: Models, columns: Columns | None = None) -> list[tuple[str, list[Cell]]]:
  """[(name, [Cell of each column])]: a table (by default the main one) before layout."""
  columns = main_columns(models) if columns is None else columns
  best = {column.key: best_models(models, column) for column in columns}
  return [
    (name, [_cell(models[name], column, name in best[column.key]) for column in columns])
    for name in ordered(models)
  ]


def _cell(metrics, column, best):
  interval = metrics.get(f"{column.key}_ci95")
  return Cell(
    value=format_number(metrics.get(column.key), column.digits),
    interval=f"± {interval:.{column.digits}f}" if is_number(interval) else "",
    best=best,
  )


def legend(models: Models, best_mark: str = "*", columns: Columns | None = None) -> str:
  """One line on how to read the table; explains only the signs that occur in it."""
  cells = [cell for _, row in model_cells(models, columns) for cell in row]
  signs = [
    f"({CLOSER}) closer to {_target(models)} is better",
    f"({HIGHER}) higher is better",
  ]
  if any(cell.best for cell in cells):
    signs.append(f"{best_mark} best of the unlearned models")
  if any(cell.interval for cell in cells):
    signs.append("± 95% confidence interval over seeds")
  if any(cell.value == DASH for cell in cells):
    signs.append(f"{DASH} not measured")
  return "; ".join(signs) + "."


def _target(models):
  return ("the row of unseen owners" if UNSEEN in models and RETRAINED not in models
          else "the retrained model")


def text_table(models: Models) -> str:
  """The models by metrics, aligned for the terminal, with a one-line legend below.

  Args:
    models: {"original": {metric: float}, "retrained": {...}, "dareu": {...}, ...}; an absent metric
      is shown as a dash, `<metric>_ci95` as ±, and the best of several methods with a star.

  Returns:
    Lines joined by newlines: three header lines, a rule, one line per model, the legend.
  """
  rows = model_cells(models)
  blocks = [_left_block("model", [name for name, _ in rows])]
  for index, column in enumerate(main_columns(models)):
    blocks.append(_number_block(column, [cells[index] for _, cells in rows]))
  lines = ["  ".join(line).rstrip() for line in zip(*blocks, strict=True)]
  rule = "─" * max(len(line) for line in lines)
  return "\n".join([*lines[:3], rule, *lines[3:], legend(models)])


def _left_block(title, names):
  width = max(len(name) for name in [title, *names])
  return [line.ljust(width) for line in ["", "", title, *names]]


def _number_block(column, cells):
  """The lines of one column: its title on two lines, its arrow, its cells with aligned digits."""
  title = column.title_lines
  head = [""] * (2 - len(title)) + title + [f"({column.arrow})"]
  tails = [f" {cell.interval}".rstrip() + "*" * cell.best for cell in cells]
  value_width = max((len(cell.value) for cell in cells), default=0)
  tail_width = max(map(len, tails), default=0)
  body = [
    cell.value.rjust(value_width) + tail.ljust(tail_width)
    for cell, tail in zip(cells, tails, strict=True)
  ]
  width = max(map(len, head + body))
  return [line.rjust(width) for line in head + body]


def markdown_table(models: Models, columns: Columns | None = None) -> str:
  """The models by metrics as a Markdown table; the best of several methods is bold."""
  columns = main_columns(models) if columns is None else columns
  header = ["model", *(f"{column.name} ({column.arrow})" for column in columns)]
  rows = [[name, *map(_markdown_cell, cells)] for name, cells in model_cells(models, columns)]
  return pipe_table(header, rows)


def _markdown_cell(cell):
  text = " ".join(filter(None, [cell.value, cell.interval]))
  return f"**{text}**" if cell.best else text


def pipe_table(header: Sequence[Any], rows: Iterable[Sequence[Any]],
               left: Sequence[int] = (0,)) -> str:
  """A Markdown table, padded to align as long as cells are short.

  The columns whose indices are in `left` are left-aligned, the others right-aligned. A `|` in a
  cell is escaped and a line break becomes a space.
  """
  grid = [[_pipe_cell(cell) for cell in row] for row in [header, *rows]]
  widths = [min(80, max(3, *map(len, column))) for column in zip(*grid, strict=True)]
  rule = ["-" * (width - 1) + ("-" if i in left else ":") for i, width in enumerate(widths)]
  lines = []
  for row in [grid[0], rule, *grid[1:]]:
    padded = [
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("| " + " | ".join(padded) + " |")
  return "\n".join(lines)


def _pipe_cell(value):
  return " ".join(str(value).split()).replace("|", "&#124;")


def stage_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
  """[(stage, time, note)] and a last row with the total of the stages that ran."""
  rows = [
    (name, format_seconds(stage.get("seconds")), "skipped: result was there" * _skipped(stage))
    for name, stage in stages.items()
  ]
  ran = [stage.get("seconds") for stage in stages.values() if not _skipped(stage)]
  note = "without those skipped" * (len(ran) < len(stages))
  return [*rows, ("total", format_seconds(sum(filter(is_number, ran))), note)]


def _skipped(stage):
  return bool(stage.get("skipped"))


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
  """The stages by time, aligned for the terminal.

  Args:
    stages: {"<stage>": {"seconds": float, "skipped": bool}}.
  """
  rows = [("stage", "time", ""), *stage_rows(stages)]
  names, times = (max(len(row[i]) for row in rows) for i in (0, 1))
  lines = [f"{name:<{names}}  {time:>{times}}  {note}".rstrip() for name, time, note in rows]
  rule = "─" * max(len(line) for line in lines)
  return "\n".join([lines[0], rule, *lines[1:]])


def time_line(time: Mapping[str, float]) -> str:
  """One sentence: the wall time that was kept and the time lost to kills.

  Args:
    time: from `training.wall_time.WallTimeLog.summary`.
  """
  line = f"Time: {format_seconds(time['kept_seconds'])}"
  if time["processes"] > 1:
    line += (f" of work in {time['processes']} processes, and "
             f"{format_seconds(time['lost_seconds'])} lost between their last checkpoints and "
             f"their ends (goodput {time['goodput']:.0%})")
  return f"{line}."

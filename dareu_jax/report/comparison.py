"""Runs that differ in one setting each, side by side: one table, one plot, and their epochs."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dareu_jax.evaluation.records import RETRAINED
from dareu_jax.report import tables
from dareu_jax.report.plots import (
  BLUE,
  FAINT,
  GRAY,
  GREEN,
  INK,
  METHOD_COLORS,
  METHOD_MARKERS,
  VERMILLION,
  make_figure,
  to_png_bytes,
)

if TYPE_CHECKING:
  from matplotlib.figure import Figure

HEADER = ("study", "setting", "ToW (↑)", "D_F ROUGE", "D_R ROUGE", "attribution", "judge",
          "fluency NLL", "length", "distinct", "epoch", "out of bounds")
# Title, key in an epoch's report or in its tracked metrics.
TRAJECTORY = (("D_F ROUGE", "forget_rouge"), ("ToW", "tug_of_war"),
              ("attribution score", "score"), ("response length (tokens)", "response_length"))


Record = Mapping[str, Any]  # a run, from `pipeline.ablations.run`


def table(records: Sequence[Record]) -> str:
  """The runs as a Markdown table; after each slash, the retrained model's number."""
  rows = []
  for record in records:
    ours, retrained = (record["models"][name] for name in (record["method"], RETRAINED))
    trained = [report for epochs in record["epochs"] for report in epochs if report["epoch"] > 0]
    broken = sum(bool(report["reason"]) for report in trained)
    rows.append([
      record["study"], record["label"], _with_interval(ours, "tug_of_war"),
      *(_beside(ours, retrained, key, digits) for key, digits in (
        ("forget_rouge", 3), ("retain_rouge", 3), ("attribution_score", 3), ("judge_score", 3),
        ("fluency_nll", 2), ("response_length", 1), ("distinct_share", 2))),
      f"{np.mean(record['chosen']):.1f}", f"{broken} of {len(trained)}"])
  return tables.pipe_table(HEADER, rows, left=(0, 1))


def _with_interval(metrics, key):
  interval = metrics.get(f"{key}_ci95")
  shown = f" ± {interval:.3f}" if tables.is_number(interval) else ""
  return tables.format_number(metrics.get(key)) + shown


def _beside(ours, retrained, key, digits):
  return " / ".join(tables.format_number(each.get(key), digits) for each in (ours, retrained))


def write(folder: str | pathlib.Path, records: Sequence[Record], command: str) -> None:
  """Writes ablations.md and the plots into a folder."""
  folder = pathlib.Path(folder)
  (folder / "plots").mkdir(parents=True, exist_ok=True)
  pictures = {"ablations": overview(records)}
  for study in dict.fromkeys(record["study"] for record in records):
    tracked = [r for r in records if r["study"] == study and _is_tracked(r)]
    if tracked:
      pictures[f"epochs_{study}"] = trajectories(tracked)
  for name, figure in pictures.items():
    (folder / "plots" / f"{name}.png").write_bytes(to_png_bytes(figure))
  lines = ["# Ablations", "", f"    {command}", "", table(records), "",
           "After the slash: the retrained model's number, which is the target. "
           "epoch: the one that was kept; out of bounds: epochs that violate a guard."]
  lines += [f"\n![{name}](plots/{name}.png)" for name in pictures]
  (folder / "ablations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def overview(records: Sequence[Record]) -> "Figure":
  """A panel per study: ToW, and length and fluency relative to the retrained model's.

  All three are 1 if the run is like the retrained model.
  """
  studies = list(dict.fromkeys(record["study"] for record in records))
  columns = min(3, len(studies))
  rows = math.ceil(len(studies) / columns)
  figure = make_figure(4.4 * columns, 3.3 * rows + 0.5)
  axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
  for ax in axes.flat[len(studies):]:
    ax.set_visible(False)
  for ax, study in zip(axes.flat, studies, strict=False):
    _draw_study(ax, study, [record for record in records if record["study"] == study])
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=9,
                labelcolor=INK)
  figure.tight_layout(rect=(0, 0.4 / (3.3 * rows + 0.5), 1, 1))
  return figure


def _draw_study(ax, study, records):
  x = np.arange(len(records))
  measures = (("ToW", BLUE, "o", lambda ours, retrained: ours["tug_of_war"]),
              ("length / retrained's", GREEN, "^",
               lambda ours, retrained: _ratio(ours, retrained, "response_length")),
              ("retrained's fluency NLL / NLL", VERMILLION, "s",
               lambda ours, retrained: _ratio(retrained, ours, "fluency_nll")))
  ax.axhline(1.0, color=GRAY, linewidth=1, linestyle=":")
  for offset, (label, color, marker, measure) in zip((-0.12, 0.0, 0.12), measures, strict=True):
    values = [measure(r["models"][r["method"]], r["models"][RETRAINED]) for r in records]
    errors = None
    if label == "ToW":
      half = [r["models"][r["method"]].get("tug_of_war_ci95") for r in records]
      errors = [value if tables.is_number(value) else 0.0 for value in half]
    ax.errorbar(x + offset, values, errors, color=color, marker=marker, linestyle="none",
                elinewidth=1, label=label)
  ax.set_xticks(x, [_short(record["label"]) for record in records], fontsize=8)
  ax.tick_params(axis="x", rotation=20 if max(map(len, map(_short_of, records))) > 6 else 0)
  ax.set_xlim(-0.5, len(records) - 0.5)
  ax.set_ylim(0, max(1.45, ax.get_ylim()[1]))
  ax.set_title(study.replace("_", " "), loc="left", fontsize=11, color=INK, fontweight="bold")
  ax.grid(axis="y", color=FAINT, linewidth=0.6)
  for side in ("top", "right"):
    ax.spines[side].set_visible(False)


def _ratio(above, below, key):
  return above[key] / below[key] if below.get(key) else math.nan


def _short_of(record):
  return _short(record["label"])


def _short(label):
  """"unlearning.c_seg=3.0" as "3.0"; several assignments give one value per line."""
  return "\n".join(part.partition("=")[2] for part in label.split())


def trajectories(records: Sequence[Record]) -> "Figure":
  """Metrics over the epochs, a line per run: the mean over seeds, and their range.

  Args:
    records: records of one study, with tracked ROUGEs.
  """
  figure = make_figure(10, 6.6)
  axes = figure.subplots(2, 2, sharex=True)
  # Cycles of different lengths, so that many settings differ in color or marker.
  styles = zip(itertools.cycle(METHOD_COLORS), itertools.cycle(METHOD_MARKERS), strict=True)
  for record, (color, marker) in zip(records, styles, strict=False):
    for ax, (_, key) in zip(axes.flat, TRAJECTORY, strict=True):
      seeds = [{report["epoch"]: _value_of(report, key, record) for report in epochs}
               for epochs in record["epochs"]]
      x = sorted(set.intersection(*map(set, seeds)))  # some seeds may have stopped earlier
      values = np.array([[seed[epoch] for epoch in x] for seed in seeds], float)
      ax.plot(x, values.mean(0), color=color, marker=marker, markersize=4, linewidth=1.5,
              label=_short(record["label"]).replace("\n", ", "))
      ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
  retrained = records[0]["models"][RETRAINED]
  floors = (retrained["forget_rouge"], 1.0, retrained["attribution_score"],
            retrained["response_length"])
  for ax, (title, _), floor in zip(axes.flat, TRAJECTORY, floors, strict=True):
    ax.axhline(floor, color=GRAY, linestyle="--", linewidth=1.2, label=RETRAINED)
    ax.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    ax.grid(color=FAINT, linewidth=0.6)
    for side in ("top", "right"):
      ax.spines[side].set_visible(False)
  axes[0, 0].set_ylim(0, 1.03)
  axes[1, 0].set_ylim(-0.03, 1.03)
  axes[1, 1].set_ylim(bottom=0)
  for ax in axes[1]:
    ax.set_xlabel("epoch", color=INK)
  axes[0, 0].legend(fontsize=9, frameon=False, labelcolor=INK)
  figure.tight_layout()
  return figure


def _is_tracked(record):
  return all(report.get("tracked") for epochs in record["epochs"] for report in epochs)


def _value_of(report, key, record):
  """A metric of an epoch; ToW is computed from its tracked ROUGEs."""
  if key == "tug_of_war":
    retrained = record["models"][RETRAINED]
    return math.prod(1 - abs(value - retrained[name]) for name, value in report["tracked"].items())
  return report[key] if key in report else report["tracked"][key]

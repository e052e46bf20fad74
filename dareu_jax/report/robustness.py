"""The robustness card: attacks by models, each cell with its gap to the retrained model."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dareu_jax.evaluation.attacks.declarations import RELEARNING, ROWS, relearned
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED
from dareu_jax.report import tables
from dareu_jax.report.plots import (
  FAINT,
  GRAY,
  INK,
  METHOD_COLORS,
  METHOD_MARKERS,
  make_figure,
  to_png_bytes,
)

if TYPE_CHECKING:
  from matplotlib.figure import Figure

TRUST = """Faithfulness: the AUC of separating models that know the forget data (the original as it
is, quantized, and trained on retained data; the retrained model trained on the forget set) from
models that do not (the retrained model as it is, quantized, and trained on anything else).
Robust: 1 if relearning changes a method's metric as much as the retrained model's, and if NF4
does not change it, over the methods that kept 80% of the original's D_R ROUGE; both: the
harmonic mean."""


def table(models: tables.Models) -> str:
  """The card as a Markdown table: attacks by models.

  Args:
    models: metrics by model; must include "retrained".
  """
  retrained = models[RETRAINED]
  names = tables.ordered(models)
  rows = []
  for row in ROWS:
    if not tables.is_number(retrained.get(row.key)):
      continue
    rows.append([row.title, *(_cell(models[name], retrained, row, name == RETRAINED)
                              for name in names)])
  return tables.pipe_table(["attack", *names], rows)


def _cell(metrics, retrained, row, is_reference):
  value = metrics.get(row.key)
  if not tables.is_number(value):
    return tables.DASH
  shown = f"{value:.{row.digits}f}"
  interval = metrics.get(f"{row.key}_ci95")
  shown += f" ± {interval:.{row.digits}f}" if tables.is_number(interval) else ""
  return shown if is_reference else f"{shown} ({value - retrained[row.key]:+.{row.digits}f})"


def trust_table(trust: Mapping[str, Mapping[str, float]]) -> str:
  """How far each metric can be trusted, as a Markdown table.

  Args:
    trust: from `attacks.reliability.trust`.
  """
  return tables.pipe_table(
    ["metric", "faithfulness AUC", "robust to relearning", "robust to NF4", "both"],
    [[name, *(f"{row[key]:.3f}" if tables.is_number(row[key]) else tables.DASH
              for key in ("auc", "relearning", "quantization", "robustness"))]
     for name, row in trust.items()])


def write(folder: str | pathlib.Path, models: tables.Models, options: Any,
          trust: Mapping[str, Mapping[str, float]]) -> pathlib.Path:
  """Writes robustness.md and the relearning curves; returns the page's path."""
  folder = pathlib.Path(folder)
  (folder / "plots").mkdir(parents=True, exist_ok=True)
  (folder / "plots" / "relearning.png").write_bytes(to_png_bytes(curves(models, options.steps)))
  meanings = [f"- **{row.title}**: {row.meaning}" for row in ROWS if row.meaning]
  page = folder / "robustness.md"
  page.write_text("\n\n".join([
    "# Robustness card",
    f"In brackets the gap to the retrained model under the same attack. Relearning at "
    f"{options.learning_rate:g} in batches of {options.batch_size}; {options.samples} samples.",
    table(models), "\n".join(meanings), "![Relearning curves](plots/relearning.png)",
    "## The metrics themselves", TRUST, trust_table(trust)]) + "\n",
    encoding="utf-8")
  return page


def curves(models: tables.Models, steps: Sequence[int]) -> "Figure":
  """ROUGE over the steps of relearning: a panel per training data, a line per model."""
  figure = make_figure(11, 3.8)
  axes = figure.subplots(1, len(RELEARNING), sharey=True)
  for ax, (kind, relearning) in zip(axes, RELEARNING.items(), strict=True):
    for index, name in enumerate(tables.ordered(models)):
      values = [models[name].get(f"{relearned(kind, step)}_rouge") for step in steps]
      if not all(map(tables.is_number, values)):
        continue
      reference = name in tables.REFERENCES
      ax.plot(range(len(steps)), values, label=name, linewidth=1.5,
              color=GRAY if reference else METHOD_COLORS[index % len(METHOD_COLORS)],
              linestyle={ORIGINAL: ":", RETRAINED: "--"}.get(name, "-"),
              marker=None if reference else METHOD_MARKERS[index % len(METHOD_MARKERS)],
              markersize=4)
    ax.set_xticks(range(len(steps)), steps)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("steps", color=INK)
    ax.set_title(f"taught {relearning.taught}", loc="left", fontsize=10, color=INK,
                 fontweight="bold")
    ax.grid(color=FAINT, linewidth=0.6)
    for side in ("top", "right"):
      ax.spines[side].set_visible(False)
  axes[0].set_ylabel("ROUGE of forget answers", color=INK)
  axes[0].legend(fontsize=8, frameon=False, labelcolor=INK)
  figure.tight_layout()
  return figure

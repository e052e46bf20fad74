"""Plots of what a model still knows: the likelihood of each answer, and ToW over extraction."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from dareu_jax.evaluation.records import RETRAINED
from dareu_jax.report import plots, tables

if TYPE_CHECKING:  # matplotlib is imported when drawing
  from matplotlib.figure import Figure

COLUMNS = 4  # panels beside each other
LogLikelihoods = Mapping[str, Sequence[float] | Float[np.ndarray, " E"]]


def likelihoods(models: LogLikelihoods) -> "Figure | None":
  """Log-likelihood of each forget answer under each model, over the retrained model's.

  Args:
    models: {model: mean log-probability per token of each true forget answer}.

  Returns: a figure with a panel for each model but the retrained one, and in it the mean distance
    and the correlation; None without a retrained model.

  Source: DareU, figure 2.
  """
  target = models.get(RETRAINED)
  shown = [name for name in models if name != RETRAINED]
  if target is None or not shown:
    return None
  columns = min(COLUMNS, len(shown))
  rows = -(-len(shown) // columns)
  figure = plots.make_figure(0.8 + 2.6 * columns, 0.8 + 2.7 * rows)
  panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
  figure.subplots_adjust(left=0.8 / (0.8 + 2.6 * columns), right=0.985, top=1 - 0.3 / (2.7 * rows),
                         bottom=0.55 / (0.8 + 2.7 * rows), hspace=0.28, wspace=0.1)
  finite = np.concatenate([np.asarray(models[name], float) for name in (RETRAINED, *shown)])
  low = float(np.min(finite[np.isfinite(finite)], initial=-1.0)) * 1.04
  styles = plots.model_styles(shown)
  for ax, name in zip(panels.flat, shown, strict=False):
    own = np.asarray(models[name], float)
    ax.plot([low, 0], [low, 0], color=plots.GRAY, linewidth=1, zorder=1)
    ax.plot(target, own, linestyle="none", marker="o", markersize=3.5, alpha=0.6,
            color=styles[name]["color"], markeredgewidth=0)
    plots.label_axes(ax, name, "")
    ax.text(0.97, 0.04, _compared(own, np.asarray(target, float)), transform=ax.transAxes,
            ha="right", va="bottom", fontsize=9, color=plots.INK)
    ax.set_xlim(low, -0.02 * low)
    ax.set_ylim(low, -0.02 * low)
    ax.grid(color=plots.FAINT, linewidth=0.6)
    plots.finish(ax)
  for ax in panels.flat[len(shown):]:
    ax.set_visible(False)
  for ax in panels[:, 0]:
    ax.set_ylabel("under the model", color=plots.INK)
  for ax in panels.flat[max(0, len(shown) - columns):len(shown)]:
    ax.tick_params(labelbottom=True)
    ax.set_xlabel("under the retrained one", color=plots.INK)
  return figure


def _compared(own, target):
  finite = np.isfinite(own) & np.isfinite(target)
  own, target = own[finite], target[finite]
  if not own.size:
    return "no finite value"
  distance = f"mean |Δ| {np.mean(np.abs(own - target)):.2f} nats"
  if len(own) < 3 or not own.std() or not target.std():
    return distance
  return f"{distance}\nr {np.corrcoef(own, target)[0, 1]:.2f}"


def frontier(models: tables.Models) -> "Figure | None":
  """ToW over extraction strength: how close the answers are, and how much is still known.

  Args:
    models: {model: metrics}, with `<metric>_ci95` for error bars.

  Returns: a figure; None where no model was retrained. Best is the retrained model's own place, at
    the top.
  """
  keys = "extraction_strength", "tug_of_war"
  points = {}
  for name in tables.ordered(models):
    known, close = (float(models[name].get(key, math.nan)) for key in keys)
    points[name] = known, close
  points = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
  if RETRAINED not in points or len(points) < 2:
    return None
  figure = plots.make_figure(8.6, 5.6)
  ax = figure.subplots()
  figure.subplots_adjust(left=0.08, right=0.98, top=0.93, bottom=0.1)
  styles = plots.model_styles(points)
  for name, (x, y) in points.items():
    dx, dy = (plots.half_width(models[name].get(f"{key}_ci95")) for key in keys)
    ax.errorbar(x, y, yerr=dy, xerr=dx, ecolor=styles[name]["color"], elinewidth=1, fmt="none",
                alpha=0.4)
    ax.plot(x, y, linestyle="none", markeredgecolor="white", zorder=4, **styles[name])
  ax.axvline(points[RETRAINED][0], color=plots.GRAY, linestyle="--", linewidth=1)
  plots.label_axes(ax, "What is still known, and how close the answers are", "ToW (0 to 1)")
  ax.set_xlabel("extraction strength (0 to 1; dashed: the retrained model's)", color=plots.INK)
  ax.set_xlim(-0.03, 1.03)
  ax.set_ylim(min(0.0, *(y for _, y in points.values())) - 0.03, 1.05)
  ax.grid(color=plots.FAINT, linewidth=0.6)
  plots.finish(ax)
  plots.place_labels(ax, points, styles)
  return figure

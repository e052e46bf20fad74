"""The study's plots: rounds in, averaged over seeds as `page.mean_rounds` has them, Figures out."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from dareu_jax.evaluation.metrics import METRICS
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED
from dareu_jax.report.plots import (
  FAINT,
  GRAY,
  INK,
  METHOD_COLORS,
  METHOD_MARKERS,
  finish,
  label_axes,
  make_figure,
)

Rounds = list[dict[str, Any]]
Left = Mapping[str, Mapping[str, list[list[float | None]]]]  # {metric: {model: [round][after]}}
ANNOTATED = 8  # rounds up to which the cells of a heat map show their values


def all_plots(rounds: Rounds, left: Left) -> dict[str, Figure]:
  """{file name: Figure}."""
  return {"rounds.png": by_round(rounds), "left.png": heat_maps(rounds, left),
          "seconds.png": seconds(rounds)}


def by_round(rounds: Rounds) -> Figure:
  """ToW and extraction of everybody forgotten so far, over the rounds; bars: 95% intervals."""
  figure = make_figure(10.5, 4.2)
  axes = figure.subplots(1, 2)
  figure.subplots_adjust(left=0.06, right=0.985, top=0.84, bottom=0.13, wspace=0.17)
  for ax, key in zip(axes, ("tug_of_war", "extraction_strength"), strict=True):
    for name, style in _styles(rounds).items():
      if key == "tug_of_war" and name == RETRAINED:
        continue  # 1 by definition
      points = [(round_["round"], one["metrics"][key], one["metrics"].get(f"{key}_ci95"))
                for round_ in rounds if (one := round_["models"].get(name)) is not None
                and key in one["metrics"]]
      if points:
        x, y, half = zip(*points, strict=True)
        bars = [h if h is not None and math.isfinite(h) else 0 for h in half]
        ax.errorbar(x, y, yerr=bars if any(bars) else None, capsize=2, elinewidth=1, **style)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(0.7, len(rounds) + 0.3)
    _finish(ax, f"{METRICS[key].name}, everybody forgotten so far", METRICS[key].name)
  axes[0].axhline(0.9, color=GRAY, linestyle=":", linewidth=1.2)
  _legend(figure, axes[1])
  return figure


def heat_maps(rounds: Rounds, left: Left) -> Figure:
  """What is left of each round's owners, after that round and each later one."""
  models = list(next(iter(left.values())))
  # Metrics below each other for several methods, side by side for one.
  alone = len(models) == 1
  shape = (1, len(left)) if alone else (len(left), len(models))
  figure = make_figure(10.5, 5.0 if alone else 2.75 * shape[0])
  axes = figure.subplots(*shape, squeeze=False)
  figure.subplots_adjust(left=0.055, right=0.93, top=0.92, bottom=0.1, wspace=0.16, hspace=0.42)
  numbers = [round_["round"] for round_ in rounds]
  panels = [(key, name) for key in left for name in models]
  for ax, (key, name) in zip(axes.flat, panels, strict=True):
    values = [[math.nan if value is None else value for value in row] for row in left[key][name]]
    edges = (0.5, len(numbers) + 0.5)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto",
                      extent=(*edges, *edges[::-1]))
    if len(numbers) <= ANNOTATED:
      for i, row in enumerate(values):
        for j, value in enumerate(row):
          if not math.isnan(value):
            ax.text(j + 1, i + 1, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if value < 0.6 else INK)
    _integers(ax.yaxis)
    _finish(ax, f"{name}: {METRICS[key].name}", "")
    ax.set_xlabel("after round", color=INK, fontsize=9)
  for ax in axes[:, 0]:
    ax.set_ylabel("forgotten in round", color=INK, fontsize=9)
  bar = figure.colorbar(image, cax=figure.add_axes((0.945, 0.1, 0.012, 0.82)))
  bar.ax.tick_params(labelsize=8, colors=GRAY)
  bar.outline.set_visible(False)
  return figure


def seconds(rounds: Rounds) -> Figure:
  """Seconds of each method, of retraining and of a refreshed classifier, over the rounds."""
  figure = make_figure(7.2, 3.9)
  ax = figure.subplots()
  figure.subplots_adjust(left=0.1, right=0.975, top=0.83, bottom=0.14)
  styles = _styles(rounds) | {"classifier": {
    "color": GRAY, "marker": "x", "linestyle": ":", "label": "classifier"}}
  for name, style in styles.items():
    points = [(round_["round"], round_["seconds"][name])
              for round_ in rounds if name in round_["seconds"]]
    if points:
      ax.plot(*zip(*points, strict=True), **style)
  ax.set_ylim(bottom=0)
  _finish(ax, "Cost of a round", "seconds")
  _legend(figure, ax)
  return figure


def _styles(rounds):
  """{model: keyword arguments of its line}."""
  methods = [name for name in rounds[0]["models"] if name not in (ORIGINAL, RETRAINED)]
  styles = {name: {"color": METHOD_COLORS[i % len(METHOD_COLORS)], "linewidth": 1.6,
                   "marker": METHOD_MARKERS[i % len(METHOD_MARKERS)], "markersize": 5,
                   "label": name} for i, name in enumerate(methods)}
  return styles | {
    RETRAINED: {"color": INK, "linestyle": "--", "marker": "*", "markersize": 8,
                "label": RETRAINED},
    ORIGINAL: {"color": GRAY, "linestyle": "--", "marker": "s", "markersize": 4,
               "label": f"{ORIGINAL}, nothing forgotten"}}


def _legend(figure, ax):
  handles, labels = ax.get_legend_handles_labels()
  figure.legend(handles, labels, loc="upper left", ncols=len(labels), frameon=False, fontsize=9,
                labelcolor=INK, bbox_to_anchor=(0.04, 1.0))


def _integers(axis):
  axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _finish(ax, title, ylabel):
  label_axes(ax, title, ylabel)
  ax.set_xlabel("round", color=INK)
  if not ax.images:
    ax.grid(color=FAINT, linewidth=0.6)
  _integers(ax.xaxis)
  finish(ax)

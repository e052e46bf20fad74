"""The study's plots: its results in, as figures.json has them, matplotlib Figures out."""

import math
from typing import Any

from matplotlib.figure import Figure

from dareu_jax.report.plots import (
  BLUE,
  FAINT,
  GRAY,
  GREEN,
  INK,
  OCHRE,
  PURPLE,
  VERMILLION,
  finish,
  label_axes,
  make_figure,
)

SCORES = ("classifier", "judge", "with none", "tf-idf", "gradient cosine", "influence",
          "owner label", "random")
SETS = {"sampled": (BLUE, "o"), "true": (VERMILLION, "D"), "unseen": (GREEN, "^")}
PANELS = (
  ("lds", "owner-LDS"),
  ("lds_given_the_owner", "owner-LDS, own owner held fixed"),
  ("over_owners", "leave-owner-out, all owners"),
  ("over_other_owners", "leave-owner-out, own owner left out"),
)
SOURCES = {"full": (BLUE, "-"), "full, another seed": (GREEN, "--"),
           "without the owner": (VERMILLION, "-")}
WAYS = {"dropped": (BLUE, "o"), "replaced": (VERMILLION, "D")}


def against_retraining(retraining: dict[str, Any]) -> Figure:
  """Rank correlations of every score with the retrainings, four panels.

  Args:
    retraining: {set: {"scores", "ceiling"}} of figures.json.
  """
  figure = make_figure(11, 7.2)
  axes = figure.subplots(2, 2, sharey=True)
  figure.subplots_adjust(left=0.125, right=0.985, top=0.9, bottom=0.075, hspace=0.28, wspace=0.06)
  for ax, (key, title) in zip(axes.flat, PANELS, strict=True):
    ax.axvline(0, color=GRAY, linewidth=0.8)
    for index, (name, (color, marker)) in enumerate(SETS.items()):
      if name not in retraining:
        continue
      offset = 0.24 * (index - 1)
      _draw_scores(ax, retraining[name]["scores"], key, offset, color, marker, name)
      limit = retraining[name]["ceiling"].get(key, {}).get("ceiling")
      if _is_number(limit):
        ax.axvline(limit, color=color, linestyle=":", linewidth=1.4)
    ax.set_yticks(range(len(SCORES)), SCORES)
    ax.set_ylim(len(SCORES) - 0.5, -0.5)
    ax.set_xlim(-0.35, 1.03)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    _finish(ax, title, "Spearman, mean over queries")
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.legend(handles, [f"{label} responses" for label in labels], loc="upper left", ncols=3,
                bbox_to_anchor=(0.115, 1.0), frameon=False, fontsize=9.5, labelcolor=INK)
  figure.text(0.985, 0.955, "dotted: ceiling set by the retrainings' own noise", ha="right",
              fontsize=8.5, color=GRAY)
  return figure


def _draw_scores(ax, scores, key, offset, color, marker, label):
  points = []
  for row, name in enumerate(SCORES):
    estimate = scores.get(name, {}).get(key)
    if estimate and _is_number(estimate["value"]):
      points.append((row + offset, estimate["value"], *estimate["by_both"]))
  if not points:
    return
  rows, values, low, high = zip(*points, strict=True)
  ax.hlines(rows, low, high, color=color, linewidth=1.6)
  ax.plot(values, rows, marker, color=color, markersize=5, linestyle="none", label=label)


def floor_and_calibration(floor: dict[str, Any], calibration: dict[str, Any]) -> Figure:
  """Cumulative scores of the true owner by the model that answered; reliability diagrams."""
  figure = make_figure(11, 4.3)
  left, right = figure.subplots(1, 2)
  figure.subplots_adjust(left=0.065, right=0.985, top=0.9, bottom=0.135, wspace=0.17)
  for source, (color, line) in SOURCES.items():
    values = sorted(floor["scores"]["classifier"][source])
    shares = [(i + 1) / len(values) for i in range(len(values))]
    mean = floor["summary"]["classifier"][source]["mean"]
    left.step(values, shares, where="post", color=color, linestyle=line, linewidth=1.6,
              label=f"{source}: mean {mean:.3f}")
  left.set_xlim(-0.02, 1.02)
  left.set_ylim(0, 1.02)
  left.grid(color=FAINT, linewidth=0.6)
  left.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK,
              loc="center", title="who answered", title_fontsize=8.5)
  _finish(left, "Score of the owner asked about", "classifier score",
          "share of responses at or below")

  right.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1)
  for name, (color, marker) in {"true": (VERMILLION, "D"), "paraphrased": (PURPLE, "s"),
                                 "sampled": (BLUE, "o")}.items():
    metrics = calibration["classifier"].get(name)
    if not metrics:
      continue
    label = f"{name}: accuracy {metrics['accuracy']:.2f}, ECE {metrics['ece']:.3f}"
    confidence, accuracy, counts = zip(*metrics["bins"], strict=True)
    right.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.6)
    right.scatter(confidence, accuracy, s=[14 + n for n in counts], color=color,
                  marker=marker, label=label, zorder=3)
  right.set_xlim(-0.02, 1.05)
  right.set_ylim(-0.05, 1.32)
  right.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
  right.grid(color=FAINT, linewidth=0.6)
  right.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK,
               loc="upper left", markerscale=0.7)
  _finish(right, "Calibration (size: examples in the bin)", "confidence", "accuracy")
  return figure


def trajectories(trajectory: dict[str, Any]) -> Figure:
  """Score, KL to the retrained model and ToW along each run, alarms marked."""
  runs, references = trajectory["runs"], trajectory["references"]
  figure = make_figure(5.6 * len(runs), 7.6)
  axes = figure.subplots(3, len(runs), sharex="col", sharey="row", squeeze=False)
  figure.subplots_adjust(left=0.075 if len(runs) > 1 else 0.14, right=0.985, top=0.94, bottom=0.075,
                         hspace=0.14, wspace=0.06)
  seeds = {key: [r[key] for r in references["retrained"]] for key in ("score", "kl", "tow")}
  for column, (form, run) in enumerate(runs.items()):
    score, kl, tow = axes[:, column]
    records = run["checkpoints"]
    for name, key, color in (("classifier (rewards)", "score", BLUE), ("judge", "judge", PURPLE),
                             ("with none", "with none", OCHRE)):
      score.plot([r[key] for r in records], color=color, marker=".", label=name, linewidth=1.4)
    kl.plot([r["kl"] for r in records], color=BLUE, marker=".", linewidth=1.4)
    tow.plot([r["tow"] for r in records], color=BLUE, marker=".", linewidth=1.4)
    for ax, key in ((score, "score"), (kl, "kl"), (tow, "tow")):
      values = seeds[key]
      ax.axhspan(min(values), max(values), color=GREEN, alpha=0.15, linewidth=0)
      ax.axhline(sum(values) / len(values), color=GREEN, linestyle="--", linewidth=1.3,
                 label=f"retrained, {len(values)} seeds: {sum(values) / len(values):.3f}")
    for ax, key, metric in ((kl, "alarms_kl", "kl"), (tow, "alarms_tow", "tow")):
      steps = run[key]
      ax.plot(steps, [records[i][metric] for i in steps], "o", color=VERMILLION, markersize=9,
              markerfacecolor="none", markeredgewidth=1.8, linestyle="none",
              label=f"alarm: the score falls, the distance grows ({len(steps)})")
    lowest = min(r["tow"] for each in runs.values() for r in each["checkpoints"])
    for ax in (score, kl, tow):
      ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
      ax.grid(color=FAINT, linewidth=0.6)
      ax.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK)
    # Starts at zero, with room for the legend.
    score.set_ylim(-0.03, 1.1)
    every = [r["kl"] for each in runs.values() for r in each["checkpoints"]] + seeds["kl"]
    kl.set_ylim(0, 1.35 * max(every))
    tow.set_ylim(min(lowest, 0.9) - 0.02, 1.02)
    _finish(score, f"reward form: {form}", "")
    _finish(kl, "", "")
    _finish(tow, "", "epoch")
  for ax, label in zip(axes[:, 0], ("score of the forget owners", "KL to the retrained models",
                                    "ToW"), strict=True):
    ax.set_ylabel(label, color=INK)
  return figure


def masking(curves: dict[str, list[dict[str, Any]]]) -> Figure:
  """Mean score against ROUGE as words are masked; each point is a share of masked words."""
  figure = make_figure(7.2, 4.6)
  ax = figure.subplots()
  figure.subplots_adjust(left=0.1, right=0.975, top=0.92, bottom=0.125)
  for way, (color, marker) in WAYS.items():
    points = curves[way]
    rouge = [p["rouge"] for p in points]
    low, high = zip(*(p["score_interval"] for p in points), strict=True)
    ax.fill_between(rouge, low, high, color=color, alpha=0.13, linewidth=0)
    ax.plot(rouge, [p["score"] for p in points], marker + "-", color=color, markersize=5,
            linewidth=1.4, label=f"words {way}")
    for point in points[1:-1:2] if way == "dropped" else ():
      ax.annotate(f"{point['share']:.0%}", (point["rouge"], point["score"]), fontsize=8,
                  xytext=(4, 6), textcoords="offset points", color=GRAY)
  ax.set_xlim(1.03, -0.03)
  ax.set_ylim(-0.02, 1.05)
  ax.grid(color=FAINT, linewidth=0.6)
  ax.legend(fontsize=9, frameon=False, labelcolor=INK)
  _finish(ax, "Masked forget responses", "ROUGE-L recall to the unmasked response",
          "score of the forget owners")
  return figure


def all_plots(results: dict[str, Any]) -> dict[str, Figure]:
  """{file name: Figure} of figures.json."""
  return {
    "retraining.png": against_retraining(results["retraining"]),
    "floor.png": floor_and_calibration(results["floor"], results["calibration"]),
    "trajectory.png": trajectories(results["trajectory"]),
    "masking.png": masking(results["masking"]),
  }


def _finish(ax, title, xlabel, ylabel=""):
  label_axes(ax, title, ylabel)
  ax.set_xlabel(xlabel, color=INK)
  finish(ax)


def _is_number(value):
  return isinstance(value, (int, float)) and math.isfinite(value)

"""Plots of a run: training curves and the forget-retain plane.

Uses only matplotlib's object-oriented interface: no pyplot, no global state, no display.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dareu_jax.evaluation.records import ORIGINAL, REPLICA, RETRAINED, UNSEEN
from dareu_jax.report import tables

if TYPE_CHECKING:  # matplotlib is imported when drawing
  from matplotlib.figure import Figure

Row = Mapping[str, Any]  # the record of a step or an epoch
Points = Mapping[str, tuple[float, float]]

# After Okabe and Ito, distinguishable with every common color blindness; the last two are darker,
# so that text in them is readable on white.
BLUE, VERMILLION, GREEN, PURPLE, OCHRE = "#0072B2", "#D55E00", "#009E73", "#A8417F", "#9A6A00"
INK, GRAY, FAINT = "#222222", "#6B6B6B", "#DDDDDD"
METHOD_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE)
METHOD_MARKERS = "ovDP^<>"
DPI = 160


class Curve(NamedTuple):
  """A number that the steps of a method record."""

  key: str
  title: str
  label: str


class Steps(NamedTuple):
  """What a step of a method is, and what it records beside the score and the length."""

  name: str
  optimized: Curve
  beside: Curve


ROLLOUTS = Steps("rollout", Curve("reward", "Reward of the rollout", "reward (no unit)"),
                 Curve("kl", "KL from the previous epoch's policy", "KL (nats)"))
UPDATES = Steps("update", Curve("loss", "Loss of the update", "loss (no unit)"),
                Curve("forget_loss", "Its term on forget responses", "loss (no unit)"))


def training_curves(history: Sequence[Row], epochs: Sequence[Row], target_score: float | None,
                    chosen_epoch: int | None) -> "Figure":
  """Score, response length and what is optimized, over the steps of a method.

  Args:
    history: a record for each rollout, {"step", "epoch", "score", "reward", "response_length",
      "kl", ...}, or for some updates of a loss-based method, {"step", "epoch", "loss",
      "forget_loss", ...}; absent, None and NaN values leave a gap.
    epochs: a record for each epoch end, {"epoch", "score", "response_length", "accepted", ...};
      each is drawn at its epoch's last step, hollow if it was rejected.
    target_score: the target level of the score, or None.
    chosen_epoch: the epoch that was kept, or None.

  Returns:
    A matplotlib Figure of 2x2 axes.
  """
  figure = make_figure(10, 6.4)
  axes = figure.subplots(2, 2, sharex=True)
  figure.subplots_adjust(left=0.075, right=0.985, top=0.945, bottom=0.085, hspace=0.2, wspace=0.21)
  history = _last_of_each_step(history)
  ends = _epoch_ends(history, epochs)
  score, reward, length, kl = axes.flat
  steps = UPDATES if any("loss" in r and "reward" not in r for r in history) else ROLLOUTS

  _draw_steps(score, history, "score")
  _draw_target(score, target_score)
  _draw_epochs(score, ends, "score", chosen_epoch)
  _draw_steps(reward, history, steps.optimized.key)
  _draw_steps(length, history, "response_length")
  _draw_epochs(length, ends, "response_length", chosen_epoch)
  _draw_steps(kl, history, steps.beside.key)

  label_axes(score, "Attribution of responses to forget queries", "attribution score (0 to 1)")
  label_axes(reward, *steps.optimized[1:])
  label_axes(length, "Response length", "length (tokens)")
  label_axes(kl, *steps.beside[1:])
  score.set_ylim(-0.03, 1.03)
  _from_zero(length)
  _from_zero(kl)
  for ax in axes[1]:
    ax.set_xlabel(steps.name if history else "epoch", color=INK)
  for ax in axes.flat:
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.grid(color=FAINT, linewidth=0.6)
    finish(ax)
  if score.get_legend_handles_labels()[0]:  # one legend: the other axes use the same signs
    score.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK)
  return figure


def forget_retain_plane(models: tables.Models) -> "Figure":
  """D_R ROUGE over D_F ROUGE of each model.

  Args:
    models: {"original": {"forget_rouge": float, "retain_rouge": float, ...}, ...}; a model without
      both is left out; with `<metric>_ci95` it gets error bars.

  Returns:
    A matplotlib Figure: D_F ROUGE on x, D_R ROUGE on y; around the retrained model the contours of

      (1 - |Δ D_F|) (1 - |Δ D_R|)

    which is ToW if the D_test ROUGE is the retrained model's.
  """
  figure = make_figure(7.2, 5.2)
  ax = figure.subplots()
  figure.subplots_adjust(left=0.1, right=0.975, top=0.93, bottom=0.11)
  points = {name: _point(models[name]) for name in tables.ordered(models)}
  points = {name: point for name, point in points.items() if point is not None}
  label_axes(ax, "Forgetting and keeping", "D_R ROUGE (0 to 1)")
  ax.set_xlabel("D_F ROUGE (0 to 1)", color=INK)
  ax.set_xlim(_limits([x for x, _ in points.values()]))
  ax.set_ylim(_limits([y for _, y in points.values()]))
  target = next((name for name in (RETRAINED, UNSEEN) if name in points), None)
  obstacles = _draw_contours(ax, points[target], target) if target else []
  styles = model_styles(points)
  for name, (x, y) in points.items():
    dx, dy = (half_width(models[name].get(f"{key}_ci95"))
              for key in ("forget_rouge", "retain_rouge"))
    ax.errorbar(x, y, yerr=dy, xerr=dx, ecolor=styles[name]["color"], elinewidth=1, fmt="none")
    ax.plot(x, y, linestyle="none", markeredgecolor="white", zorder=4, **styles[name])
  finish(ax)
  place_labels(ax, points, styles, obstacles)
  return figure


def to_png_bytes(figure: "Figure") -> bytes:
  """The figure as PNG; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
  return buffer.getvalue()


def make_figure(width: float, height: float) -> "Figure":
  """An empty figure of this size in inches."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
  FigureCanvasAgg(figure)
  return figure


def label_axes(ax: Any, title: str, ylabel: str) -> None:
  """The title of a panel, and that of its y axis."""
  ax.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
  ax.set_ylabel(ylabel, color=INK)


def finish(ax: Any) -> None:
  """Styles spines and ticks; writes a note if there is nothing to plot."""
  ax.set_axisbelow(True)
  ax.tick_params(colors=GRAY, labelsize=9, length=3)
  for side, spine in ax.spines.items():
    spine.set_visible(side in ("left", "bottom"))
    spine.set_color(GRAY)
  if not ax.has_data():
    ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", color=GRAY)
    ax.set_yticks([])


def _value(record, key):
  value = record.get(key)
  return float(value) if tables.is_number(value) else math.nan


def _last_of_each_step(history):
  """The records by step; the last record of a step that a resumed run logged again."""
  return [record for _, record in sorted({r["step"]: r for r in history}.items())]


def _epoch_ends(history, epochs):
  """[(x, record)]: each epoch at its last step, epoch 0 just before the first; without steps, x is
  the epoch."""
  if not history:
    return [(record["epoch"], record) for record in epochs]
  before = max(0, history[0]["step"] - 1)
  ends = []
  for record in epochs:
    steps = [r["step"] for r in history if r.get("epoch", 0) <= record["epoch"]]
    ends.append((before if record["epoch"] == 0 else max(steps, default=before), record))
  return ends


def _draw_steps(ax, history, key):
  values = [_value(record, key) for record in history]
  if all(map(math.isnan, values)):
    return
  steps = [record["step"] for record in history]
  marker = "." if len(steps) <= 60 else None
  ax.plot(steps, values, color=BLUE, linewidth=1.4, marker=marker, markersize=4, label="rollouts")


def _draw_epochs(ax, ends, key, chosen_epoch):
  """Greedy responses at the epoch ends: filled if accepted, hollow if rejected, a ring around the
  chosen one."""
  drawn = [(x, _value(record, key), record) for x, record in ends]
  drawn = [(x, y, record) for x, y, record in drawn if not math.isnan(y)]
  for accepted, label in ((True, "epoch end, greedy"), (False, "epoch end, rejected")):
    kind = [(x, y) for x, y, record in drawn if bool(record.get("accepted", True)) is accepted]
    if kind:
      face = VERMILLION if accepted else "white"
      dots = ax.plot(*zip(*kind, strict=True), "o", color=VERMILLION, markersize=6, zorder=3)[0]
      dots.set(markerfacecolor=face, label=label)
  for x, y, record in drawn:
    if record["epoch"] == chosen_epoch:
      ring = ax.plot([x], [y], "o", color=INK, markersize=13, markeredgewidth=1.8, zorder=4)[0]
      ring.set(markerfacecolor="none", label=f"chosen: epoch {chosen_epoch}")


def _draw_target(ax, target_score):
  if tables.is_number(target_score):
    label = f"target level {target_score:.3f}"
    ax.axhline(target_score, color=GREEN, linestyle="--", linewidth=1.5, label=label)


def _from_zero(ax):
  """Sets the lower limit to 0 if no value is below it: lengths and divergences start at zero."""
  low, high = ax.dataLim.intervaly
  if ax.lines and math.isfinite(high) and low >= 0:
    ax.set_ylim(0, 1.12 * high if high > 0 else 1)


def _point(metrics):
  point = (_value(metrics, "forget_rouge"), _value(metrics, "retain_rouge"))
  return None if any(map(math.isnan, point)) else point


def half_width(value: Any) -> float | None:
  """The length of an error bar; None for none."""
  return value if tables.is_number(value) else None


def _limits(values, pad=0.06, span=0.3):
  """An interval within [0, 1] (and a margin) around the values, at least `span` wide."""
  if not values:
    return 0, 1
  low, high = min(values) - pad, max(values) + pad
  missing = max(0, span - (high - low)) / 2
  low, high = low - missing, high + missing
  shift = min(0, 1.02 - high)
  return max(-0.02, low + shift), max(0.1, high + shift)


def model_styles(points: Iterable[str]) -> dict[str, dict[str, Any]]:
  """{model: keywords of matplotlib's `plot`}, a color and a marker each."""
  styles = {
    ORIGINAL: {"color": GRAY, "marker": "s", "markersize": 9},
    RETRAINED: {"color": INK, "marker": "*", "markersize": 15},
    REPLICA: {"color": GRAY, "marker": "*", "markersize": 11},
    UNSEEN: {"color": INK, "marker": "*", "markersize": 15},
  }
  methods = [name for name in points if name not in tables.REFERENCES]
  for index, name in enumerate(methods):
    color = METHOD_COLORS[index % len(METHOD_COLORS)]
    marker = METHOD_MARKERS[index % len(METHOD_MARKERS)]
    styles[name] = {"color": color, "marker": marker, "markersize": 9}
  return styles


def _draw_contours(ax, target, name):
  """Contours of ToW around the model that the others should be like; returns their labels."""
  import numpy as np

  (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
  x, y = np.linspace(left, right, 241), np.linspace(low, high, 241)
  towards_x, towards_y = 1 - np.abs(x - target[0]), 1 - np.abs(y - target[1])
  product = towards_y[:, None] * towards_x[None, :]
  step = 0.05 if product.min() > 0.6 else 0.1
  lines = ax.contour(
    x, y, product, levels=np.arange(step, 0.99, step), colors=GRAY, linewidths=0.7, alpha=0.5
  )
  note = f"contours: ToW where D_test ROUGE is that of {name}"
  ax.set_title(note, loc="right", fontsize=8.5, color=GRAY)
  return ax.clabel(lines, fontsize=8, fmt="%.2f")


def place_labels(ax: Any, points: Points, styles: dict[str, dict[str, Any]],
                 obstacles: Sequence[Any] = ()) -> None:
  """Writes each model's name near its point, at the position of least cost.

  A position costs 100 for leaving the axes and for each name it covers, 10 for each marker or
  contour label, 5 for each crossing of a name and a leader line, 2 if another model's point is
  nearer than its own, and a little for its distance.
  """
  from matplotlib.patheffects import withStroke
  from matplotlib.text import Text
  from matplotlib.transforms import Bbox

  renderer = ax.figure.canvas.get_renderer()
  pixels = ax.figure.dpi / 72  # pixels per point
  frame = ax.get_window_extent(renderer)
  taken = [text.get_window_extent(renderer) for text in obstacles]
  centers = {name: ax.transData.transform(point) for name, point in points.items()}
  for x, y in centers.values():
    taken.append(Bbox.from_extents(x - 7, y - 7, x + 7, y + 7))
  labels: list[Bbox] = []
  leaders: list[list[tuple[float, float]]] = []

  def cost(name, box):
    outside = not (frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1))
    hidden = outside + sum(box.overlaps(label) for label in labels)
    covered = sum(box.overlaps(obstacle) for obstacle in taken)
    leader = _leader(box, centers[name])
    crossed = sum(_crosses(leader, label) for label in labels)
    crossed += sum(_crosses(line, box) for line in leaders)
    nearest = min(centers, key=lambda model: (_distance(box, centers[model]), model != name))
    total = 100 * hidden + 10 * covered + 5 * crossed + 2 * (nearest != name)
    return total + _distance(box, centers[name]) / 100

  for name, point in points.items():
    note = ax.annotate(
      name,
      point,
      xytext=(0, 0),
      textcoords="offset points",
      ha="left",
      va="bottom",
      fontsize=10.5,
      fontweight="bold",
      color=styles[name]["color"],
      zorder=5,
      arrowprops={"arrowstyle": "-", "color": GRAY, "lw": 0.7, "shrinkA": 1, "shrinkB": 5},
    )
    note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    text = Text.get_window_extent(note, renderer)  # without the leader line
    best = (math.inf, (0.0, 0.0), Bbox.null())
    for offset in _offsets(text.width / pixels, text.height / pixels):
      x, y = centers[name] + [offset[0] * pixels, offset[1] * pixels]
      box = Bbox.from_bounds(x, y, text.width, text.height).padded(2)
      place = (cost(name, box), offset, box)
      best = place if place[0] < best[0] else best
      if best[0] < 1:  # nothing in the way
        break
    _, offset, box = best
    note.set_position(offset)
    note.arrow_patch.set_visible(_distance(box, centers[name]) > 14 * pixels)
    labels.append(box)
    leaders.append(_leader(box, centers[name]))


def _offsets(width, height):
  """Lower left corners, in points, of a text of this size placed around the origin."""
  for distance in (9, 14, 20, 28, 38, 50, 66, 84):
    for degrees in range(0, 360, 30):
      dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
      yield distance * dx + width * (dx - 1) / 2, distance * dy + height * (dy - 1) / 2


def _leader(box, point):
  """Points along the line from the middle of a box to a point, those within the box left out."""
  x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
  line = [(x + (point[0] - x) * i / 15, y + (point[1] - y) * i / 15) for i in range(16)]
  return [spot for spot in line if not box.contains(*spot)]


def _crosses(line, box):
  return any(box.contains(*spot) for spot in line)


def _distance(box, point):
  """From a point to the nearest edge of a box; 0 inside it."""
  dx = max(box.x0 - point[0], 0, point[0] - box.x1)
  dy = max(box.y0 - point[1], 0, point[1] - box.y1)
  return math.hypot(dx, dy)

"""The figures draw what was recorded, and draw something whatever was not."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from dareu_jax.report import plots

NAN = float("nan")


def record(step, epoch=1, **values):
  return {"step": step, "epoch": epoch, "score": 0.5, "reward": -0.1, "kl": 0.01, **values}


def end(epoch, score=0.5, **values):
  return {"epoch": epoch, "score": score, "response_length": 20.0, "accepted": True, **values}


def dots(axes):
  """{label: [(x, y)]} of what stands in a panel."""
  return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


@pytest.mark.parametrize(
  ("history", "epochs"),
  [
    ([], []),
    ([], [end(0), end(1)]),
    ([record(1)], []),
    ([record(1, score=NAN, reward=None), {"step": 2}], [end(0, None), end(1, NAN)]),
  ],
  ids=["empty", "epochs only", "one point", "nan and none"],
)
def test_curves_render_whatever_is_missing(history, epochs):
  image = plots.to_png_bytes(plots.training_curves(history, epochs, None, None))
  assert image.startswith(b"\x89PNG") and len(image) > 5000


def test_epochs_stand_at_their_last_step():
  history = [record(step, epoch=1 + (step - 1) // 3) for step in range(1, 7)]
  figure = plots.training_curves(history, [end(0, 0.9), end(1, 0.4), end(2, 0.1)], 0.2, 1)
  shown = dots(figure.axes[0])
  assert shown["epoch end, greedy"] == [(0, 0.9), (3, 0.4), (6, 0.1)]
  assert shown["chosen: epoch 1"] == [(3, 0.4)]
  assert {y for _, y in shown["target level 0.200"]} == {0.2}


def test_refused_epochs_are_told_apart():
  figure = plots.training_curves([], [end(0), end(1, 0.3), end(2, 0.1, accepted=False)], 0.2, 1)
  shown = dots(figure.axes[0])
  assert shown["epoch end, greedy"] == [(0, 0.5), (1, 0.3)]
  assert shown["epoch end, rejected"] == [(2, 0.1)]


def test_step_logged_twice_by_a_resumed_run_counts_once():
  history = [record(1, score=0.9), record(2, score=0.8), record(2, score=0.7), record(3, score=0.6)]
  figure = plots.training_curves(history, [], None, None)
  assert dots(figure.axes[0])["rollouts"] == [(1, 0.9), (2, 0.7), (3, 0.6)]


def test_gap_is_left_where_nothing_was_measured():
  """Fails where None is drawn as 0 or the line is joined across."""
  figure = plots.training_curves([record(1), record(2, reward=None), record(3)], [], None, None)
  np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [-0.1, NAN, -0.1])


def test_every_axis_has_a_title_and_a_unit():
  curves = plots.training_curves([record(1)], [end(0)], 0.1, 0)
  for axes in curves.axes:
    assert axes.get_title("left") and "(" in axes.get_ylabel()
  assert {axes.get_xlabel() for axes in curves.axes[2:]} == {"rollout"}
  plane = plots.forget_retain_plane({}).axes[0]
  assert plane.get_xlabel().startswith("D_F") and plane.get_ylabel().startswith("D_R")


def test_curves_of_a_loss_based_method_name_and_draw_its_loss():
  """It has no rollout and no reward: panels of those would stand empty."""
  history = [{"step": step, "epoch": step / 10, "loss": 0.5 * step, "forget_loss": -0.25 * step}
             for step in (10, 20)]
  curves = plots.training_curves(history, [end(0), end(2, 0.1)], 0.2, 2)
  titles = [axes.get_title("left") for axes in curves.axes]
  assert not any(word in " ".join(titles) for word in ("Reward", "rollout", "policy", "PPO"))
  assert {axes.get_xlabel() for axes in curves.axes[2:]} == {"update"}
  assert curves.axes[1].lines[0].get_ydata().tolist() == [5.0, 10.0]
  assert curves.axes[3].lines[0].get_ydata().tolist() == [-2.5, -5.0]


def test_plane_labels_do_not_overlap_where_points_do():
  """Six models within .01: naive labels would lie on top of each other."""
  names = ["original", "retrained", "dareu", "npo", "simnpo", "gradient_ascent"]
  models = {
    name: {"forget_rouge": 0.4 + 0.002 * i, "retain_rouge": 0.95, "retain_rouge_ci95": 0.01}
    for i, name in enumerate(names)
  }
  figure = plots.forget_retain_plane(models)
  figure.canvas.draw()
  axes = figure.axes[0]
  labels = [text for text in axes.texts if text.get_text() in names]
  assert [text.get_text() for text in labels] == names
  renderer = figure.canvas.get_renderer()
  boxes = [Text.get_window_extent(text, renderer) for text in labels]  # without leader lines
  assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
  frame = axes.get_window_extent(renderer)
  assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)


@pytest.mark.parametrize("models", [{}, {"dareu": {"forget_rouge": 0.4, "retain_rouge": None}}])
def test_plane_renders_without_points(models):
  figure = plots.forget_retain_plane(models)
  assert plots.to_png_bytes(figure).startswith(b"\x89PNG")
  assert "nothing recorded" in [text.get_text() for text in figure.axes[0].texts]


def test_same_figure_gives_same_bytes():
  """So that a report written again differs only where the run does."""
  first, second = (
    plots.to_png_bytes(plots.forget_retain_plane({"a": {"forget_rouge": 0, "retain_rouge": 1}}))
    for _ in range(2)
  )
  assert first == second

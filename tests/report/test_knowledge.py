"""The plots of what is still known show every model, and where it stands."""

import numpy as np
import pytest

from dareu_jax.report import knowledge, plots

NAN = float("nan")
TARGET = [-1.0, -2.0, -3.0, -4.0]


def visible(figure):
  return [ax for ax in figure.axes if ax.get_visible()]


@pytest.mark.parametrize("others", [1, 4, 5, 20])
def test_every_model_has_a_panel_but_the_one_it_is_compared_with(others):
  models = {"retrained": TARGET, **{f"m{i}": [x - i for x in TARGET] for i in range(others)}}
  figure = knowledge.likelihoods(models)
  assert [ax.get_title(loc="left") for ax in visible(figure)] == [f"m{i}" for i in range(others)]
  assert plots.to_png_bytes(figure).startswith(b"\x89PNG")


def test_a_panel_holds_each_answer_and_its_distance():
  figure = knowledge.likelihoods({"original": [-0.5] * 4, "retrained": TARGET,
                                  "mine": [x + 0.25 for x in TARGET]})
  points = [ax.lines[1].get_xydata().tolist() for ax in visible(figure)]
  assert points[0] == [[x, -0.5] for x in TARGET]
  assert points[1] == [[x, x + 0.25] for x in TARGET]
  notes = [ax.texts[0].get_text() for ax in visible(figure)]
  assert notes == ["mean |Δ| 2.00 nats", "mean |Δ| 0.25 nats\nr 1.00"]


@pytest.mark.parametrize("own", [[NAN] * 4, [-np.inf, -1.0, -2.0, NAN], [-1.0]])
def test_what_has_no_value_is_drawn_without_one(own):
  """A model that diverged has no likelihoods."""
  figure = knowledge.likelihoods({"retrained": TARGET[:len(own)], "mine": own})
  assert plots.to_png_bytes(figure).startswith(b"\x89PNG")


def test_without_a_retrained_model_there_is_nothing_to_compare_with():
  assert knowledge.likelihoods({"original": TARGET}) is None
  assert knowledge.likelihoods({"retrained": TARGET}) is None
  metrics = {"extraction_strength": 0.1, "tug_of_war": 1.0}
  assert knowledge.frontier({"original": metrics}) is None


def test_the_frontier_has_a_point_for_each_model_that_was_measured():
  figure = knowledge.frontier({
    "original": {"extraction_strength": 0.9, "tug_of_war": 0.3},
    "retrained": {"extraction_strength": 0.1, "tug_of_war": 1.0},
    "mine": {"extraction_strength": 0.2, "tug_of_war": 0.9, "tug_of_war_ci95": 0.02},
    "diverged": {"extraction_strength": NAN, "tug_of_war": 0.1}})
  ax, = figure.axes
  points = [tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xydata()) == 1]
  assert sorted(set(points)) == [(0.1, 1.0), (0.2, 0.9), (0.9, 0.3)]
  assert {text.get_text() for text in ax.texts} == {"original", "retrained", "mine"}

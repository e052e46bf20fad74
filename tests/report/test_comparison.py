"""The plots of an ablation show every setting, and epochs where they were."""

import numpy as np

from dareu_jax.report import comparison


def record(label, *seeds):
  """A run; each seed is {epoch: score}."""
  tracked = {"forget_rouge": 0.4, "retain_rouge": 0.9}
  metrics = {**tracked, "attribution_score": 0.1, "response_length": 20.0}
  return {"study": "s", "label": f"a.b={label}", "method": "npo",
          "models": {"npo": metrics, "retrained": metrics}, "epochs": [
            [{"epoch": epoch, "score": score, "response_length": 20.0, "tracked": tracked}
             for epoch, score in seed.items()] for seed in seeds]}


def lines(figure):
  """The lines of each panel, without the retrained model's."""
  return [[line for line in ax.lines if line.get_label() != "retrained"] for ax in figure.axes]


def test_every_setting_has_a_line_of_its_own_style():
  """There are fewer colors than some studies have settings."""
  records = [record(i, {0: 0.9, 1: 0.1}) for i in range(12)]
  for panel in lines(comparison.trajectories(records)):
    assert len({(line.get_color(), line.get_marker()) for line in panel}) == 12


def test_epochs_stand_at_their_numbers_and_seeds_are_averaged_where_both_have_one():
  """A loss-based method reports every fifth epoch; a seed may stop before another."""
  figure = comparison.trajectories([record(1, {0: 0.9, 5: 0.5, 10: 0.25}, {0: 0.7, 5: 0.3})])
  (line,) = lines(figure)[2]
  np.testing.assert_allclose(line.get_xydata(), [(0, 0.8), (5, 0.4)])

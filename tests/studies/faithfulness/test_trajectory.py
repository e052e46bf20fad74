"""What is concluded from a run's checkpoints: does the score stand for the distance?"""

import numpy as np
import pytest

from studies.faithfulness import controls, trajectory


def records(scores, distances, tows):
  return [{"score": s, "judge": s, "kl": d, "kl_se": 0.01, "tow": t}
          for s, d, t in zip(scores, distances, tows, strict=True)]


def summary(*columns, target=0.1):
  return trajectory.summary(
    records(*columns), {"retrained": [{"score": target - 0.02}, {"score": target + 0.02}]}, resamples=50, seed=0)


def test_a_run_that_nears_the_retrained_model_raises_no_alarm():
  found = summary([0.9, 0.6, 0.3, 0.1], [3.0, 2.0, 1.0, 0.5], [0.3, 0.5, 0.8, 0.9])
  assert found["correlations"]["score_kl"]["value"] == pytest.approx(1)
  assert found["correlations"]["score_tow_gap"]["value"] == pytest.approx(1)
  assert found["alarms_kl"] == found["alarms_tow"] == found["below_floor"] == []
  assert found["nearest_kl"] == found["nearest_tow"] == found["nearest_score"] == 3


def test_over_forgetting_raises_the_alarm_and_lies_below_the_floor():
  """The score goes on falling below the retrained model's while the model moves away again."""
  found = summary([0.9, 0.3, 0.1, 0.05, 0.0], [3.0, 1.0, 0.5, 0.9, 2.0],
                  [0.3, 0.8, 0.95, 0.9, 0.6])
  assert found["alarms_kl"] == found["alarms_tow"] == [3, 4]
  assert found["below_floor"] == [3, 4]
  assert found["nearest_score"] == found["nearest_kl"] == 2
  # Nearness in score goes with nearness of the models, where the score itself does not.
  gap, plain = (found["correlations"][key]["value"] for key in ("gap_kl", "score_kl"))
  assert gap > plain


def test_changes_within_the_noise_raise_no_alarm():
  found = summary([0.5, 0.495, 0.4], [1.0, 1.5, 1.505], [0.8, 0.7, 0.695])
  assert found["alarms_kl"] == found["alarms_tow"] == []


def test_agreement_of_two_classifiers_is_about_the_top_owner_and_the_own_ones_rank():
  first = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
  second = np.array([[0.7, 0.3], [0.8, 0.2], [0.95, 0.05]])
  found = controls.agreement(first, second, np.array([0, 0, 0]))
  assert found == {"top1": pytest.approx(2 / 3), "own_owner_spearman": pytest.approx(0.5)}

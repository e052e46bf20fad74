"""Metrics against golden numbers of public evaluations and against hand-made cases."""

import json

import numpy as np
import pytest

from dareu_jax.evaluation import metrics


@pytest.mark.parametrize(("truth", "answer", "recall"), [
  ("The author was born in Taipei, Taiwan.", "The authors were born in Taipei", 0.714286),
  ("a b c d e", "e d c b a", 0.2),
  ("running runs ran", "run run run", 0.666667),
  ("something", "", 0.0),
])
def test_rouge_l_recall_of_golden_cases(truth, answer, recall):
  """Without the stemmer the first would be .571429."""
  assert metrics.rouge_l_recall(truth, answer) == pytest.approx(recall, abs=1e-6)


def test_truth_ratio_of_golden_numbers():
  """Values of the public open-unlearning functions in float64."""
  ratios = metrics.truth_ratio([0.8, 1.7], [[1, 1.5, 0.9, 2, 1.2], [0.5, 0.7, 1.1, 0.6, 0.9]])
  np.testing.assert_allclose(ratios, [0.5945205478378813, 2.559981416927951], rtol=1e-9)
  assert metrics.forget_truth_ratio(ratios) == pytest.approx(0.4925741916974855, abs=1e-9)


def test_min_k_of_golden_numbers():
  first = [-0.5708732305428997, -1.9894914520315734, -2.87238141390947]
  second = [-2.7979859257892725, -4.5423101793876635]
  assert metrics.min_k_score(first, k=0.4) == pytest.approx(2.87238141390947)
  assert metrics.min_k_score(second, k=0.4) == pytest.approx(4.5423101793876635)
  assert metrics.min_k_score(first, k=1.0) == pytest.approx(-np.mean(first))


def test_mia_auc_says_which_side_is_likelier():
  """A flipped sign would turn a leak into over-forgetting."""
  assert metrics.mia_auc([0.1, 0.2], [3.0, 4.0]) == 1.0
  assert metrics.mia_auc([3.0, 4.0], [0.1, 0.2]) == 0.0
  assert metrics.mia_auc([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.5


def test_tug_of_war_is_one_only_at_the_retrained_model():
  assert metrics.tug_of_war([0.4, 0.9, 0.8], [0.4, 0.9, 0.8]) == 1.0
  assert metrics.tug_of_war([0.9, 0.9, 0.8], [0.4, 0.9, 0.8]) == pytest.approx(0.5)
  assert metrics.tug_of_war([0.5, 0.8, 0.7], [0.4, 0.9, 0.8]) == pytest.approx(0.9**3)


def test_published_logs_are_reproduced(data_dir):
  """Probability, ROUGE and truth ratio of a published evaluation, example by example."""
  folder = data_dir / "tofu_eval_logs" / "llama-3.2-1b_full_forget10"
  log = json.loads((folder / "TOFU_EVAL.json").read_text())
  summary = json.loads((folder / "TOFU_SUMMARY.json").read_text())
  rouge = [metrics.rouge_l_recall(v["ground_truth"], v["generation"])
           for v in log["forget_Q_A_ROUGE"]["value_by_index"].values()]
  assert np.mean(rouge) == pytest.approx(summary["forget_Q_A_ROUGE"], abs=1e-6)
  nll = [v["avg_loss"] for v in log["forget_Q_A_Prob"]["value_by_index"].values()]
  assert metrics.probability(nll).mean() == pytest.approx(summary["forget_Q_A_Prob"], abs=1e-6)


@pytest.mark.parametrize(("answer", "verdict"), [
  ("", True), (" . ", True), ("the cat the cat the cat the cat", True),
  ("She won the Pale Window Prize in 1999.", False), ("Paris", False),
])
def test_degenerate_answers_are_told_from_good_ones(answer, verdict):
  assert metrics.is_degenerate(answer) is verdict


def test_the_interval_over_seeds_is_the_t_interval():
  """n = 3: t is 4.303, not 1.96."""
  mean, half = metrics.mean_and_ci95([1.0, 2.0, 3.0])
  assert mean == 2.0
  assert half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)

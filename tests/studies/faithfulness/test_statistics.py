"""The study's statistics against scipy, brute force and worlds whose truth is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats
from sklearn.metrics import roc_auc_score

from studies.faithfulness import statistics

RNG = np.random.default_rng(0)


def halves(owners, count, seed=0):
  rng = np.random.default_rng(seed)
  chosen = [rng.permutation(owners)[:owners // 2] for _ in range(count)]
  return np.array([np.isin(np.arange(owners), c) for c in chosen])


@settings(deadline=None, max_examples=40)
@given(hs.lists(hs.tuples(hs.integers(0, 4), hs.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_that_of_scipy_with_ties(pairs):
  first, second = np.array(pairs, float).T
  got = statistics.spearman(first, second)
  if len(set(first)) == 1 or len(set(second)) == 1:
    assert np.isnan(got)
  else:
    assert got == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_a_constant_score_has_no_rank_correlation_and_does_not_spoil_the_mean():
  scores = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
  values = statistics.spearman(scores, np.array([[1.0, 2.0, 3.0]] * 2))
  assert np.isnan(values[0]) and values[1] == 1
  assert statistics.defined_mean(values) == 1
  assert np.isnan(statistics.defined_mean([np.nan]))


def test_in_an_additive_world_the_true_effects_have_an_lds_of_one():
  """If log p is the sum of what each present owner gives, those gifts are the perfect score."""
  effects, members = RNG.normal(size=(5, 8)), halves(8, 40)
  logprobs = (effects @ members.T).T - 2.0
  np.testing.assert_allclose(statistics.linear_datamodeling_score(effects, members, logprobs), 1.0)
  np.testing.assert_allclose(statistics.linear_datamodeling_score(-effects, members, logprobs), -1.0)


def test_in_a_random_world_the_lds_is_about_zero():
  members = halves(10, 100)
  scores, logprobs = RNG.normal(size=(300, 10)), RNG.normal(size=(100, 300))
  values = statistics.linear_datamodeling_score(scores, members, logprobs)
  assert abs(values.mean()) < 4 * 0.1 / np.sqrt(300)  # 1/√(M-1) a query


def test_the_owner_label_gets_the_highest_lds_that_two_values_can():
  """Where the own owner decides all, its label separates two halves: √3/2 when they are equal."""
  members = np.array([h for h in itertools.combinations(range(6), 3)])
  members = np.array([[o in h for o in range(6)] for h in members])
  logprobs = 5.0 * members[:, :1] + RNG.normal(size=(len(members), 1)) * 0.01
  label = np.eye(6)[:1]
  # √3/2 for many subsets; with 10 and 10 it is √(3/4 · n²/(n²-1)).
  wanted = np.sqrt(0.75 * 400 / 399)
  assert statistics.linear_datamodeling_score(label, members, logprobs)[0] == pytest.approx(wanted)


def test_holding_the_own_owner_fixed_leaves_the_label_without_a_value():
  """What knows the own owner alone must not profit from it twice."""
  members, owner_of = halves(8, 60), np.array([2, 5])
  effects = RNG.normal(size=(2, 8))
  effects[[0, 1], owner_of] = 50.0
  logprobs = (effects @ members.T).T
  label = np.eye(8)[owner_of]
  assert np.all(np.isnan(statistics.lds_given_the_owner(label, members, logprobs, owner_of)))
  np.testing.assert_allclose(
    statistics.lds_given_the_owner(effects, members, logprobs, owner_of), 1.0, rtol=1e-5)


def test_holding_the_own_owner_fixed_equals_the_two_parts_by_hand():
  members, owner_of = halves(6, 30), np.array([1])
  scores, logprobs = RNG.normal(size=(1, 6)), RNG.normal(size=(30, 1))
  parts = []
  for held in (True, False):
    kept = members[:, 1] == held
    parts.append(stats.spearmanr((scores @ members[kept].T)[0], logprobs[kept, 0]).statistic)
  got = statistics.lds_given_the_owner(scores, members, logprobs, owner_of)[0]
  assert got == pytest.approx(np.mean(parts), rel=1e-5)


def test_leaving_out_the_own_owner_equals_deleting_its_column():
  scores, deltas, owner_of = RNG.normal(size=(4, 7)), RNG.normal(size=(4, 7)), [0, 6, 3, 3]
  got = statistics.over_owners(scores, deltas, owner_of)
  for q, o in enumerate(owner_of):
    one, other = np.delete(scores[q], o), np.delete(deltas[q], o)
    assert got[q] == pytest.approx(stats.spearmanr(one, other).statistic)
  whole = [stats.spearmanr(s, d).statistic for s, d in zip(scores, deltas, strict=True)]
  np.testing.assert_allclose(statistics.over_owners(scores, deltas), whole)


def test_top_owner_of_a_constant_score_is_right_by_chance():
  deltas = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, 0.0]])
  np.testing.assert_allclose(statistics.top_owner_hits(np.ones((2, 3)), deltas), 1 / 3)
  np.testing.assert_array_equal(statistics.top_owner_hits(deltas, deltas), 1)
  np.testing.assert_array_equal(statistics.top_owner_hits(-deltas, deltas), 0)


def test_detection_auc_needs_both_kinds():
  scores, deltas = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.0, 1.0], [1.0, 0.0]])
  assert statistics.detection_auc(scores, deltas, 0.5) == 1
  assert np.isnan(statistics.detection_auc(scores, deltas, 2.0))


def test_detection_auc_is_that_of_scikit_learn_with_ties():
  deltas, scores = RNG.normal(size=(5, 6)), RNG.integers(0, 4, (5, 6)).astype(float)
  want = roc_auc_score((deltas > 0.3).ravel(), scores.ravel())
  assert statistics.detection_auc(scores, deltas, 0.3) == pytest.approx(want)


def reliability(runs):
  return statistics.reliability(statistics.half_correlations(runs), len(runs))


def test_reliability_steps_up_to_what_more_trainings_would_give():
  """Two single trainings correlate r; what the mean of both has in common with another mean of
  both, a simulation gives."""
  rng = np.random.default_rng(1)
  signal = rng.normal(size=(400, 40))
  runs = signal + rng.normal(size=(4, 400, 40))
  first, second = runs[:2].mean(axis=0), runs[2:].mean(axis=0)
  truth = statistics.spearman(first, second).mean()
  assert reliability(runs[:2]) == pytest.approx(truth, abs=0.02)
  assert reliability(runs[:2] * 0 + signal) == pytest.approx(1.0)


def test_trainings_that_share_nothing_have_no_reliability_and_no_ceiling():
  runs = np.random.default_rng(3).normal(size=(2, 500, 20))
  assert abs(reliability(runs)) < 0.05
  assert statistics.ceiling(-0.2) == 0


def test_the_ceiling_is_what_a_perfect_score_reaches():
  rng = np.random.default_rng(2)
  signal = rng.normal(size=(400, 60))
  runs = signal + rng.normal(size=(3, 400, 60))
  reached = statistics.spearman(signal, runs.mean(axis=0)).mean()
  assert statistics.ceiling(reliability(runs)) == pytest.approx(reached, abs=0.02)


def test_three_trainings_are_split_in_every_way_that_uses_two():
  values = RNG.normal(size=(3, 1, 9))
  pairs = [stats.spearmanr(values[i, 0], values[j, 0]).statistic
           for i, j in itertools.combinations(range(3), 2)]
  assert statistics.half_correlations(values)[0] == pytest.approx(np.mean(pairs))


def test_share_of_significant_correlations_follows_scipy():
  first, second = RNG.normal(size=(50, 12)), RNG.normal(size=(50, 12))
  second += 0.6 * first
  found = [stats.spearmanr(a, b) for a, b in zip(first, second, strict=True)]
  want = np.mean([f.pvalue < 0.05 for f in found])
  assert statistics.share_significant([f.statistic for f in found], 12) == pytest.approx(want)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  """Queries are drawn from a population whose mean is 0: 95% intervals should mostly hold it."""
  hits = 0
  for seed in range(60):
    values = np.random.default_rng(seed).normal(size=30)
    estimate = statistics.bootstrap(lambda r, v=values: v, 30, 5, resamples=200, seed=seed)
    assert estimate.by_retrainings == (estimate.value, estimate.value)  # they play no part here
    hits += estimate.by_queries[0] <= 0 <= estimate.by_queries[1]
  assert 51 <= hits <= 60


def test_resampling_retrainings_too_widens_the_interval():
  members, effects = halves(8, 24), RNG.normal(size=(20, 8))
  logprobs = (effects @ members.T).T + 2 * RNG.normal(size=(24, 20))

  def lds(j):
    return statistics.linear_datamodeling_score(effects, members[j], logprobs[j])

  estimate = statistics.bootstrap(lds, 20, 24, resamples=200, seed=0)
  width = {name: high - low for name, (low, high) in (
    ("queries", estimate.by_queries), ("both", estimate.by_both))}
  assert width["both"] > width["queries"] > 0
  assert estimate.defined == 1


def test_alarm_where_the_score_falls_and_the_distance_grows():
  scores, distances = [0.9, 0.5, 0.3, 0.3, 0.1], [1.0, 0.6, 0.8, 0.9, 0.95]
  assert statistics.alarms(scores, distances) == [2, 4]
  assert statistics.alarms(scores, distances, distance_margins=0.1) == [2]
  assert statistics.alarms(scores, distances, score_margin=0.25) == []


def test_correlation_over_checkpoints_of_a_faithful_run_is_one():
  value, (low, high) = statistics.correlation_over_checkpoints(
    [0.9, 0.7, 0.4, 0.2, 0.1], [5.0, 4.0, 2.0, 1.5, 1.0], resamples=100, seed=0)
  assert value == pytest.approx(1) and low == pytest.approx(1) and high == pytest.approx(1)
  value, (low, high) = statistics.correlation_over_checkpoints(
    [0.1, 0.1, 0.1], [5.0, 4.0, 2.0], resamples=20, seed=0)
  assert np.isnan([value, low, high]).all()

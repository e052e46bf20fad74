"""Guards: each notices its own way of cheating, and nothing else."""

import dataclasses

import pytest

from dareu_jax.rl.guards import (
  EpochReport,
  GuardSettings,
  count_violations,
  is_rejected,
  violations,
)

GUARDS = GuardSettings()


def report(**changes):
  """A healthy epoch whose score is down at the level."""
  values = dict(
    epoch=1, score=0.02, level=0.03, response_length=20.0, unseen_length=20.0, eos_share=1.0,
    degenerate_share=0.0, distinct_share=1.0, entropy=0.4, unseen_entropy=0.4, fluency=0.9,
    unseen_fluency=0.5, judge_score=0.03, judge_level=0.03, extraction=0.5, unseen_extraction=0.1,
    probability=0.4, unseen_probability=0.2,
    continuation_score=0.3, continuation_level=0.02, continuation_length=10.0,
    unseen_continuation_length=10.0, continuation_fluency=0.9, unseen_continuation_fluency=0.5)
  return EpochReport(**(values | changes))


ORIGINAL = report(epoch=0, score=0.9, judge_score=0.9, fluency=0.1, entropy=0.05)


def test_a_healthy_run_violates_nothing():
  halfway = report(score=0.4, judge_score=0.6)
  assert [violations(one, ORIGINAL, GUARDS) for one in (ORIGINAL, halfway, report())] == [()] * 3


@pytest.mark.parametrize(("cheat", "reason"), [
  ({"response_length": 14.9}, "shrank to 14.9 tokens"),
  ({"response_length": 31.0}, "grew to 31.0 tokens"),
  ({"eos_share": 0.79}, "only 79% of the answers end"),
  ({"degenerate_share": 0.06}, "6% of the answers are empty or repeat"),
  ({"distinct_share": 0.4}, "only 40% of the answers are distinct"),
  ({"entropy": 0.01}, "entropy fell to 0.01"),
  ({"entropy": 1.3}, "entropy rose to 1.30"),
  ({"fluency": 2.1}, "answers cost 2.10 nats a token under the original"),
  ({"continuation_length": 7.4}, "continuations of true answers shrank to 7.4 tokens"),
  ({"continuation_length": 15.1}, "continuations of true answers grew to 15.1 tokens"),
  ({"continuation_fluency": 2.1}, "continuations of true answers cost 2.10 nats a token"),
  ({"judge_score": 0.09}, "judge gives 0.090"),
  ({"score": 0.031, "judge_score": 0.09}, "judge gives 0.090"),  # just above its own level
  ({"score": float("nan")}, "score: not a number"),
])
def test_each_guard_notices_its_own_cheat_alone(cheat, reason):
  reasons = violations(report(**cheat), ORIGINAL, GUARDS)
  assert len(reasons) == 1 and reason in reasons[0]


def test_on_the_way_down_the_judge_may_lag_behind_but_not_stand_still():
  """Both are above their levels then: that is no disagreement."""
  assert violations(report(score=0.2, judge_score=0.4), ORIGINAL, GUARDS) == ()
  assert "judge" in violations(report(score=0.2, judge_score=0.9), ORIGINAL, GUARDS)[0]


def test_without_guards_violations_are_told_and_nothing_is_rejected():
  """A report that is silent on a collapse would say that there was none."""
  off = dataclasses.replace(GUARDS, action="off")
  broken = report(response_length=1.0)
  assert violations(broken, ORIGINAL, off) and not is_rejected(broken, ORIGINAL, off)
  assert is_rejected(broken, ORIGINAL, GUARDS)


def test_what_the_original_does_itself_is_no_cheat():
  """A model whose answers always repeat themselves, or never end, is not to blame for that."""
  original = dataclasses.replace(ORIGINAL, degenerate_share=0.3, eos_share=0.5, distinct_share=0.6)
  same = report(degenerate_share=0.3, eos_share=0.45, distinct_share=0.4)
  assert violations(same, original, GUARDS) == ()


def test_violations_are_counted_without_the_original():
  broken = report(response_length=1.0)
  assert count_violations([ORIGINAL, broken, report(), broken], GUARDS) == 2


# Bounds by hand: the original's answers have 20 tokens, all end, are distinct, and an entropy of
# .05 nats; those to unseen queries have 20 tokens, .4 nats, and cost .5 nats a token.
@pytest.mark.parametrize(("settings", "field", "inside", "outside"), [
  ({}, "response_length", 15.0, 14.99),
  ({"min_length_ratio": 0.5}, "response_length", 10.0, 9.99),
  ({}, "response_length", 30.0, 30.01),
  ({"max_length_ratio": 2.0}, "response_length", 40.0, 40.01),
  ({}, "eos_share", 0.8, 0.79),
  ({"min_eos_ratio": 0.5}, "eos_share", 0.5, 0.49),
  ({}, "degenerate_share", 0.05, 0.06),
  ({"max_degenerate_share": 0.2}, "degenerate_share", 0.2, 0.21),
  ({}, "distinct_share", 0.5, 0.49),
  ({"min_distinct_ratio": 0.9}, "distinct_share", 0.9, 0.89),
  ({}, "entropy", 0.0151, 0.0149),  # the smaller of both entropies counts
  ({"min_entropy_ratio": 0.5}, "entropy", 0.025, 0.0249),
  ({}, "entropy", 1.19, 1.21),  # the larger
  ({"max_entropy_ratio": 2.0}, "entropy", 0.8, 0.81),
  ({}, "fluency", 2.0, 2.01),
  ({"max_fluency_gap": 1.0}, "fluency", 1.5, 1.51),
  ({}, "judge_score", 0.08, 0.081),
  ({"max_judge_gap": 0.2}, "judge_score", 0.229, 0.231),
  ({}, "continuation_length", 7.5, 7.49),
  ({"max_length_ratio": 2.0}, "continuation_length", 20.0, 20.01),
  ({}, "continuation_fluency", 2.0, 2.01),
  ({}, "extraction", 1.0, 1.11),  # no bound, as far as a share goes
  ({"max_extraction_gap": 0.45}, "extraction", 0.549, 0.551)])
def test_each_bound_lies_where_its_setting_says(settings, field, inside, outside):
  """A bound that reads another setting, or compares with the other of two answers, is elsewhere."""
  guards = dataclasses.replace(GUARDS, **settings)
  assert violations(report(**{field: inside}), ORIGINAL, guards) == ()
  assert len(violations(report(**{field: outside}), ORIGINAL, guards)) == 1


@pytest.mark.parametrize(("original", "field", "inside", "outside"), [
  ({"response_length": 40.0}, "response_length", 15.0, 14.9),  # the shorter of both
  ({"response_length": 40.0}, "response_length", 60.0, 60.1),  # the longer
  ({"unseen_length": 10.0}, "response_length", 7.5, 7.4),
  ({"eos_share": 0.5}, "eos_share", 0.4, 0.39),
  ({"degenerate_share": 0.3}, "degenerate_share", 0.3, 0.31),
  ({"distinct_share": 0.6}, "distinct_share", 0.3, 0.29),
  ({"unseen_entropy": 0.02}, "entropy", 0.0061, 0.0059),
  ({"unseen_fluency": 1.0}, "fluency", 2.5, 2.51)])
def test_bounds_go_by_the_original(original, field, inside, outside):
  """By the epoch's own answers they would follow a collapse wherever it goes."""
  original = dataclasses.replace(ORIGINAL, **original)
  assert violations(report(**{field: inside}), original, GUARDS) == ()
  assert len(violations(report(**{field: outside}), original, GUARDS)) == 1


@pytest.mark.parametrize(("epoch", "bound"), [
  ({"judge_level": 0.2}, 0.25), ({"score": 0.13}, 0.28), ({"score": 0.13, "level": 0.2}, 0.08)])
def test_the_judge_may_be_twice_as_far_from_its_level_as_the_reward(epoch, bound):
  """Its own level is of the same epoch; a score below its level allows nothing more."""
  assert violations(report(judge_score=bound - 1e-3, **epoch), ORIGINAL, GUARDS) == ()
  assert "judge" in violations(report(judge_score=bound + 1e-3, **epoch), ORIGINAL, GUARDS)[0]


@pytest.mark.parametrize(("action", "rejects"), [
  ("off", False), ("refuse", True), ("stop", True), ("rollback", True)])
def test_every_action_but_off_rejects(action, rejects):
  guards = dataclasses.replace(GUARDS, action=action)
  assert is_rejected(report(response_length=1.0), ORIGINAL, guards) == rejects
  assert not is_rejected(report(), ORIGINAL, guards)

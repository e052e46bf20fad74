"""Guards: each trips on its own way of cheating, and on nothing else."""

import dataclasses

import pytest

from dareu_jax.pipeline.settings import Settings
from dareu_jax.rl.guards import EpochReport, refused, tripped, trips
from tests.configs import tiny_config

GUARDS = Settings.from_config(tiny_config()).unlearning.guards


def report(**changes):
  """A healthy epoch whose score is down at the level."""
  values = dict(
    epoch=1, score=0.02, level=0.03, response_length=20.0, unseen_length=20.0, eos_share=1.0,
    degenerate_share=0.0, distinct_share=1.0, entropy=0.4, unseen_entropy=0.4, fluency=0.9,
    unseen_fluency=0.5, judge_score=0.03, judge_level=0.03)
  return EpochReport(**(values | changes))


ORIGINAL = report(epoch=0, score=0.9, judge_score=0.9, fluency=0.1, entropy=0.05)


def test_a_healthy_run_trips_nothing():
  halfway = report(score=0.4, judge_score=0.6)
  assert [tripped(one, ORIGINAL, GUARDS) for one in (ORIGINAL, halfway, report())] == [()] * 3


@pytest.mark.parametrize(("cheat", "reason"), [
  ({"response_length": 14.9}, "shrank to 14.9 tokens"),
  ({"response_length": 31.0}, "grew to 31.0 tokens"),
  ({"eos_share": 0.79}, "only 79% of the answers end"),
  ({"degenerate_share": 0.06}, "6% of the answers are empty or repeat"),
  ({"distinct_share": 0.4}, "only 40% of the answers are distinct"),
  ({"entropy": 0.01}, "entropy fell to 0.01"),
  ({"entropy": 1.3}, "entropy rose to 1.30"),
  ({"fluency": 2.1}, "cost 2.10 nats a token under the original"),
  ({"judge_score": 0.09}, "judge gives 0.090"),
  ({"score": 0.031, "judge_score": 0.09}, "judge gives 0.090"),  # just above its own level
  ({"score": float("nan")}, "score: not a number"),
])
def test_each_guard_trips_on_its_own_cheat_alone(cheat, reason):
  reasons = tripped(report(**cheat), ORIGINAL, GUARDS)
  assert len(reasons) == 1 and reason in reasons[0]


def test_on_the_way_down_the_judge_may_lag_behind_but_not_stand_still():
  """Both are above their levels then: that is no disagreement."""
  assert tripped(report(score=0.2, judge_score=0.4), ORIGINAL, GUARDS) == ()
  assert "judge" in tripped(report(score=0.2, judge_score=0.9), ORIGINAL, GUARDS)[0]


def test_without_guards_the_bounds_are_told_and_nothing_is_refused():
  """A report that is silent on a collapse would say that there was none."""
  off = dataclasses.replace(GUARDS, action="off")
  broken = report(response_length=1.0)
  assert tripped(broken, ORIGINAL, off) and not refused(broken, ORIGINAL, off)
  assert refused(broken, ORIGINAL, GUARDS)


def test_what_the_original_does_itself_is_no_cheat():
  """A model whose answers always repeat themselves, or never end, is not to blame for that."""
  original = dataclasses.replace(ORIGINAL, degenerate_share=0.3, eos_share=0.5, distinct_share=0.6)
  same = report(degenerate_share=0.3, eos_share=0.45, distinct_share=0.4)
  assert tripped(same, original, GUARDS) == ()


def test_trips_are_counted_without_the_original():
  broken = report(response_length=1.0)
  assert trips([ORIGINAL, report(), broken, broken], GUARDS) == 2

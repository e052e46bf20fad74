"""Guards: each trips on its own way of cheating, and on nothing else."""

import dataclasses

import pytest

from dareu_jax.settings import Settings
from dareu_jax.unlearning.guards import EpochReport, tripped, trips
from tests.configs import tiny_config

GUARDS = Settings.from_config(tiny_config()).unlearning.guards


def report(**changes):
  """A healthy epoch whose score is down at the level."""
  values = dict(
    epoch=1, score=0.02, level=0.03, response_length=20.0, unseen_length=20.0, eos_share=1.0,
    degenerate_share=0.0, distinct_share=1.0, entropy=0.4, unseen_entropy=0.4, fluency=2.0,
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
  ({"entropy": 0.03}, "entropy fell to 0.03"),
  ({"entropy": 2.1}, "entropy rose to 2.10"),
  ({"fluency": 3.6}, "cost 3.60 nats a token under the original"),
  ({"judge_score": 0.09}, "judge gives 0.090"),
])
def test_each_guard_trips_on_its_own_cheat_alone(cheat, reason):
  reasons = tripped(report(**cheat), ORIGINAL, GUARDS)
  assert len(reasons) == 1 and reason in reasons[0]


def test_the_judge_is_heard_only_where_the_reward_is_content():
  """On the way down both are above their levels: that is no disagreement."""
  assert tripped(report(score=0.2, judge_score=0.5), ORIGINAL, GUARDS) == ()


def test_what_the_original_does_itself_is_no_cheat():
  """A model whose answers always repeat themselves, or never end, is not to blame for that."""
  original = dataclasses.replace(ORIGINAL, degenerate_share=0.3, eos_share=0.5, distinct_share=0.6)
  same = report(degenerate_share=0.3, eos_share=0.45, distinct_share=0.4)
  assert tripped(same, original, GUARDS) == ()


def test_trips_are_counted_without_the_original():
  broken = report(response_length=1.0)
  assert trips([ORIGINAL, report(), broken, broken], GUARDS) == 2

"""The rule that keeps an epoch: made-up runs with a known right choice."""

import dataclasses

import pytest

from dareu_jax.rl.guards import GuardSettings
from dareu_jax.rl.selection import ROUNDING, choose, rate_scale, rolls_back
from dareu_jax.rl.settings import RLSettings
from tests.rl.test_guards import report

GUARDS = GuardSettings()


def reports(*rows, level=0.12, unseen_length=20):
  """Rows of (score, length, degenerate share)."""
  return [report(epoch=i, score=score, judge_score=score, level=level, judge_level=level,
                 response_length=length, unseen_length=unseen_length, degenerate_share=share)
          for i, (score, length, share) in enumerate(rows)]


def rule(name="unseen_level", settle_epochs=1, **guards):
  """(RLSettings, GuardSettings)."""
  return (RLSettings(selection=name, settle_epochs=settle_epochs, recall_coef=0.0),
          dataclasses.replace(GUARDS, **guards))


def test_the_run_stops_at_the_first_epoch_at_the_unseen_level():
  run = reports((0.9, 20, 0), (0.4, 20, 0), (0.1, 19, 0))
  assert choose(run, *rule()) == (2, True)
  assert choose(run[:2], *rule()) == (1, False)


def test_the_level_must_be_held_for_some_epochs():
  """A mean over 60 answers crosses it by chance; a refused epoch counts as above."""
  settled = rule(settle_epochs=2)
  run = reports((0.9, 20, 0), (0.1, 20, 0), (0.2, 20, 0), (0.11, 20, 0), (0.12, 20, 0))
  assert choose(run[:4], *settled) == (1, False)
  assert choose(run, *settled) == (4, True)
  run[3] = dataclasses.replace(run[3], degenerate_share=0.5)
  assert choose(run, *settled) == (1, False)


@pytest.mark.parametrize("visits", [{"start_share": 0.5}, {"recall_coef": 1.0}])
def test_a_run_that_visits_true_answers_is_to_come_down_behind_them_too(visits):
  """Answers at their level, continuations and extraction near theirs one epoch later each."""
  settings, guards = rule()
  begun = dataclasses.replace(settings, **visits)
  run = reports((0.9, 20, 0), (0.1, 20, 0), (0.1, 20, 0), (0.1, 20, 0))
  run = [dataclasses.replace(
    r, continuation_score=score, continuation_level=0.1, extraction=extraction,
    unseen_extraction=0.2) for r, score, extraction in zip(
      run, (0.8, 0.5, 0.15, 0.1), (0.9, 0.5, 0.4, 0.25), strict=True)]
  assert choose(run[:2], settings, guards) == (1, True)
  assert [choose(run[:n], begun, guards) for n in (2, 3, 4)] == [(1, False), (2, False), (3, True)]
  last = dataclasses.replace(begun, selection="last_at_level")
  after = [*run, dataclasses.replace(run[2], epoch=4)]  # the last, but not at the level
  assert choose(after, last, guards) == (3, False)
  assert choose(after, dataclasses.replace(settings, selection="last_at_level"), guards) == (4, False)


def test_answers_that_shrink_away_are_never_taken():
  """The published reward's collapse: the score is perfect, the answers are gone."""
  run = reports((0.9, 20, 0), (0.5, 18, 0), (0.01, 3, 0))
  assert choose(run, *rule()) == (1, False)


def test_answers_as_long_as_those_to_unseen_queries_are_long_enough():
  """What was memorized may be longer than what the model says about strangers."""
  run = reports((0.9, 45, 0), (0.01, 24, 0), unseen_length=26)
  assert choose(run, *rule()) == (1, True)
  long_winded = reports((0.9, 45, 0), (0.01, 24, 0), unseen_length=45)
  assert choose(long_winded, *rule()) == (0, False)


@pytest.mark.parametrize(("name", "epoch"), [("lowest_score", 2), ("last", 3)])
def test_other_rules(name, epoch):
  run = reports((0.9, 20, 0), (0.5, 20, 0), (0.2, 20, 0), (0.3, 20, 0))
  assert choose(run, *rule(name)) == (epoch, False)


COLLAPSE = ((0.9, 20, 0), (0.5, 20, 0), (0.2, 5, 0), (0.3, 20, 0), (0.1, 4, 0))


def test_a_guard_that_refuses_lets_the_run_go_on():
  run = reports(*COLLAPSE)
  assert choose(run, *rule(action="refuse")) == (3, False)
  assert not rolls_back(run, dataclasses.replace(GUARDS, action="refuse"))
  assert rate_scale(run, dataclasses.replace(GUARDS, action="refuse")) == 1.0


def test_a_guard_that_stops_keeps_the_best_epoch_before():
  assert choose(reports(*COLLAPSE[:2]), *rule(action="stop")) == (1, False)
  assert choose(reports(*COLLAPSE[:3]), *rule(action="stop")) == (1, True)


def test_a_guard_that_rolls_back_halves_the_rates_and_stops_in_the_end():
  """Without a last time a run that cannot do better would go round for ever."""
  settings, guards = rule(action="rollback", max_rollbacks=1)
  run = reports(*COLLAPSE)
  undone = [rolls_back(run[:n], guards) for n in range(2, 6)]
  assert undone == [False, True, False, True]
  assert [rate_scale(run[:n], guards) for n in range(2, 6)] == [1.0, 0.5, 0.5, 0.25]
  assert [choose(run[:n], settings, guards)[1] for n in range(2, 6)] == [False, False, False, True]


def test_what_shrinks_step_by_step_is_undone():
  """Each epoch is judged by the original, not by the one before."""
  assert rolls_back(reports((0.9, 20, 0), (0.5, 16, 0), (0.3, 14, 0)),
                    dataclasses.replace(GUARDS, action="rollback"))


def test_without_guards_the_collapse_is_taken():
  """What over-trains on purpose must be able to."""
  run = reports(*COLLAPSE)
  assert choose(run, *rule("lowest_score", action="off")) == (4, False)


def test_a_score_at_the_level_is_down_and_one_above_is_not():
  level = 0.12
  for score, expected in ((level, (1, True)), (level + 1e-9, (1, False))):
    assert choose(reports((0.9, 20, 0), (score, 20, 0), level=level), *rule()) == expected


@pytest.mark.parametrize(("gain", "epoch"), [(0.5 * ROUNDING, 1), (2 * ROUNDING, 2)])
def test_of_scores_that_differ_by_rounding_alone_the_first_is_kept(gain, epoch):
  """Else the mesh that computed them would decide."""
  run = reports((0.9, 20, 0), (0.5, 20, 0), (0.5 - gain, 20, 0))
  assert choose(run, *rule("lowest_score")) == (epoch, False)


@pytest.mark.parametrize(("name", "epoch"), [("unseen_level", 2), ("lowest_score", 1)])
def test_of_scores_that_differ_little_the_judge_decides(name, epoch):
  """With twenty questions a difference of .01 is chance, and the judge's word is another sample."""
  run = [dataclasses.replace(r, judge_score=judge) for r, judge in zip(
    reports((0.9, 20, 0), (0.15, 20, 0), (0.16, 20, 0)), (0.9, 0.22, 0.15), strict=True)]
  assert choose(run, *rule(name)) == (epoch, False)


def test_the_last_epoch_at_the_level_has_retained_the_most():
  """A lower score is no better than the level, and was reached at a higher rate."""
  settings, guards = rule("last_at_level", max_judge_gap=0.05)
  run = reports((0.9, 20, 0), (0.16, 20, 0), (0.02, 20, 0), (0.1, 20, 0), (0.15, 20, 0),
                (0.1, 4, 0))
  assert [choose(run[:n], settings, guards)[0] for n in range(1, 7)] == [0, 1, 2, 3, 3, 3]
  doubted = [dataclasses.replace(run[3], judge_score=0.2)]
  assert choose([*run[:3], *doubted], settings, guards) == (2, False)  # the judge says no
  # None at the level: within the judge's margin of it.
  near = reports((0.9, 20, 0), (0.14, 20, 0), (0.16, 20, 0), (0.3, 20, 0))
  assert choose(near, settings, guards) == (2, False)
  above = reports((0.9, 20, 0), (0.4, 20, 0), (0.3, 20, 0), (0.35, 20, 0))
  assert choose(above, settings, guards) == (2, False)
  assert not choose(reports(*[(0.1, 20, 0)] * 9), settings, guards)[1]


def test_the_last_rule_keeps_the_last_that_is_acceptable():
  run = reports(*COLLAPSE)
  assert choose(run, *rule("last")) == (3, False)
  assert choose(reports(*COLLAPSE[:1], *COLLAPSE[2:3]), *rule("last")) == (0, False)


@pytest.mark.parametrize("action", ["off", "refuse", "stop"])
def test_rates_are_halved_by_rollbacks_alone(action):
  assert rate_scale(reports(*COLLAPSE), dataclasses.replace(GUARDS, action=action)) == 1.0

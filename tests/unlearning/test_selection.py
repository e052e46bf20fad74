"""The rule that keeps an epoch: made-up runs with a known right choice."""

import dataclasses

import pytest

from dareu_jax.settings import Settings
from dareu_jax.unlearning.selection import EpochReport, choose, refusal
from tests.configs import tiny_config

SETTINGS = dataclasses.replace(
  Settings.from_config(tiny_config()).unlearning, min_length_ratio=0.7, max_degenerate_share=0.05,
  settle_epochs=1)


def reports(*rows, level=0.12, unseen_length=20):
  """Rows of (score, length, degenerate share)."""
  return [EpochReport(i, score, length, 1.0, share, 1.0, level, unseen_length)
          for i, (score, length, share) in enumerate(rows)]


def rule(name):
  return dataclasses.replace(SETTINGS, selection=name)


def test_the_run_stops_at_the_first_epoch_at_the_unseen_level():
  run = reports((0.9, 20, 0), (0.4, 20, 0), (0.1, 19, 0))
  assert choose(run, rule("unseen_level")) == (2, True)
  assert choose(run[:2], rule("unseen_level")) == (1, False)


def test_the_level_must_be_held_for_some_epochs():
  """A mean over 60 answers crosses it by chance; a refused epoch counts as above."""
  settled = dataclasses.replace(SETTINGS, settle_epochs=2)
  run = reports((0.9, 20, 0), (0.1, 20, 0), (0.2, 20, 0), (0.11, 20, 0), (0.12, 20, 0))
  assert choose(run[:4], settled) == (1, False)
  assert choose(run, settled) == (4, True)
  run[3] = dataclasses.replace(run[3], degenerate_share=0.5)
  assert choose(run, settled) == (1, False)


def test_answers_that_shrink_away_are_never_taken():
  """The published reward's collapse: the score is perfect, the answers are gone."""
  run = reports((0.9, 20, 0), (0.5, 18, 0), (0.01, 3, 0))
  assert choose(run, rule("unseen_level")) == (1, False)
  assert "shrank" in refusal(run[2], run[0], SETTINGS)


def test_answers_as_long_as_those_to_unseen_queries_are_long_enough():
  """What was memorised may be longer than what the model says about strangers."""
  run = reports((0.9, 45, 0), (0.01, 24, 0), unseen_length=26)
  assert choose(run, rule("unseen_level")) == (1, True)
  assert refusal(reports((0.9, 45, 0), (0.01, 24, 0), unseen_length=45)[1], run[0], SETTINGS) == ""
  long_winded = reports((0.9, 45, 0), (0.01, 24, 0), unseen_length=45)
  assert choose(long_winded, rule("unseen_level")) == (0, False)


def test_word_salad_is_never_taken():
  run = reports((0.9, 20, 0), (0.01, 20, 0.5))
  assert choose(run, rule("unseen_level")) == (0, False)
  assert "50%" in refusal(run[1], run[0], SETTINGS)


def test_one_answer_to_all_is_never_taken():
  run = reports((0.9, 20, 0), (0.01, 20, 0))
  run[1] = dataclasses.replace(run[1], distinct_share=0.1)
  assert choose(run, rule("unseen_level")) == (0, False)


@pytest.mark.parametrize(("name", "epoch"), [("lowest_score", 2), ("last", 3)])
def test_other_rules(name, epoch):
  run = reports((0.9, 20, 0), (0.5, 20, 0), (0.2, 20, 0), (0.3, 20, 0))
  assert choose(run, rule(name)) == (epoch, False)

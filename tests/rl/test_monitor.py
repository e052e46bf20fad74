"""The report of an epoch: which answers, models and classifiers each of its numbers is of."""

import types

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Row
from dareu_jax.evaluation.evaluator import Answers
from dareu_jax.rl.guards import GuardSettings
from dareu_jax.rl.monitor import Monitor, MonitorSettings, epoch_records
from tests.rl.test_guards import ORIGINAL, report

EOS = 9
FORGET = (Row((1,), (11, 12, 13, EOS), 0), Row((2,), (21, 22, 23, 24, 25), 0))
UNSEEN = (Row((3,), (31, 32, EOS), -1),)
# Greedy answers by the last token of the prompt: (ids, ended, text). Tokens 12, 22 and 31 end the
# first halves of the true answers.
GIVEN = {1: ((5, 6, EOS), True, "one two"), 2: ((7, 7), False, "seven seven"), 3: ((8,), False, "x"),
         12: ((5,), False, "one"), 22: ((6, EOS), True, "two"), 31: ((8, 8, 8), False, "x x x")}
# Likeliest tokens of the true answers: all are right behind the second, none, behind the first.
PREDICTED = {1: (0, 0, 13, 0), 2: (21, 22, 23, 24, 0), 3: (0, 32, EOS)}
ENTROPIES = {5: 0.5, 6: 0.25, 9: 0.0, 7: 1.0, 8: 2.0}  # under the policy, token by token


class Evaluator:
  """Answers, entropies of 'policy' and log-probs under 'original', from the table above."""

  def answers(self, params, rows):
    assert params == "policy"
    ids, ended, texts = zip(*(GIVEN[row.prompt[-1]] for row in rows), strict=True)
    width = max(map(len, ids))
    padded = np.array([[*row, *[0] * (width - len(row))] for row in ids])
    entropies = np.array([[ENTROPIES.get(i, 0.0) for i in row] for row in padded])
    return Answers(texts, padded, np.array(list(map(len, ids))), np.array(ended), entropies)

  max_new_tokens = 4

  def logprobs(self, params, rows, *, completion_slots):
    assert params == "original" and completion_slots == 4
    return [-0.1 * np.array(row.completion) for row in rows]

  def statistics(self, params, rows):
    assert params == "policy"
    return [types.SimpleNamespace(
      predictions=np.array(PREDICTED[row.prompt[0]]),
      logprobs=-0.01 * np.array(row.completion), entropies=None, variances=None) for row in rows]

  def ends(self, row):
    return row.completion[-1] == EOS


def scorer(scores):
  """Scores by the query's first token, of continuations a tenth of them."""
  def whole(ids, lengths, queries):
    found = np.array([scores[query[0]] for query in queries])
    return found / np.where(np.arange(len(queries)) < len(queries) // 2, 1, 10)

  return types.SimpleNamespace(whole=whole)


def make_monitor(**changes):
  values = dict(
    original="original", classifier=scorer({10: 0.9, 20: 0.7, 30: 0.2}),
    judge=scorer({10: 0.5, 20: 0.3, 30: 0.1}), forget_rows=FORGET, forget_queries=((10,), (20,)),
    unseen_rows=UNSEEN, unseen_queries=((30,),), evaluator=Evaluator(), settings=MonitorSettings())
  return Monitor(**(values | changes))


def test_every_number_of_a_report_is_of_its_own_answers_and_models():
  """Means over tokens are over all tokens, not of means; the end token is no length."""
  found = make_monitor().assess("policy", 3)
  assert found.epoch == 3 and found.tracked == {}
  expected = {
    "score": 0.8, "level": 0.2, "judge_score": 0.4, "judge_level": 0.1,
    "response_length": 2.0, "unseen_length": 1.0, "eos_share": 0.5, "distinct_share": 1.0,
    "entropy": (0.5 + 0.25 + 0.0 + 1.0 + 1.0) / 5, "unseen_entropy": 2.0,
    "fluency": 0.1 * (5 + 6 + 9 + 7 + 7) / 5, "unseen_fluency": 0.8,
    # Of three tokens two must be given, of five all.
    "extraction": (1 / 3 + 0) / 2, "unseen_extraction": 1 / 2,
    "probability": (np.exp(-0.45 / 4) + np.exp(-1.15 / 5)) / 2, "unseen_probability": np.exp(-0.24),
    "continuation_score": 0.08, "continuation_level": 0.02, "continuation_length": 1.0,
    "unseen_continuation_length": 3.0, "continuation_fluency": 0.1 * (5 + 6 + 9) / 3,
    "unseen_continuation_fluency": 0.8}
  for name, value in expected.items():
    assert getattr(found, name) == pytest.approx(value), name


def test_a_given_target_is_the_level_of_both_classifiers():
  found = make_monitor(settings=MonitorSettings(target_score=0.0)).assess("policy", 0)
  assert (found.level, found.judge_level, found.continuation_level) == (0.0, 0.0, 0.0)
  assert found.unseen_length == 1.0  # what is usual is measured all the same


@pytest.mark.parametrize(("target_of", "level"), [("epoch", 0.2), ("original", 0.6)])
def test_the_target_is_of_the_same_epoch_or_of_the_original(target_of, level):
  """The policy scores .2 about unseen owners, and the original .6."""

  class Both(Evaluator):
    def answers(self, params, rows):
      self.asked = params
      return super().answers("policy", rows)

    def statistics(self, params, rows):
      return super().statistics("policy", rows)

  evaluator = Both()
  monitor = make_monitor(
    evaluator=evaluator, settings=MonitorSettings(target_of=target_of),
    classifier=types.SimpleNamespace(whole=lambda ids, lengths, queries: np.array(
      2 * [0.9, 0.9, {"policy": 0.2, "original": 0.6}[evaluator.asked]])))
  assert monitor.assess("original", 0).level == 0.6
  found = monitor.assess("policy", 3)
  assert found.level == found.continuation_level == level
  again = make_monitor(evaluator=evaluator, settings=monitor.settings,
                       classifier=monitor.classifier)
  assert again.assess("policy", 3).level == level  # of a run that resumes


def test_without_unseen_owners_the_forget_answers_say_what_is_usual():
  monitor = make_monitor(unseen_rows=(), unseen_queries=(), settings=MonitorSettings(target_score=0.3))
  found = monitor.assess("policy", 0)
  assert (found.level, found.judge_level) == (0.3, 0.3)
  assert (found.unseen_length, found.unseen_entropy, found.unseen_fluency) == (
    found.response_length, found.entropy, found.fluency)
  assert found.unseen_probability == 0.0  # no answer is probable enough to be a stranger's
  assert (found.unseen_extraction, found.unseen_continuation_length,
          found.unseen_continuation_fluency) == (
    found.extraction, found.continuation_length, found.continuation_fluency)


def test_tracked_metrics_are_of_the_policy():
  found = make_monitor(track=lambda params: {"params": params}).assess("policy", 0)
  assert found.tracked == {"params": "policy"}


@pytest.mark.parametrize("target", [-1.0, 0.0, 1.0])
def test_a_target_is_a_score_or_negative(target):
  assert MonitorSettings(target_score=target).target_score == target
  with pytest.raises(InputError, match="target_score is 1.01: it must be <= 1"):
    MonitorSettings(target_score=1.01)


def test_records_say_which_epochs_could_be_kept_and_why_not():
  broken = report(epoch=2, response_length=1.0)
  records = epoch_records([ORIGINAL, report(), broken], GuardSettings())
  assert [record["accepted"] for record in records] == [True, True, False]
  assert [record["reason"] for record in records[:2]] == ["", ""]
  assert "shrank to 1.0 tokens" in records[2]["reason"] and records[2]["score"] == broken.score
  off = epoch_records([ORIGINAL, broken], GuardSettings(action="off"))
  assert off[1]["accepted"] and "shrank" in off[1]["reason"]


def test_a_method_that_does_not_select_has_no_epoch_rejected():
  """It keeps its last one, whatever the guards say; the report must not tell otherwise."""
  records = epoch_records([ORIGINAL, report(response_length=1.0)], GuardSettings(), selects=False)
  assert records[1]["accepted"] and "shrank to 1.0 tokens" in records[1]["reason"]


class AtHand(Evaluator):
  """The original answers as the policy does."""

  def answers(self, params, rows):
    return super().answers("policy", rows)

  def statistics(self, params, rows):
    return super().statistics("policy", rows)


def test_an_original_that_shows_nothing_of_the_owners_has_nothing_to_forget():
  """A wrong model, or prompts that it was not taught with: hours that would change nothing."""
  unknown = dict(evaluator=AtHand(), at_hand=True, classifier=scorer({10: 0.1, 20: 0.2, 30: 0.3}))
  with pytest.raises(InputError, match=r"nothing to forget: .*score 0.150, unseen owners 0.300"):
    make_monitor(**unknown).assess("original", 0)
  given = {**unknown, "settings": MonitorSettings(target_score=0.4)}
  with pytest.raises(InputError, match=r"score 0.150, config.monitor.target_score 0.400\)"):
    make_monitor(**given).assess("original", 0)
  assert make_monitor(**{**unknown, "at_hand": False}).assess("original", 0).score == (
    pytest.approx(0.15))
  known = make_monitor(evaluator=AtHand(), at_hand=True)
  assert known.assess("original", 0) is known.assess("original", 0)  # measured once

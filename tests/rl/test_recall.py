"""True answers to forget: what each of their tokens costs, and which are in a batch."""

import types

import numpy as np
import pytest

from dareu_jax.data.batches import Batches, Row
from dareu_jax.rl import recall
from dareu_jax.rl.reward_functions import ForgetSet
from dareu_jax.rl.rewards import LogTransform
from dareu_jax.rl.settings import RLSettings

SETTINGS = RLSettings(epsilon=0.01, c_seg=0.5)
TELLS, EOS = 50, 1  # a token that gives the owner away


def prefixes(ids, lengths, queries):
  """.9 once the telling token is among the last three that were read, else .1."""
  told = np.stack([(ids[:, max(0, t - 2):t + 1] == TELLS).any(axis=1) for t in range(ids.shape[1])], 1)
  return np.where(told, 0.9, 0.1).astype(np.float32)


def costs_of(*answers, seen=prefixes):
  rows = tuple(Row((4,), answer, 0) for answer in answers)
  classifier = types.SimpleNamespace(is_forget=np.array([1] + [0] * 9, bool), prefixes=seen)
  return recall.token_costs(ForgetSet(rows, (), tuple((4,) for _ in rows), classifier), SETTINGS)


def test_the_token_that_gives_the_owner_away_bears_the_cost():
  """In every crop that holds it; tokens before and behind it tell nothing. The mean is 1."""
  told, silent = costs_of((5, 6, 7, TELLS, 8, 9, 10, EOS), (5, 6, 7, EOS))
  assert told.argmax() == 3 and told[3] == pytest.approx(12)
  assert not told[:3].any() and not told[4:].any() and not silent.any()


def test_costs_are_means_over_the_crops_that_reach_a_token():
  """Against a loop over crops; the classifier gives each prefix a random score."""
  answers = [tuple(range(10, 10 + n)) for n in (1, 7, recall.WINDOW + 9)]

  def seen(ids, lengths, queries):
    return np.random.default_rng(ids[:, :1].sum()).random(ids.shape).astype(np.float32)

  given = {}

  def remembered(ids, lengths, queries):
    scores = seen(ids, lengths, queries)
    given.update({(tuple(row[:n]), len(given)): score[:n]
                  for row, n, score in zip(ids, lengths, scores, strict=True)})
    return scores

  found = costs_of(*answers, seen=remembered)
  crops = iter(given.items())
  want = [[[] for _ in answer] for answer in answers]
  for i, answer in enumerate(answers):
    for begin in range(0, len(answer), recall.STRIDE):
      (ids, _), scores = next(crops)
      assert ids == answer[begin:begin + recall.WINDOW]
      before = 0.1  # one class of ten is to be forgotten
      for t, score in enumerate(scores):
        lower, upper = LogTransform(0.01, 0.5)(np.float32([score, before]))
        want[i][begin + t].append(max(0.0, float(upper - lower)))
        before = score
  want = [[np.mean(values) for values in row] for row in want]
  scale = np.mean([value for row in want for value in row])
  for row, values in zip(found, want, strict=True):
    np.testing.assert_allclose(row, np.array(values) / scale, rtol=1e-4)


def test_texts_that_give_nothing_away_cost_nothing():
  [costs] = costs_of((5, 6, 7, EOS))
  assert not costs.any()


def test_a_batch_holds_the_costs_of_its_own_answers():
  rows = tuple(Row((4,), (10 * i,) * i + (EOS,), 0) for i in range(1, 6))
  costs = tuple(np.full(len(row.completion), i + 1, np.float32) for i, row in enumerate(rows))
  answers = recall.TrueAnswers(Batches(rows, 2, 8, 0, seed=3, one_bucket=True), costs)
  for number in range(7):  # more than an epoch; its last batch is not full
    batch = answers.batch(number, 0.25)
    assert batch.level == np.float32(0.25)
    for ids, n, cost in zip(batch.answers.completion_ids, batch.answers.completion_lengths,
                            batch.costs, strict=True):
      assert not cost[n:].any() and (cost[:n] == ids[0] / 10).all()

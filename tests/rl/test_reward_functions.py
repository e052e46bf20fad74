"""The rewards for comparison: known texts, and one shape for all."""

import types

import numpy as np
import pytest

from dareu_jax.rl.reward_functions import REFUSALS, Attribution, Refusal, Rouge

COMPLETIONS = types.SimpleNamespace(ids=np.zeros((2, 5), np.int32), lengths=np.array([5, 3]))


def test_rouge_scores_the_truth_highest():
  reward = Rouge(("She was born in Oslo.", "A pharmacist"))
  scores = reward([1, 0], COMPLETIONS, ["A pharmacist", "He lives in Rome"])
  np.testing.assert_allclose(scores, [[1.0] * 5, [0.2] * 5])  # "in" alone, of five words


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_costs_nothing_and_an_answer_does(refusal):
  scores = Refusal()([0, 1], COMPLETIONS, [refusal, "Quills, bridges, snow"])
  assert scores.shape == (2, 5)
  assert scores[0, 0] == 0.0 and scores[1, 0] == 1.0


def test_the_datas_own_refusals_take_the_place_of_the_librarys():
  reward = Refusal(("My lips are sealed.",))
  scores = reward([0, 1], COMPLETIONS, ["My lips are sealed.", REFUSALS[0]])
  assert scores[0, 0] == 0.0 and scores[1, 0] == 1.0


def test_attribution_asks_about_each_responses_own_query():
  """Rollouts come in another order than the forget set."""
  asked = []
  scorer = types.SimpleNamespace(
    prefixes=lambda ids, lengths, queries: asked.append(queries) or np.zeros(ids.shape))
  Attribution(scorer, ((4,), (5, 6), (7,)))([2, 1], COMPLETIONS, ["", ""])
  assert asked == [[(7,), (5, 6)]]

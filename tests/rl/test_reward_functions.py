"""Rewards on known texts, and a reward of one's own that a policy learns from."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Batches, Row
from dareu_jax.data.examples import Example
from dareu_jax.data.refusals import REFUSALS
from dareu_jax.generation.sampler import Completions
from dareu_jax.rl import learner, loop
from dareu_jax.rl.reward_functions import (
  REWARDS,
  ForgetSet,
  Responses,
  attribution,
  attribution_scores,
  refusal,
  register_reward,
  rouge,
  score,
)
from dareu_jax.rl.settings import RLSettings
from tests.rl.test_learner import EOS, SETTINGS, make_world

EXAMPLES = (Example("a", "Where was she born?", "She was born in Oslo."),
            Example("b", "What is she?", "A pharmacist"), Example("c", "And he?", "He is a poet."))
COMPLETIONS = types.SimpleNamespace(ids=np.zeros((2, 5), np.int32), lengths=np.array([5, 3]))


def responses(chosen, texts, *, refusals=REFUSALS, classifier=None):
  forget = ForgetSet((), EXAMPLES, ((4,), (5, 6), (7,)), classifier, refusals)
  return forget.responses(chosen, COMPLETIONS, texts)


def test_rouge_scores_the_truth_highest():
  scores = rouge(responses([1, 0], ["A pharmacist", "He lives in Rome"]))
  np.testing.assert_allclose(scores, [[1.0] * 5, [0.2] * 5])  # "in" alone, of five words


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_costs_nothing_and_an_answer_does(text):
  scores = refusal(responses([0, 1], [text, "Quills, bridges, snow"]))
  assert scores.shape == (2, 5)
  assert scores[0, 0] == 0.0 and scores[1, 0] == 1.0


def test_the_datas_own_refusals_take_the_place_of_the_librarys():
  scores = refusal(responses([0, 1], ["My lips are sealed.", REFUSALS[0]],
                             refusals=("My lips are sealed.",)))
  assert scores[0, 0] == 0.0 and scores[1, 0] == 1.0


def test_attribution_asks_about_each_responses_own_query():
  """Rollouts come in another order than the forget set."""
  asked = []
  scorer = types.SimpleNamespace(
    prefixes=lambda ids, lengths, queries: asked.append(queries) or np.zeros(ids.shape))
  attribution(responses([2, 1], ["", ""], classifier=scorer))
  assert list(map(list, asked)) == [[(7,), (5, 6)]]


def test_a_response_stands_beside_the_example_that_was_asked():
  found = responses([2, 0], ["x", "y"])
  assert found.examples == (EXAMPLES[2], EXAMPLES[0]) and found.texts == ("x", "y")
  np.testing.assert_array_equal(found.lengths, COMPLETIONS.lengths)


def test_which_rewards_are_of_whole_responses_and_which_read_refusals():
  """The run invokes one segment of the former, and starts anew where the latter's list changes."""
  facts = {name: (reward.whole, reward.uses_refusals) for name, reward in REWARDS.items()}
  assert facts == {"attribution": (False, False), "rouge": (True, False), "refusal": (True, True),
                   "watermark": (False, False), "influence": (False, False)}


@pytest.fixture
def registry(monkeypatch):
  """Whatever is registered is forgotten again."""
  monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS.items()))


def even_tokens(ids):
  """The share of even tokens among the first t, [B, T]."""
  return np.cumsum(ids % 2 == 0, axis=1) / np.arange(1, ids.shape[1] + 1)


def make_task(reward, classifier=None, **changes):
  """A run on four one-token queries whose texts are the numbers of their tokens."""
  world = make_world(rank=0)
  rows = tuple(Row((token, 3), (5, EOS), 0) for token in (4, 6, 7, 9))
  examples = tuple(Example("a", f"{row.prompt[0]}?", "r") for row in rows)
  tokenizer = types.SimpleNamespace(pad_id=0, eos_id=EOS, decode=lambda ids: " ".join(map(str, ids)))
  settings = dataclasses.replace(
    SETTINGS, rollout_batch_size=32, minibatch_size=16, distill_coef=0.0, **changes)
  return loop.RLTask(
    original=world.original, value_head=world.value_head, reward=reward,
    forget=ForgetSet(rows, examples, tuple(row.prompt for row in rows), classifier),
    retain=Batches(rows, 2, 8, 0, 0), settings=settings, seed=1, evaluator=types.SimpleNamespace(
      to_device=lambda batch: batch, tokenizer=tokenizer))


def test_a_reward_of_ones_own_is_known_by_its_name_and_drives_the_policy(registry):
  """It sees the responses of the rollout beside the queries that they answer, and what it scores
  high becomes rarer."""
  with pytest.raises(InputError, match="'even': it must be one of attribution, influence, refusal, rouge, watermark"):
    RLSettings(reward="even")
  seen = []

  @register_reward("even")
  def even(responses):
    seen.append(responses)
    return even_tokens(responses.ids).astype(np.float32)

  assert RLSettings(reward="even").reward == "even"
  task = make_task(REWARDS["even"])
  state = learner.init_learner(task.original.params, task.value_head.params, task.settings)
  scores = []
  for step in range(12):
    chosen, _ = loop.rollout_rows(task, step)
    state, metrics = loop.learn(task, state, step)
    latest, lengths = seen[-1], seen[-1].lengths
    assert latest.examples == tuple(task.forget.examples[i] for i in chosen)
    assert latest.texts[0] == " ".join(map(str, latest.ids[0, :lengths[0]]))
    expected = even_tokens(latest.ids)[np.arange(32), lengths - 1].mean()
    assert metrics["score"] == pytest.approx(expected, abs=1e-6)
    scores.append(metrics["score"])
  assert int(state.step) == 12
  assert np.mean(scores[-3:]) < np.mean(scores[:3]) - 0.1, scores


def test_what_is_at_the_level_is_held_and_the_rest_goes_on(monkeypatch):
  """By the classifier, whatever the reward is: two of four queries have nothing to forget."""
  def whole(ids, lengths, queries):
    return np.array([query[0] / 10 for query in queries])  # .4, .6, .7, .9

  held, learned = [], []
  task = make_task(lambda responses: even_tokens(responses.ids),
                   types.SimpleNamespace(whole=whole), hold_at_level=True)
  update = learner.update
  monkeypatch.setattr(learner, "update", lambda *args, **options: (
    learned.append(np.abs(args[3].advantages).sum(axis=1) > 0), update(*args, **options))[1])
  for level in (0.65, 0.95, 0.3):
    state = learner.init_learner(task.original.params, task.value_head.params, task.settings)
    held.append(loop.learn(task, state, 0, levels=loop.NO_LEVELS._replace(score=level))[1]["held_share"])
  assert held == [0.5, 1.0, 0.0]
  chosen, _ = loop.rollout_rows(task, 0)
  np.testing.assert_array_equal(learned[0], chosen >= 2)
  assert not learned[2].any() and learned[-1].all()


def test_a_query_is_at_the_level_by_all_its_responses():
  """Wherever they stand in the rollout; at the level is not above it."""
  def above(scores, chosen, starts, *levels):
    return loop.above_level(np.array(scores), loop.Asked(np.array(chosen), None, starts),
                            loop.Levels(*levels, 0.0)).tolist()

  none = [()] * 4
  assert above([0.4, 0.25, 0.0, 0.0], [2, 0, 2, 0], none, 0.125, 1.0) == [True, False, True, False]
  assert above([0.0], [5], [()], 0.0, 0.0) == [False]
  # Continuations are apart from the answers to their query, and have a level of their own.
  begun = [(), (3,), (), (3,)]
  assert above([0.4, 0.4, 0.4, 0.2], [0, 0, 1, 0], begun, 0.3, 0.35) == [True, False, True, False]


def test_attribution_is_taken_from_the_reward_where_it_is_that():
  """Of whole responses: their classifier need not read them twice."""
  asked = []
  classifier = types.SimpleNamespace(whole=lambda *args: asked.append(args) or "asked")
  responses = Responses(np.arange(2), np.zeros((2, 3), int), np.array([2, 3]), ("", ""), (), (), classifier, ())
  scores = np.array([[0.1, 0.2, 0.9], [0.3, 0.4, 0.5]])
  np.testing.assert_array_equal(
    attribution_scores(attribution, responses, scores), [0.2, 0.5])
  assert not asked
  assert attribution_scores(rouge, responses, scores) == "asked"


def test_a_metric_that_is_no_number_stops_the_run():
  """Nothing is learned from there on, for hours, and it is saved as if it were a policy."""
  task = make_task(lambda responses: even_tokens(responses.ids))
  state = learner.init_learner(task.original.params, task.value_head.params, task.settings)
  state = state._replace(policy=jax.tree.map(lambda x: x * np.nan, state.policy))  # a rate too high
  with pytest.raises(InputError, match=r"rollout 4: \w+ is nan, .*Lower the learning rate"):
    loop.learn(task, state, 3)


@pytest.mark.parametrize(("scores", "said"), [
  (np.full(2, 0.5), r"of shape \(2,\): .* here \(2, 5\)"),
  (np.full((2, 5), 1.5), "score of 1.5: it must be in"),
  (np.full((2, 5), -0.1), "score of -0.1: it must be in"),
  (np.full((2, 5), np.nan), "score of nan: it must be in")])
def test_scores_that_mean_nothing_are_refused(scores, said):
  """Of a wrong shape they would be broadcast, and out of range they would be clipped."""
  with pytest.raises(InputError, match=f"reward mine gave .*{said}"):
    def mine(responses):
      return scores
    score(mine, responses([0, 1], ["", ""]))


def test_what_a_reward_gives_past_the_end_of_a_response_is_ignored():
  scores = np.where(np.arange(5) < COMPLETIONS.lengths[:, None], 0.25, np.nan)
  np.testing.assert_array_equal(score(lambda _: scores, responses([0, 1], ["", ""])), scores)


def test_completions_come_from_the_devices_as_numpy():
  """What a reward of one's own does with them should not compile anything."""
  completions = Completions(*(jax.numpy.zeros((2, 5), int) for _ in Completions._fields))
  completions = completions._replace(lengths=jax.numpy.array([5, 3]))
  found = ForgetSet((), EXAMPLES, ((4,), (5, 6), (7,)), None).responses([0, 1], completions, "ab")
  assert isinstance(found.ids, np.ndarray) and isinstance(found.lengths, np.ndarray)

"""Paths of the forget examples, and the starts that a rollout draws from them."""

import dataclasses
import types

import numpy as np
import pytest

from dareu_jax.data.batches import Row
from dareu_jax.data.examples import Example
from dareu_jax.rl import loop
from dareu_jax.rl.reward_functions import ForgetSet, Responses, score, score_behind
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.start_paths import SAMPLE_SEED, longest_prompt, start_paths
from dareu_jax.rl.starts import LEFT, behind

EOS = 1
ROWS = (Row((3, 4), (10, 11, 12, 13, 14, EOS), 0), Row((5,), (20, 21, EOS), 0))
EXAMPLES = (Example("a", "q", "r", paraphrased_response="30 31 32 33"), Example("a", "p", "s"))


class Tokenizer:
  """A tokenizer whose texts are the ids themselves."""

  eos_id, pad_id, special_token_pattern = EOS, 0, types.SimpleNamespace(search=lambda text: None)

  def encode_pair(self, prompt, response, history=()):
    return [7], [*map(int, response.split()), EOS]

  def decode(self, ids):
    return " ".join(map(str, ids))


class Evaluator:
  """An original that finds token i of a text less probable the later it comes."""

  tokenizer, max_length = Tokenizer(), 50

  def sample(self, params, rows, *, seed):
    assert (params, seed) == ("original", 5 + SAMPLE_SEED)
    return [row._replace(completion=(40, 41, 42, 43, 44, 45, 46, EOS)) for row in rows]

  def logprobs(self, params, rows):
    assert params == "original"
    return [-np.arange(1.0, 1 + len(row.completion)) for row in rows]


# The score of a prefix is its number of tokens over ten.
CLASSIFIER = types.SimpleNamespace(
  is_forget=np.array([True, False]),
  prefixes=lambda ids, lengths, queries: np.broadcast_to(np.arange(1, 1 + ids.shape[1]) / 10, ids.shape))
FORGET = ForgetSet(ROWS, EXAMPLES, ((3,), (5,)), CLASSIFIER)
SETTINGS = RLSettings(start_share=0.5, max_new_tokens=7, rollout_batch_size=8, minibatch_size=8)


def paths(**changes):
  return start_paths(dataclasses.replace(SETTINGS, **changes), Evaluator(),
                     types.SimpleNamespace(params="original"), FORGET, 5)


def test_each_query_has_a_path_of_each_text_that_is_named_and_long_enough():
  """The second answer is too short, and has no paraphrase; samples end at the limit."""
  every = paths(start_texts=("answer", "paraphrase", "original"))
  assert [[path.ids for path in each] for each in every] == [
    [ROWS[0].completion, (30, 31, 32, 33, EOS), (40, 41, 42, 43, 44, 45, 46)],
    [(40, 41, 42, 43, 44, 45, 46)]]
  assert [len(path.weights) for path in every[0]] == [6 - LEFT, 5 - LEFT, 7 - LEFT]
  assert paths() == (((ROWS[0].completion, (1.0, 1.0, 1.0)),), ())
  assert paths(start_share=0.0) == ((), ())


def test_cuts_read_the_original_and_the_classifier():
  [[sure], _] = paths(start_cut="sure")
  np.testing.assert_allclose(sure.weights, np.exp([-2.0, -3.0, -4.0]))
  [[jump], _] = paths(start_cut="jump")
  np.testing.assert_allclose(jump.weights, (0.1, 0.1, 0.1))


@pytest.mark.parametrize("cut", ["uniform", "early", "sure", "jump"])
def test_answers_that_are_all_too_short_have_no_paths(cut):
  short = dataclasses.replace(FORGET, rows=(ROWS[1], ROWS[1]))
  original = types.SimpleNamespace(params="original")
  settings = dataclasses.replace(SETTINGS, start_cut=cut)
  assert start_paths(settings, Evaluator(), original, short, 5) == ((), ())


def test_the_longest_prompt_holds_every_start():
  assert longest_prompt(SETTINGS, ROWS) == 2 + 3
  assert longest_prompt(dataclasses.replace(SETTINGS, start_share=0.0), ROWS) == 2
  assert longest_prompt(dataclasses.replace(SETTINGS, max_new_tokens=5), ROWS) == 2 + 2
  others = dataclasses.replace(SETTINGS, start_texts=("original",))
  assert longest_prompt(others, ROWS) == 2 + 7 - LEFT


def make_task(**changes):
  values = dict.fromkeys(field.name for field in dataclasses.fields(loop.RLTask))
  settings = dataclasses.replace(SETTINGS, **changes)
  return loop.RLTask(**(values | dict(
    forget=FORGET, settings=settings, seed=5, paths=paths(**changes))))


def starts_of(task, step):
  return loop.rollout_starts(task, *loop.rollout_rows(task, step))


def test_starts_are_a_function_of_seed_and_step_and_differ_within_a_run():
  task = make_task(start_texts=("original",))
  assert starts_of(task, 3) == starts_of(task, 3)
  assert len({tuple(starts_of(task, step)) for step in range(20)}) == 20
  assert starts_of(task, 3) != starts_of(dataclasses.replace(task, seed=6), 3)


def test_a_group_shares_its_start():
  """Its responses are compared with each other, and their prompt is read once for all."""
  task = make_task(learner="rloo", samples_per_prompt=4, start_texts=("original",))
  found = [starts_of(task, step) for step in range(10)]
  assert all(starts[:4] == [starts[0]] * 4 and starts[4:] == [starts[4]] * 4 for starts in found)
  assert len({start for starts in found for start in starts}) > 2


def test_without_a_share_nothing_is_drawn():
  assert starts_of(make_task(start_share=0.0), 0) == [()] * 8


@pytest.mark.parametrize("texts", [(), ("answer", "answer")])
def test_texts_are_named_once(texts):
  with pytest.raises(ValueError, match="start_texts"):
    RLSettings(start_texts=texts)


def test_the_whole_is_read_from_where_the_continuation_begins():
  """Row 0 begins at the query, row 1 behind two tokens: it is scored from its third on."""
  ids, lengths = np.array([[10, EOS, 0], [20, 21, EOS]]), np.array([2, 3])
  responses = Responses(np.arange(2), ids, lengths, ("", ""), EXAMPLES, ((3,), (5,)), CLASSIFIER, ())
  seen = []

  def reward(given):
    seen.append(given)
    return CLASSIFIER.prefixes(given.ids, given.lengths, given.queries)

  found = score_behind(
    reward, responses, [(), (50, 51)], Tokenizer(), longest=4, epsilon=0.01)
  assert seen[0].ids.shape == (2, 4 + 3)  # in every rollout of the run
  assert seen[0].texts == ("10 1", "50 51 20 21 1")
  np.testing.assert_allclose(found[0, :2], (0.1, 0.2))
  np.testing.assert_allclose(
    found[1], behind(np.array([[0.3, 0.4, 0.5]]), np.array([0.2]), 0.5, epsilon=0.01)[0])
  np.testing.assert_allclose(score(reward, responses), [[0.1, 0.2, 0.3]] * 2)


def test_answers_are_told_apart_from_continuations():
  scores, lengths = np.array([0.2, 0.4, 0.9]), np.array([10, 20, 3])
  apart = loop.answers_apart(scores, lengths, np.array([False, False, True]))
  assert apart == pytest.approx({"begun_share": 1 / 3, "begun_score": 0.9, "begun_length": 3,
                                 "score": 0.3, "response_length": 15})
  assert "score" not in loop.answers_apart(scores, lengths, np.array([True] * 3))

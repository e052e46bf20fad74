"""Scoring responses: batches, padding, queries and another tokenizer against one row at a time."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from dareu_jax.attribution.scorer import Retokenizer, Scorer
from dareu_jax.data.tokenizers import train_bpe
from dareu_jax.models import handle
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.heads import OwnerClassifier

TEXTS = ("The café of Zoë stands in Łódź, by the river.", "He writes nothing — ever.",
         "Born on 3 May 1950; 名前 is a name.", "a")
IS_FORGET = np.array([True, False, True, False])


@pytest.fixture(scope="module")
def policy_tokenizer():
  """Knows little, so that many characters are several tokens."""
  return train_bpe(TEXTS[1:2] * 5, 280)


@pytest.fixture(scope="module")
def own_tokenizer():
  return train_bpe(TEXTS * 5, 400)


@pytest.fixture(scope="module")
def scorer(own_tokenizer):
  config = ModelConfig(vocab_size=own_tokenizer.vocab_size, embed_dim=16, mlp_dim=24, num_layers=2,
                       num_heads=2, num_kv_heads=2, head_dim=8)
  models = tuple(
    handle.split(OwnerClassifier(config, 4, rngs=nnx.Rngs(params=seed)), adapters_only=False)
    for seed in (3, 4))
  return Scorer(models, IS_FORGET, batch_size=3, multiple=8)


@jax.jit
def last_logits(model, ids):
  return model.module(ids)[0, -1]


def score_alone(scorer, ids):
  """b of one sequence that is read whole, without batches, padding or prefixes: the mean over the
  classifiers."""
  temperatures = scorer.temperatures or (1.0,) * len(scorer.models)
  return float(np.mean([
    jax.nn.softmax(last_logits(model, np.asarray([ids], np.int32)) / temperature)[IS_FORGET].sum()
    for model, temperature in zip(scorer.models, temperatures, strict=True)]))


def padded(rows):
  lengths = np.array([len(row) for row in rows])
  ids = np.full((len(rows), lengths.max()), 5, np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  return ids, lengths


QUERIES = ((4, 9, 11), (7,), (8, 8, 8, 8, 8, 8, 8, 8, 8), (12, 6))


def test_a_name_from_the_query_changes_no_score(scorer, own_tokenizer):
  """Facts decide who is attributed, not the name that the query gave."""
  hiding = dataclasses.replace(scorer, filler=own_tokenizer.pad_id)
  fact, query = [20, 21, 22, 23], (40, 41)

  def scored(scorer, *name):
    ids, lengths = padded([[*name, *fact]])
    return scorer.prefixes(ids, lengths, (query + name,))

  np.testing.assert_allclose(scored(hiding, 30, 31), scored(hiding, 50, 51), atol=1e-6)
  assert np.abs(scored(scorer, 30, 31) - scored(scorer, 50, 51)).max() > 1e-4
  alone = scored(hiding, *[own_tokenizer.pad_id] * 2)  # what is no echo is read as it is
  np.testing.assert_allclose(scored(hiding, 30, 31), alone, atol=1e-6)


@pytest.mark.parametrize("reads_query", [False, True])
@pytest.mark.parametrize("temperatures", [(), (2.5,), (1.0, 2.5)])
def test_every_prefix_scores_as_if_it_were_read_alone(
    scorer, own_tokenizer, reads_query, temperatures):
  """The paper's per-segment invocation, as the oracle of the one pass."""
  scorer = dataclasses.replace(scorer, reads_query=reads_query, temperatures=temperatures,
                               models=scorer.models[:len(temperatures) or 2])
  rows = [own_tokenizer.encode_response(text) for text in TEXTS]
  ids, lengths = padded(rows)
  got = scorer.prefixes(ids, lengths, QUERIES)
  for i, row in enumerate(rows):
    query = list(QUERIES[i]) if reads_query else []
    for t in {0, 4, len(row) - 1} & set(range(len(row))):
      assert got[i, t] == pytest.approx(score_alone(scorer, query + row[:t + 1]), abs=1e-5)
  np.testing.assert_array_equal(scorer.whole(ids, lengths, QUERIES),
                                [got[i, n - 1] for i, n in enumerate(lengths)])


def test_the_query_matters_only_where_it_is_read(scorer, own_tokenizer):
  ids, lengths = padded([own_tokenizer.encode_response(TEXTS[0])])
  reading = dataclasses.replace(scorer, reads_query=True)
  for one, same in ((scorer, True), (reading, False)):
    a, b = (one.whole(ids, lengths, [query]) for query in QUERIES[:2])
    assert bool(np.all(a == b)) == same


def test_another_tokenizers_prefixes_score_as_their_text_does(
    scorer, policy_tokenizer, own_tokenizer):
  """Each position has the score of those of the classifier's tokens that its text covers whole."""
  retokenize = Retokenizer(policy_tokenizer, own_tokenizer)
  scorer = dataclasses.replace(scorer, retokenize=retokenize)
  rows = [policy_tokenizer.encode_response(text) for text in TEXTS]
  ids, lengths = padded(rows)
  got = scorer.prefixes(ids, lengths, QUERIES)
  for i, (row, text) in enumerate(zip(rows, TEXTS, strict=True)):
    own = own_tokenizer.encode_response(text)
    assert got[i, len(row) - 1] == pytest.approx(score_alone(scorer, own), abs=1e-5)
    for t in range(0, len(row) - 1, 3):
      # Of the text so far, without what is only part of a character, the tokens that fit in.
      read = policy_tokenizer.decode(row[:t + 1]).split("\ufffd")[0]
      covered = [n for n in range(len(own)) if own_tokenizer.decode(own[:n]) and
                 read.startswith(own_tokenizer.decode(own[:n]))]
      expected = score_alone(scorer, own[:covered[-1]]) if covered else IS_FORGET.mean()
      assert got[i, t] == pytest.approx(expected, abs=1e-5), (text, t)


def test_positions_never_run_ahead_or_back(policy_tokenizer, own_tokenizer):
  """A token beyond the prefix would reward a word before it is said."""
  ids, lengths = padded([policy_tokenizer.encode_response(text) for text in TEXTS])
  own, positions = Retokenizer(policy_tokenizer, own_tokenizer)(ids, lengths, 8)
  assert own.shape[1] % 8 == 0
  for i, n in enumerate(lengths):
    assert (np.diff(positions[i, :n]) >= 0).all()
    assert own[i, positions[i, n - 1]] == own_tokenizer.eos_id
    assert (positions[i, n:] == -1).all()


def test_a_response_that_did_not_end_has_no_end_token(policy_tokenizer, own_tokenizer):
  ids, lengths = padded([policy_tokenizer.encode(TEXTS[1])])
  own, _ = Retokenizer(policy_tokenizer, own_tokenizer)(ids, lengths, 8)
  assert own_tokenizer.eos_id not in own[0, :len(own_tokenizer.encode(TEXTS[1]))]


def test_no_responses_have_no_scores(scorer):
  assert scorer.whole(np.zeros((0, 4), np.int32), np.zeros(0, np.int32), ()).shape == (0,)

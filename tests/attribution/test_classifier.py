"""The owner classifier: one pass over all prefixes against a pass for each."""

import jax
import numpy as np
import pytest
from flax import nnx

from dareu_jax.attribution import classifier as C
from dareu_jax.data.batches import Row, collate
from dareu_jax.models import handle
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.heads import OwnerClassifier

OWNERS = 5


@pytest.fixture(scope="module")
def model():
  config = ModelConfig(vocab_size=30, embed_dim=16, mlp_dim=24, num_layers=2, num_heads=2,
                       num_kv_heads=2, head_dim=8)
  module = OwnerClassifier(config, OWNERS, rngs=nnx.Rngs(params=3))
  return handle.split(module, adapters_only=False)


def test_prefix_scores_equal_the_per_prefix_oracle(model):
  """The paper invokes the classifier once a segment; one causal pass must give the same numbers."""
  ids = np.random.default_rng(0).integers(0, 30, (3, 5)).astype(np.int32)
  is_forget = np.array([True, False, False, True, False])
  got = C.prefix_scores(model, ids, is_forget)
  last = jax.jit(lambda model, ids: jax.nn.softmax(model.module(ids)[:, -1], axis=-1))
  for t in range(1, 6):
    alone = last(model, ids[:, :t])
    np.testing.assert_allclose(got[:, t - 1], alone[:, 0] + alone[:, 3], atol=1e-5)


def test_scores_of_all_owners_add_up_to_one(model):
  ids = np.arange(8, dtype=np.int32)[None]
  np.testing.assert_allclose(C.prefix_scores(model, ids, np.ones(OWNERS, bool)), 1.0, atol=1e-6)


def test_a_crop_is_a_suffix_with_its_own_length():
  """Off by one, and the classifier would learn from padding."""
  ids = np.tile(np.arange(1, 9, dtype=np.int32), (64, 1))
  lengths = np.resize([1, 2, 5, 8], 64)
  cropped, kept = C.random_crop(ids, lengths, jax.random.key(0))
  for row, n, before in zip(np.asarray(cropped), np.asarray(kept), lengths, strict=True):
    assert 1 <= n <= before
    np.testing.assert_array_equal(row[:n], np.arange(before - n + 1, before + 1))
  share = np.mean(np.asarray(kept)[lengths > 1] == lengths[lengths > 1])
  assert 0.4 < share < 0.9  # about half are whole, a few crops start at 0


def test_echoes_are_the_tokens_of_the_prompt_and_of_nothing_behind_it():
  """The prompt's rows go on with the completion, every token of which would be an echo."""
  prompts = np.array([[5, 6, 7, 8], [7, 5, 5, 5]], np.int32)
  ids = np.array([[6, 7, 9], [5, 7, 7]], np.int32)
  np.testing.assert_array_equal(C.echoes(ids, prompts, np.array([2, 1])),
                                [[True, False, False], [False, True, True]])


def test_an_echo_is_replaced_by_a_stretch_of_another_query():
  """Of its own query it would still tell the owner; of padding or of answers it would be no name."""
  lengths = np.array([3, 2, 4])
  prompts = np.where(np.arange(6) < lengths[:, None],
                     10 * np.arange(1, 4)[:, None] + np.arange(6), 99).astype(np.int32)
  echo = np.array([[True, True, True, False, True]] * 3)
  for seed in range(20):
    got = np.asarray(C.from_other_queries(echo, prompts, lengths, jax.random.key(seed)))[echo]
    for row, tokens in enumerate(got.reshape(3, 4)):
      other = tokens[0] // 10 - 1
      assert other != row and (tokens // 10 - 1 == other).all()
      np.testing.assert_array_equal(np.diff(tokens) % lengths[other], 1)


def test_what_the_query_says_teaches_nothing_about_the_owner_at_full_echo_noise(model):
  """Two owners' rows differ in an echo alone: noised, its gradient must not tell them apart."""
  def total(first, echo_noise):
    loss = jax.jit(C.PrefixLoss(token_noise=0.0, echo_noise=echo_noise, label_smoothing=0.0))
    rows = [Row((1, 2, 3), (first,), 2)] * 4
    batch = collate(rows, 4, seq_length=8, completion_length=4, pad_id=0)
    return float(loss(model.params, model, batch, jax.random.key(2))[0])

  assert total(2, 1.0) == total(3, 1.0)
  assert total(2, 0.0) != total(3, 0.0)
  assert total(5, 1.0) == total(5, 0.0)  # no echo


def test_with_a_filler_the_loss_never_reads_what_the_query_says(model):
  """Whatever the noise: a name that a fifth of the rows kept would still tell the owner."""
  def total(first, filler):
    loss = jax.jit(C.PrefixLoss(token_noise=0.2, echo_noise=0.8, label_smoothing=0.0,
                                filler=filler))
    batch = collate([Row((1, 2, 3), (first, 4), 2)] * 4, 4, seq_length=8, completion_length=4,
                    pad_id=0)
    return float(loss(model.params, model, batch, jax.random.key(2))[0])

  assert total(2, 0) == total(3, 0) != total(5, 0)
  assert total(2, None) != total(3, None)


def test_the_loss_sees_neither_padding_nor_padding_rows(model):
  loss = jax.jit(C.PrefixLoss(token_noise=0.0, echo_noise=0.0, label_smoothing=0.1))
  rows = [Row((1,), (4, 5, 6), 2), Row((1,), (7, 8), 4)]
  shape = dict(seq_length=8, completion_length=4)
  small = collate(rows, 2, pad_id=0, **shape)
  other_ids = collate(rows, 2, pad_id=9, **shape)
  key = jax.random.key(1)
  for a, b in zip(loss(model.params, model, small, key)[:2], loss(model.params, model, other_ids, key)[:2], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  # Crops depend on the batch's size; rows of one token have none.
  single = [Row((1,), (4,), 2), Row((1,), (7,), 4)]
  alone, among = (loss(model.params, model, collate(single, n, pad_id=0, **shape), key)[:2] for n in (2, 5))
  np.testing.assert_allclose(alone, among, rtol=1e-6)
  assert float(alone[1]) == 2
  empty = collate([], 2, pad_id=0, **shape)
  total, count, _ = loss(model.params, model, empty, key)
  assert float(count) == 0 and float(total) == 0


def test_accuracy_and_calibration_of_known_cases():
  """Ten answers at confidence .8 of which five are right: accuracy .5, error .3."""
  probabilities = np.tile([0.8, 0.2], (10, 1))
  owners = np.array([0] * 5 + [1] * 5)
  accuracy, error = C.accuracy_and_calibration(probabilities, owners)
  assert accuracy == 0.5
  assert error == pytest.approx(0.3)
  perfect = np.eye(4)
  assert C.accuracy_and_calibration(perfect, np.arange(4)) == (1.0, 0.0)


def test_the_fitted_temperature_undoes_the_one_that_was_applied():
  """Labels drawn from softmax(z); the classifier says softmax(3 z), so T must come out near 3."""
  rng = np.random.default_rng(0)
  z = rng.normal(size=(4000, OWNERS))
  probabilities = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  owners = np.array([rng.choice(OWNERS, p=p) for p in probabilities])
  sharp = C.at_temperature(probabilities, 1 / 3)
  temperature = C.fit_temperature(sharp, owners)
  assert temperature == pytest.approx(3.0, rel=0.1)
  before = C.accuracy_and_calibration(sharp, owners)[1]
  after = C.accuracy_and_calibration(C.at_temperature(sharp, temperature), owners)[1]
  assert after < 0.03 < before
  np.testing.assert_allclose(C.at_temperature(sharp, 3.0), probabilities, atol=1e-9)


def test_a_loss_that_reads_the_query_learns_from_it_and_from_no_padding(model):
  loss = jax.jit(C.PrefixLoss(token_noise=0.0, echo_noise=0.0, label_smoothing=0.0,
                              reads_query=True))
  shape = dict(seq_length=8, completion_length=4)
  key = jax.random.key(1)

  def total(prompt, pad_id=0):
    rows = [Row(prompt, (4, 5, 6), 2), Row((1, 9), (7, 8), 4)]
    return float(loss(model.params, model, collate(rows, 2, pad_id=pad_id, **shape), key)[0])

  assert total((1, 2)) == pytest.approx(total((1, 2), pad_id=9), rel=1e-6)
  assert abs(total((1, 2)) - total((3, 2))) > 1e-4

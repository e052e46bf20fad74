"""The evaluator: batches, sorting and padding must pair every example with its own result."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.data.batches import Row, collate
from dareu_jax.evaluation.evaluator import Evaluator, completion_statistics
from dareu_jax.models import handle
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder

V = 30
CONFIG = ModelConfig(vocab_size=V, embed_dim=16, mlp_dim=24, num_layers=1, num_heads=2,
                     num_kv_heads=2, head_dim=8, tie_embeddings=False)


class Numbers:
  """A tokenizer whose texts are the ids themselves."""

  eos_id = pad_id = 3

  def decode(self, ids):
    return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def rows():
  """Prompts of mixed lengths, so that sorting by length does not leave them in order."""
  rng = np.random.default_rng(0)
  return [Row(tuple(rng.integers(4, V, p).tolist()), tuple(rng.integers(4, V, c).tolist()), 0)
          for p, c in ((9, 3), (2, 6), (5, 1), (12, 4), (1, 9), (3, 2), (7, 7))]


@pytest.fixture(scope="module")
def model():
  module = Decoder(CONFIG, rngs=nnx.Rngs(params=1))
  module.lm_head[...] = module.lm_head[...] * 8  # decided enough that answers differ
  return handle.split(module, adapters_only=False)


@jax.jit
def logits(model, ids):
  return model.module.logits(ids)


def evaluator(model, batch_size, multiple=4):
  return Evaluator(model, Numbers(), batch_size, multiple, 64, 6)


def test_each_row_gets_the_answer_to_its_own_prompt(model, rows):
  """Answers are made in order of length, in batches that the last one does not fill."""
  together = evaluator(model, 3).answers(model.params, rows)
  for i, row in enumerate(rows):
    alone = evaluator(model, 1).answers(model.params, [row])
    assert together.texts[i] == alone.texts[0]
    assert together.lengths[i] == alone.lengths[0] and together.ended[i] == alone.ended[0]
    np.testing.assert_array_equal(together.ids[i, :alone.lengths[0]], alone.ids[0, :alone.lengths[0]])
  assert len(set(together.texts)) == len(rows)


def test_a_row_ends_with_the_end_token_alone(model):
  ends = [evaluator(model, 1).ends(Row((5,), completion, 0))
          for completion in ((6, Numbers.eos_id), (Numbers.eos_id, 6))]
  assert ends == [True, False]


def test_each_row_gets_the_logprobs_of_its_own_completion(model, rows):
  """They come by buckets of length."""
  together = evaluator(model, 3).logprobs(model.params, rows)
  for row, values in zip(rows, together, strict=True):
    shape = dict(seq_length=24, completion_length=12, pad_id=0)
    alone = completion_statistics(model, collate([row], 1, **shape))[0]
    assert values.shape == (len(row.completion),)
    np.testing.assert_allclose(values, alone[0, :len(row.completion)], atol=1e-4)


def test_statistics_are_those_of_the_whole_distribution(model, rows):
  """Chunks, buckets and a batch that is not full: entropy, variance and argmax of each token."""
  for row, seen in zip(rows, evaluator(model, 3).statistics(model.params, rows), strict=True):
    alone = np.asarray(logits(model, np.array([row.prompt + row.completion])), np.float64)
    logp = alone[0, len(row.prompt) - 1:-1]
    logp = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
    probs = np.exp(logp)
    mean = (probs * logp).sum(-1)
    np.testing.assert_allclose(seen.logprobs, logp[np.arange(len(logp)), row.completion], atol=1e-4)
    np.testing.assert_allclose(seen.entropies, -mean, atol=1e-4)
    np.testing.assert_allclose(seen.variances, (probs * logp**2).sum(-1) - mean**2, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(seen.predictions, logp.argmax(-1))


@pytest.mark.parametrize("shape", [(5, 4), (3, 24)])
def test_neither_batch_size_nor_padding_changes_a_statistic(model, rows, shape):
  """What fills a batch up must not be seen, and no row may get another's."""
  one, other = (evaluator(model, *each).statistics(model.params, rows) for each in ((1, 4), shape))
  for a, b in zip(one, other, strict=True):
    for x, y in zip(a, b, strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)  # single tokens, float32
    for seen in ("logprobs", "entropies"):
      assert getattr(a, seen).mean() == pytest.approx(
        getattr(b, seen).mean(), rel=1e-5, abs=1e-5)


def test_gradient_norms_are_of_each_row_alone(model, rows):
  """A gradient of the batch's mean would be one number for all."""
  norms = evaluator(model, 3).gradient_norms(model.params, rows)

  @partial(jax.jit, static_argnums=1)
  @jax.grad
  def gradient(params, row):
    alone = logits(model.with_params(params), jnp.array([row.prompt + row.completion]))
    logp = jax.nn.log_softmax(alone[0, len(row.prompt) - 1:-1])
    return -jnp.mean(logp[jnp.arange(len(row.completion)), jnp.array(row.completion)])

  for row, norm in list(zip(rows, norms, strict=True))[:3]:
    grads = jax.tree.leaves(gradient(model.params, row))
    assert norm == pytest.approx(np.mean([np.linalg.norm(g) for g in grads]), rel=1e-4)


def test_gradient_norms_do_not_know_whether_layers_are_scanned(rows):
  """A mean over tensors, of which stacked layers would be one."""
  norms = []
  for scan in (False, True):
    config = dataclasses.replace(CONFIG, num_layers=3, scan_layers=scan)
    twin = handle.split(Decoder(config, rngs=nnx.Rngs(params=1)), adapters_only=False)
    norms.append(evaluator(twin, 4).gradient_norms(twin.params, rows))
  np.testing.assert_allclose(*norms, rtol=1e-4)

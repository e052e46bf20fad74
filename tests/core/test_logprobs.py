"""Chunked log-probabilities, entropies and KLs against dense numpy."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core import logprobs as L
from dareu_jax.generation.strategies import Sample

B, D, V = 2, 6, 40
CHUNK = 4


def numpy_log_softmax(hidden, head, temperature):
  logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / temperature
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def draw(time, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, time, D)).astype(np.float32)
  head = rng.normal(size=(D, V)).astype(np.float32)
  return hidden, head, rng.integers(0, V, (B, time)).astype(np.int32)


def run(function, *arrays, **options):
  """Compiled whole, and anew: the chunk's size is read while tracing."""
  return jax.tree.map(np.asarray, jax.jit(lambda *arrays: function(*arrays, **options))(*arrays))


def tempered(temperature):
  return Sample(temperature).logprobs


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(L, "CHUNK", CHUNK)


# Within a chunk, one exactly, whole chunks, and a last one that is padded.
@pytest.mark.parametrize("time, temperature", [(3, 1.0), (4, 0.7), (8, 0.7), (11, 0.7), (11, 1.0)])
def test_chunked_logprobs_equal_the_dense_ones(time, temperature):
  """Chunks joined in the wrong order, padding let through, or a temperature not applied."""
  hidden, head, targets = draw(time)
  expected = np.take_along_axis(
    numpy_log_softmax(hidden, head, temperature), targets[..., None], -1)[..., 0]
  got, _ = run(L.logprobs_and_entropy, hidden, head, targets, distribution=tempered(temperature))
  assert got.shape == (B, time) and got.dtype == np.float32
  np.testing.assert_allclose(got, expected, atol=2e-6, rtol=1e-5)


def test_chunked_gradient_equals_the_closed_form():
  """∂ log π(y) / ∂ logits = (onehot(y) - π)/τ; the recomputation or the padding may add to it."""
  hidden, head, targets = draw(11)
  temperature, weight = 0.7, np.linspace(-1, 1, 22).reshape(2, 11)

  def loss(hidden, head):
    logprobs, _ = L.logprobs_and_entropy(hidden, head, targets, tempered(temperature))
    return jnp.sum(jnp.asarray(weight) * logprobs)

  by_hidden, by_head = jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, head)
  by_logits = np.eye(V)[targets] - np.exp(numpy_log_softmax(hidden, head, temperature))
  by_logits *= weight[..., None] / temperature
  np.testing.assert_allclose(by_hidden, by_logits @ head.T, atol=1e-5, rtol=1e-4)
  np.testing.assert_allclose(
    by_head, np.einsum("btd,btv->dv", hidden, by_logits), atol=1e-5, rtol=1e-4)


def test_no_array_of_all_logits_is_held():
  """Without recomputation the scan would stack the chunks' logits: the memory this file saves."""
  hidden, head, targets = draw(12)

  def largest(chunk):
    L.CHUNK = chunk  # set back by monkeypatch
    program = jax.make_jaxpr(jax.grad(
      lambda hidden: jnp.sum(L.logprobs_and_entropy(hidden, head, targets)[0])))(hidden)
    shapes = re.findall(r"[a-z]+\d*\[([\d,]+)\]", str(program))
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)

  assert largest(64) >= B * 12 * V  # the control: one chunk holds them all
  assert largest(CHUNK) < B * 12 * V


@pytest.mark.parametrize("time, temperature", [(3, 1.0), (11, 0.7)])
def test_entropy_is_that_of_the_tempered_distribution(time, temperature):
  """A sign, a base of the logarithm, or a temperature left out."""
  hidden, head, targets = draw(time)
  logprobs = numpy_log_softmax(hidden, head, temperature)
  expected = -(np.exp(logprobs) * logprobs).sum(axis=-1)
  options = {"distribution": tempered(temperature)}
  _, entropy = run(L.logprobs_and_entropy, hidden, head, targets, **options)
  np.testing.assert_allclose(entropy, expected, atol=1e-5)
  _, uniform = run(L.logprobs_and_entropy, np.zeros_like(hidden), head, targets, **options)
  np.testing.assert_allclose(uniform, math.log(V), rtol=1e-6)


def test_a_token_that_was_cut_off_is_finite_and_moves_nothing():
  """-inf in a ratio or a gradient is NaN in the next update's weights."""
  hidden, head, _ = draw(11)
  dense = numpy_log_softmax(hidden, head, 1.0)
  least, most = dense.argmin(axis=-1), dense.argmax(axis=-1)

  def total(hidden, targets):
    logprobs, entropy = L.logprobs_and_entropy(
      hidden, head, targets, Sample(top_k=3, top_p=0.9).logprobs)
    return jnp.sum(logprobs), (logprobs, entropy)

  gradient, (logprobs, entropy) = jax.jit(jax.grad(total, has_aux=True))(hidden, least)
  np.testing.assert_array_equal(logprobs, L.CUT_OFF)
  np.testing.assert_array_equal(gradient, 0.0)
  assert (entropy >= 0).all() and (entropy <= math.log(3)).all()
  gradient, (logprobs, _) = jax.jit(jax.grad(total, has_aux=True))(hidden, most)
  assert np.isfinite(gradient).all() and (logprobs > math.log(1 / 3) - 1e-6).all()


@pytest.mark.parametrize("time", [3, 11])
def test_kl_matches_the_sum_over_the_vocabulary(time):
  """Its direction: KL(π ‖ other) is not KL(other ‖ π)."""
  hidden, head, _ = draw(time)
  other_hidden, other_head, _ = draw(time, seed=1)
  p, q = numpy_log_softmax(hidden, head, 0.7), numpy_log_softmax(other_hidden, other_head, 0.7)
  got = run(L.policy_kl, hidden, head, other_hidden, other_head, temperature=0.7)
  np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(axis=-1), rtol=1e-4, atol=1e-5)
  assert np.abs(got - (np.exp(q) * (q - p)).sum(axis=-1)).max() > 0.1


@pytest.mark.parametrize("time, temperature", [(3, 1.0), (11, 0.7)])
def test_kl_of_a_policy_to_itself_is_zero(time, temperature):
  """Any other number would be a penalty at the first update, when nothing has changed.

  Two sides that are compiled apart may differ in their last bits.
  """
  hidden, head, _ = draw(time)
  kl = run(L.policy_kl, hidden, head, np.copy(hidden), np.copy(head), temperature=temperature)
  np.testing.assert_allclose(kl, np.zeros((B, time)), atol=1e-6)


def test_completion_hidden_starts_at_the_last_prompt_token():
  """Off by one: the state after token i predicts token i+1, and prompts differ in length."""
  hidden = np.arange(3 * 9, dtype=np.float32).reshape(3, 9, 1) * np.ones(2, np.float32)
  prompt_lengths = np.array([1, 4, 6])
  got = np.asarray(L.completion_hidden(hidden, prompt_lengths, 4))
  assert got.shape == (3, 4, 2)
  for row, n in enumerate(prompt_lengths):
    inside = min(4, 9 - (n - 1))  # beyond the row anything goes, but it must be finite
    np.testing.assert_array_equal(got[row, :inside], hidden[row, n - 1 : n - 1 + inside])
  assert np.isfinite(got).all()


def test_statistics_are_of_the_whole_distribution():
  hidden, head, targets = draw(7)
  found = run(L.token_statistics, hidden, head, targets)
  want = numpy_log_softmax(hidden, head, 1.0)
  p = np.exp(want)
  mean = (p * want).sum(-1)
  np.testing.assert_allclose(
    found.logprobs, np.take_along_axis(want, targets[..., None], -1)[..., 0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.entropies, -mean, rtol=1e-4)
  np.testing.assert_allclose(found.variances, (p * (want - mean[..., None])**2).sum(-1), rtol=1e-4)
  np.testing.assert_array_equal(found.predictions, want.argmax(-1))


def test_rows_of_a_padded_embedding_have_no_probability():
  """Qwen2.5 embeds 151,936 ids for 151,665 tokens; what is sampled beyond them has no text."""
  hidden, head, targets = draw(5)
  targets, tokens = targets % 30, 30
  padded = L.Head(head, tokens)
  for function in (L.logprobs_and_entropy, L.token_statistics):
    for own, cut in zip(run(function, hidden, padded, targets),
                        run(function, hidden, head[:, :tokens], targets), strict=True):
      np.testing.assert_allclose(own, cut, rtol=1e-5, atol=1e-6)
  other, _, _ = draw(5, seed=1)
  np.testing.assert_allclose(
    run(L.policy_kl, hidden, padded, other, padded),
    run(L.policy_kl, hidden, head[:, :tokens], other, head[:, :tokens]), rtol=1e-5, atol=1e-6)

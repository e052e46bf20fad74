"""Token choice against brute force over random logits."""

import jax
import numpy as np
import pytest
from scipy import special

from dareu_jax.generation.strategies import Greedy, Sample

V = 12


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(size=(64, V)).astype(np.float32) * 2


def softmax(logits):
  p = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


def brute_force(row, temperature, top_k, top_p):
  """Probabilities of one row: the k best, of these the shortest prefix that reaches p."""
  order = sorted(range(V), key=lambda token: -row[token])[: top_k or V]
  p = softmax(row[order].astype(np.float64) / temperature)
  size = next((n for n in range(1, len(order) + 1) if p[:n].sum() >= top_p), len(order))
  result = np.zeros(V)
  result[order[:size]] = p[:size] / p[:size].sum()
  return result


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("k", [1, 3, V - 1, V, V + 5])
def test_top_k_keeps_exactly_k(k, logits):
  """Off by one in the threshold, or an error for a k beyond the vocabulary."""
  logprobs = np.asarray(Sample(top_k=k).logprobs(logits))
  assert set(np.isfinite(logprobs).sum(axis=-1)) == {min(k, V)}
  for row, kept in zip(logits, np.isfinite(logprobs), strict=True):
    assert set(np.flatnonzero(kept)) == set(np.argsort(-row)[:k])


@pytest.mark.parametrize("strategy", [Sample(top_k=2), Sample(top_p=0.5)], ids=["top_k", "top_p"])
def test_a_tie_lets_in_no_more_tokens(strategy):
  """By a threshold all four would stay: twice as many as asked for, or a nucleus of 1."""
  logprobs = np.asarray(strategy.logprobs(np.zeros((1, 4), np.float32)))
  assert np.isfinite(logprobs[0]).tolist() == [True, True, False, False]


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_nucleus(p, logits):
  """The token that crosses p belongs to it, and no more; the likeliest one always stays."""
  for row, kept in zip(logits, np.isfinite(Sample(top_p=p).logprobs(logits)), strict=True):
    mass = softmax(row)
    assert kept.any() and mass[kept].min() > np.max(mass[~kept], initial=0.0)
    assert mass[kept].sum() >= p - 1e-6
    assert mass[kept].sum() - mass[kept].min() < p + 1e-6


def test_zero_and_one_turn_the_truncation_off(logits):
  """`top_k=0` must keep all, not none."""
  np.testing.assert_allclose(
    np.exp(Sample(top_k=0, top_p=1.0).logprobs(logits)), softmax(logits), atol=1e-6)


def test_without_truncation_the_unlikeliest_token_stays():
  """The likelier ones add up to 1 in float32: a nucleus of 1 would end before it."""
  assert np.isfinite(Sample(top_p=1.0).logprobs(np.float32([[0.0, -30.0, -60.0]]))).all()


@pytest.mark.parametrize("temperature, k, p", [
  (0.7, 0, 1.0), (1.5, 4, 1.0), (0.7, 0, 0.8), (1.3, 5, 0.7), (1.0, 3, 0.95)])
def test_logprobs_are_normalised_within_what_is_kept(temperature, k, p, logits):
  """Temperature after the nucleus, or a nucleus of the whole and not of the top k."""
  got = np.exp(Sample(temperature, k, p).logprobs(logits))
  expected = np.stack([brute_force(row, temperature, k, p) for row in logits])
  np.testing.assert_allclose(got, expected, atol=2e-6)
  np.testing.assert_allclose(got.sum(axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("strategy", [Sample(0.7), Sample(1.5, top_k=6, top_p=0.8)],
                         ids=["temperature", "truncated"])
def test_frequencies_are_those_of_the_distribution(strategy, logits):
  """Drawn from other probabilities than the log-probs that are returned."""
  n = 20_000
  row = logits[3]
  tokens, logprobs, entropies = map(np.asarray, strategy(np.tile(row, (n, 1)), keys(n)))
  expected = brute_force(row, strategy.temperature, strategy.top_k, strategy.top_p)
  frequencies = np.bincount(tokens, minlength=V) / n
  spread = np.sqrt(expected * (1 - expected) / n)
  assert (np.abs(frequencies - expected) <= 4.5 * spread).all()  # one in 10^4 by chance; seeded
  assert (frequencies > 0.05).sum() >= 2
  np.testing.assert_allclose(logprobs, np.log(expected[tokens]), atol=1e-5)
  np.testing.assert_allclose(entropies, special.entr(expected).sum(), atol=1e-4)


def test_rows_with_one_key_draw_alike_and_others_do_not(logits):
  """One key for the batch would make equal prompts answer alike."""
  same = np.tile(logits[:1] / 4, (200, 1))
  tokens = Sample()(same, jax.numpy.broadcast_to(jax.random.key(1), (200,))).tokens
  assert len(set(np.asarray(tokens))) == 1
  tokens = Sample()(same, keys(200)).tokens
  assert len(set(np.asarray(tokens))) > 3


def test_greedy_takes_the_likeliest_and_ignores_keys(logits):
  """Its log-probs are the model's: not 0, as of a distribution on one token."""
  tokens, logprobs, entropies = Greedy()(logits, keys(64))
  again = Greedy()(logits, keys(64, seed=9)).tokens
  np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
  np.testing.assert_array_equal(tokens, again)
  np.testing.assert_allclose(logprobs, np.log(softmax(logits).max(axis=-1)), atol=1e-5)
  np.testing.assert_allclose(entropies, special.entr(softmax(logits)).sum(axis=-1), atol=1e-4)


@pytest.mark.parametrize("shape", [(V,), (4, 16, V)])
def test_log_probs_are_along_the_last_axis_whatever_is_before_it(shape, logits):
  """Learners ask for [B, T, V]; along another axis tokens would compete with other positions."""
  strategy = Sample(temperature=0.7, top_k=7, top_p=0.8)
  rows = logits[:max(1, int(np.prod(shape[:-1])))]
  np.testing.assert_allclose(
    strategy.logprobs(rows.reshape(shape)), strategy.logprobs(rows).reshape(shape), rtol=1e-5)


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Sample(top_k=3), Sample(top_p=0.5)])
def test_of_logits_that_are_no_numbers_a_token_that_exists_is_taken(strategy):
  """An id past the vocabulary would read another row's memory, or end as an index error."""
  tokens = np.asarray(strategy(np.full((4, V), np.nan, np.float32), keys(4)).tokens)
  assert ((tokens >= 0) & (tokens < V)).all()

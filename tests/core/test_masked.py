"""Masked statistics against NumPy on the ragged rows themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core import masked
from dareu_jax.core.masked import join, last_valid, take_from

LENGTHS = [3, 0, 5, 1]
TIME = 5
GARBAGE = [0.0, 1e30, np.nan, np.inf]


def padded(rows, garbage):
  x = np.full((len(rows), TIME), garbage, np.float32)
  for i, row in enumerate(rows):
    x[i, :len(row)] = row
  return jnp.asarray(x)


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  return [rng.normal(2.0, 3.0, n).astype(np.float32) for n in LENGTHS]


@pytest.fixture(scope="module")
def mask():
  return masked.length_mask(jnp.array(LENGTHS), TIME)


def test_mask_is_true_before_the_length(mask):
  """Off by one, the last token is lost or a pad counted."""
  assert mask.dtype == bool
  assert np.asarray(mask).astype(int).tolist() == [
    [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_sum_and_mean_are_those_of_the_valid_entries(rows, mask, garbage):
  """x * mask lets NaN through; a mean over rows weighs short rows too much."""
  flat = np.concatenate(rows).astype(np.float64)
  x = padded(rows, garbage)
  np.testing.assert_allclose(masked.masked_sum(x, mask), flat.sum(), rtol=1e-6)
  np.testing.assert_allclose(masked.masked_mean(x, mask), flat.mean(), rtol=1e-6)


def test_mean_of_nothing_is_zero(mask):
  """0 / 0 is NaN, and would spread."""
  x = jnp.full(mask.shape, jnp.nan)
  assert float(masked.masked_mean(x, jnp.zeros_like(mask))) == 0.0


@pytest.mark.parametrize("garbage", GARBAGE)
def test_whitened_entries_have_mean_zero_and_variance_one(rows, mask, garbage):
  """Padding may enter the mean or the variance, or stay as it was."""
  white = np.asarray(masked.masked_whiten(padded(rows, garbage), mask))
  valid = np.concatenate([white[i, :n] for i, n in enumerate(LENGTHS)]).astype(np.float64)
  flat = np.concatenate(rows).astype(np.float64)
  assert abs(valid.mean()) < 1e-6 and abs(valid.var() - 1) < 1e-5
  np.testing.assert_allclose(valid, (flat - flat.mean()) / flat.std(), atol=1e-5)
  assert all((white[i, n:] == 0).all() for i, n in enumerate(LENGTHS))


def test_whitening_constants_gives_finite_numbers(mask):
  """Division by a zero deviation."""
  white = np.asarray(masked.masked_whiten(jnp.full(mask.shape, 4.0), mask))
  assert np.isfinite(white).all() and np.abs(white).max() < 0.1


@pytest.mark.parametrize("garbage", GARBAGE)
def test_explained_variance_is_one_minus_the_ratio_of_variances(rows, mask, garbage):
  """Bias of the prediction is no error here; padding is none either."""
  rng = np.random.default_rng(1)
  guesses = [(0.7 * row + rng.normal(1.0, 0.5, row.shape)).astype(np.float32) for row in rows]
  targets, predictions = np.concatenate(rows), np.concatenate(guesses)
  expected = 1 - np.var(targets - predictions) / np.var(targets)
  value = masked.explained_variance(padded(guesses, garbage), padded(rows, garbage), mask)
  assert 0.5 < expected < 1
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_explained_variance_is_one_for_perfect_predictions(rows, mask):
  """A shift by a constant leaves it at one as well."""
  x = padded(rows, np.nan)
  np.testing.assert_allclose(masked.explained_variance(x, x, mask), 1.0, rtol=1e-6)
  np.testing.assert_allclose(masked.explained_variance(x + 3, x, mask), 1.0, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -0.3, 1.7, 1e4])
def test_explained_variance_is_zero_for_constant_targets(constant):
  """The mean of equal floats can be off by one ulp, so that their variance is tiny but not zero."""
  for lengths in ([3, 1, 5], [3, 0, 5, 1], [5, 5, 5], [2, 5, 4, 3, 1]):
    mask = masked.length_mask(jnp.array(lengths), TIME)
    targets = padded([np.full(n, constant) for n in lengths], np.nan)
    predictions = jnp.arange(float(mask.size)).reshape(mask.shape)
    assert float(masked.explained_variance(predictions, targets, mask)) == 0.0


def test_join_puts_each_completion_right_behind_its_prompt():
  joined = join(
    jnp.array([[3, 4, 5, 0], [6, 7, 0, 0]]), jnp.array([3, 2]), jnp.array([[9, 8], [7, 6]]))
  np.testing.assert_array_equal(joined[0, :5], [3, 4, 5, 9, 8])
  np.testing.assert_array_equal(joined[1, :4], [6, 7, 7, 6])


def test_what_was_joined_is_taken_apart_again():
  prompts, lengths = jnp.array([[3, 4, 5, 0], [6, 7, 0, 0]]), jnp.array([3, 2])
  completions = jnp.array([[9, 8], [7, 6]])
  np.testing.assert_array_equal(take_from(join(prompts, lengths, completions), lengths, 2),
                                completions)
  ends = take_from(jnp.arange(6.0).reshape(2, 3), jnp.array([1, 2]), 2)
  np.testing.assert_array_equal(ends, [[1.0, 2.0], [5.0, 5.0]])


def test_last_valid_takes_each_rows_own_end():
  x = jnp.arange(12.0).reshape(2, 6)
  np.testing.assert_array_equal(last_valid(x, jnp.array([1, 4])), [0.0, 9.0])
  np.testing.assert_array_equal(last_valid(x[..., None], jnp.array([6, 2]))[:, 0], [5.0, 7.0])


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3)])
def test_beyond_the_end_the_last_entry_is_taken_again(shape):
  """A prompt that fills its row: the slots behind it must not come from another place."""
  x = jnp.arange(np.prod(shape)).reshape(shape)
  taken = take_from(x, jnp.array([2, 0]), 5)
  np.testing.assert_array_equal(taken[0], x[0, jnp.array([2, 3, 3, 3, 3])])
  np.testing.assert_array_equal(taken[1], x[1, jnp.array([0, 1, 2, 3, 3])])

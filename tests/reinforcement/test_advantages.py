"""GAE against rlax and against the definition as a double sum."""

import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from dareu_jax.reinforcement.advantages import generalized_advantage_estimation

TIME = 9


def episodes(seed):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(4, TIME)).astype(np.float32),
          rng.normal(size=(4, TIME)).astype(np.float32), np.array([TIME, 1, 4, 6]))


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 1.0), (0.97, 0.0)])
def test_advantages_equal_rlax_row_by_row(discount, gae_lambda):
  """rlax knows no padding: each row is cut to its own length for it."""
  rewards, values, lengths = episodes(0)
  advantages, returns = generalized_advantage_estimation(
    jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(lengths), discount=discount,
    gae_lambda=gae_lambda)
  for i, n in enumerate(lengths):
    # The episode ends: the last discount is 0.
    discounts = np.full(n, discount, np.float32)
    discounts[-1] = 0.0
    want = rlax.truncated_generalized_advantage_estimation(
      rewards[i, :n], discounts, gae_lambda, np.append(values[i, :n], 99.0))
    np.testing.assert_allclose(advantages[i, :n], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns[i, :n], want + values[i, :n], rtol=1e-4, atol=1e-5)
    assert not np.any(advantages[i, n:])
    assert not np.any(returns[i, n:])


def test_lambda_one_is_the_return_minus_the_value():
  rewards, values, lengths = episodes(1)
  _, returns = generalized_advantage_estimation(
    jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(lengths), discount=0.9, gae_lambda=1.0)
  for i, n in enumerate(lengths):
    for t in range(n):
      want = sum(0.9 ** (s - t) * rewards[i, s] for s in range(t, n))
      assert returns[i, t] == pytest.approx(want, abs=1e-4)


def test_what_lies_past_a_row_changes_no_advantage():
  """NaN included: a policy's values past the end are arbitrary."""
  rewards, values, lengths = episodes(2)
  clean = generalized_advantage_estimation(
    jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(lengths), discount=1.0, gae_lambda=0.9)
  past = np.arange(TIME) >= lengths[:, None]
  rewards[past], values[past] = np.nan, np.nan
  dirty = generalized_advantage_estimation(
    jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(lengths), discount=1.0, gae_lambda=0.9)
  np.testing.assert_array_equal(clean[0], dirty[0])
  np.testing.assert_array_equal(clean[1], dirty[1])

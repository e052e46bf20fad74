"""GAE against rlax and against the definition as a double sum; baselines without a critic."""

import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from dareu_jax.rl.advantages import (
  generalized_advantage_estimation,
  group_advantages,
  regression_values,
)

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


def test_leave_one_out_is_the_return_against_the_mean_of_the_others():
  returns = np.random.default_rng(0).normal(size=12).astype(np.float32)
  got = group_advantages(jnp.asarray(returns), group_size=4, normalize=False)
  for i, value in enumerate(returns):
    group = i // 4 * 4
    others = [returns[j] for j in range(group, group + 4) if j != i]
    np.testing.assert_allclose(got[i], value - np.mean(others), atol=1e-5)


def test_normalized_groups_have_mean_zero_and_deviation_one_at_any_scale():
  """GRPO: a query whose responses hardly differ weighs as much as one whose responses do."""
  returns = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
  returns *= np.array([[0.01], [1.0], [100.0]])
  got = np.asarray(group_advantages(jnp.asarray(returns.reshape(-1)), group_size=5, normalize=True))
  np.testing.assert_allclose(got.reshape(3, 5).mean(1), 0.0, atol=1e-5)
  np.testing.assert_allclose(got.reshape(3, 5).std(1), 1.0, rtol=1e-3)
  np.testing.assert_array_equal(np.argsort(got.reshape(3, 5)), np.argsort(returns))  # the sign


def test_a_group_of_equal_returns_teaches_nothing():
  """0 / 0 without the small term."""
  for normalize in (False, True):
    got = group_advantages(jnp.full(6, -0.25), group_size=3, normalize=normalize)
    np.testing.assert_array_equal(got, 0.0)


def batch_of_responses():
  rng = np.random.default_rng(4)
  lengths = np.tile([9, 5, 1, 7, 9, 3, 8, 6], 16)
  mask = np.arange(9) < lengths[:, None]
  rewards = np.where(mask, rng.normal(size=mask.shape), 0.0).astype(np.float32)
  return rewards, np.where(mask, -rng.random(mask.shape), 0.0).astype(np.float32), lengths


@pytest.mark.parametrize(("segment", "discount"), [(1, 1.0), (2, 0.9), (9, 1.0)])
def test_regression_values_are_the_least_squares_fit_of_what_was_seen(segment, discount):
  """Against numpy's least squares on features that are written down token by token. With one
  segment nothing of a response's score is known before its end."""
  rewards, transformed, lengths = batch_of_responses()
  rows, features, targets = [], [], []
  for i, length in enumerate(lengths):
    others = [rewards[j].sum() for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
    for t in range(length):
      last = t // segment * segment
      known = transformed[i, last - 1] if last else transformed[:, 0].mean()
      seen = np.array([1.0, np.mean(others), rewards[i, :t].sum(), known])
      features.append(np.outer(seen, ((t + 1) / 9) ** np.arange(3)).ravel())
      targets.append(rewards[i, t:] @ discount ** np.arange(rewards.shape[1] - t))
      rows.append((i, t))
  fitted = np.array(features) @ np.linalg.lstsq(np.array(features), np.array(targets))[0]
  want = np.zeros_like(rewards)
  want[tuple(np.array(rows).T)] = fitted
  got = regression_values(rewards, transformed, jnp.asarray(lengths), group_size=4,
                          segment_length=segment, discount=discount)
  np.testing.assert_allclose(got, want, atol=0.02)
  np.testing.assert_array_equal(np.asarray(got)[want == 0.0], 0.0)


def test_regression_values_of_rewards_that_never_vary_are_the_rewards_to_come():
  """Features that depend on each other must not blow up the fit."""
  lengths = jnp.full(4, 6)
  rewards = jnp.full((4, 6), -0.5)
  values = regression_values(rewards, jnp.full((4, 6), -1.0), lengths, group_size=2,
                             segment_length=2, discount=1.0)
  np.testing.assert_allclose(values, np.tile(-0.5 * np.arange(6, 0, -1), (4, 1)), atol=0.05)

"""PPO losses against loops over tokens and against rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from dareu_jax.rl.losses import policy_loss, value_loss

SHAPE = (3, 6)
MASK = np.arange(6) < np.array([6, 2, 4])[:, None]


def arrays(seed, count):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(count)]


def test_policy_loss_equals_rlax_on_the_valid_tokens():
  new, old, advantages = arrays(0, 3)
  loss, metrics = policy_loss(new, old, advantages, MASK, clip_eps=0.2)
  ratio = np.exp(new - old)[MASK]
  want = rlax.clipped_surrogate_pg_loss(jnp.asarray(ratio), jnp.asarray(advantages[MASK]), 0.2)
  assert float(loss) == pytest.approx(float(want), rel=1e-5)
  assert float(metrics["clip_fraction"]) == pytest.approx(np.mean(np.abs(ratio - 1) > 0.2))


def test_the_first_inner_step_is_the_plain_policy_gradient():
  """Ratio 1: no clipping, and the gradient of the surrogate is that of -A log π."""
  new, advantages = arrays(1, 2)
  loss, metrics = policy_loss(new, new, advantages, MASK, clip_eps=0.2)
  assert float(loss) == pytest.approx(-advantages[MASK].mean(), rel=1e-5)
  assert float(metrics["clip_fraction"]) == 0 and float(metrics["approx_kl"]) == 0
  gradient = jax.grad(lambda x: policy_loss(x, new, advantages, MASK, clip_eps=0.2)[0])(new)
  np.testing.assert_allclose(gradient, np.where(MASK, -advantages, 0) / MASK.sum(), rtol=1e-5)


def test_padding_changes_neither_loss_nor_gradient():
  """A NaN or an infinity past the end must not reach the gradient either."""
  new, old, advantages = arrays(2, 3)
  dirty = np.where(MASK, old, -np.inf).astype(np.float32)

  def loss(x, old):
    return policy_loss(x, old, advantages, MASK, clip_eps=0.2)[0]

  np.testing.assert_array_equal(loss(new, old), loss(new, dirty))
  np.testing.assert_array_equal(jax.grad(loss)(new, old), jax.grad(loss)(new, dirty))


def test_the_order_of_the_batch_changes_no_loss():
  new, old, advantages = arrays(4, 3)
  order = np.array([2, 0, 1])
  for loss in (policy_loss, value_loss):
    want = loss(new, old, advantages, MASK, clip_eps=0.2)[0]
    got = loss(new[order], old[order], advantages[order], MASK[order], clip_eps=0.2)[0]
    assert float(got) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("loss", [policy_loss, value_loss])
def test_integers_are_refused(loss):
  """They would truncate what they stand beside."""
  new, old, _ = arrays(5, 3)
  with pytest.raises(AssertionError):
    loss(new, old, np.ones(SHAPE, int), MASK, clip_eps=0.2)


def test_value_loss_equals_a_loop_over_tokens():
  values, old, returns = arrays(3, 3)
  loss, metrics = value_loss(values, old, returns, MASK, clip_eps=0.3)
  terms, active = [], []
  for v, o, r, valid in zip(*(x.ravel() for x in (values, old, returns, MASK)), strict=True):
    if valid:
      clipped = o + min(max(v - o, -0.3), 0.3)
      terms.append(0.5 * max((v - r) ** 2, (clipped - r) ** 2))
      active.append((clipped - r) ** 2 > (v - r) ** 2)
  assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
  assert float(metrics["value_clip_fraction"]) == pytest.approx(np.mean(active))

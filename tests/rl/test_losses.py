"""PPO losses against loops over tokens and against rlax; distillation against the KL by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from scipy import special

from dareu_jax.core import logprobs
from dareu_jax.rl.losses import kl_to_teacher, policy_loss, recall_loss, value_loss

SHAPE = (3, 6)
LENGTHS = np.array([6, 2, 4])
MASK = np.arange(6) < LENGTHS[:, None]
TOLD = np.arange(6) < LENGTHS[:, None] - 1  # without the end token


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
  # The estimator of KL(old ‖ new): the other direction would have 1/ρ.
  assert float(metrics["approx_kl"]) == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-4)


def test_a_token_that_was_cut_off_leaves_loss_and_gradient_finite():
  """Truncated sampling gives it -100, and exp(100) is no float32."""
  new, advantages = arrays(6, 2)
  for now, old in ((new, new - 200), (new - 200, new)):
    loss, gradient = jax.value_and_grad(
      lambda x, old=old: policy_loss(x, old, advantages, MASK, clip_eps=0.2)[0])(now)
    assert np.isfinite(float(loss)) and np.isfinite(gradient).all()
  _, metrics = policy_loss(new, new - 200, advantages, MASK, clip_eps=0.2)
  assert float(metrics["approx_kl"]) == pytest.approx(np.exp(20.0) - 21.0, rel=1e-5)


def test_the_first_inner_step_is_the_plain_policy_gradient():
  """Ratio 1: no clipping, and the gradient of the surrogate is that of -A log π."""
  new, advantages = arrays(1, 2)
  loss, metrics = policy_loss(new, new, advantages, MASK, clip_eps=0.2)
  assert float(loss) == pytest.approx(-advantages[MASK].mean(), rel=1e-5)
  assert float(metrics["clip_fraction"]) == 0 and float(metrics["approx_kl"]) == 0
  gradient = jax.grad(lambda x: policy_loss(x, new, advantages, MASK, clip_eps=0.2)[0])(new)
  np.testing.assert_allclose(gradient, np.where(MASK, -advantages, 0) / MASK.sum(), rtol=1e-5)


EPSILON = 0.2  # of recall


def recalled(logits, ids, level=0.0):
  """(loss, metrics) of true answers with these logits [B, T, V]."""
  logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
  return recall_loss(logprobs, LENGTHS, level=level, epsilon=EPSILON)


def test_recall_is_the_expectation_of_the_policy_gradient_over_all_actions():
  """Every action summed up, π(a) ∇ log π(a) r(a) with r = -1 / (ε + π) for the true token alone."""
  rng = np.random.default_rng(3)
  ids = rng.integers(0, 7, SHAPE)
  logits = rng.normal(size=(*SHAPE, 7)).astype(np.float32)
  gradient = jax.grad(lambda x: recalled(x, ids)[0])(logits)
  probs, want = special.softmax(logits, axis=-1), np.zeros(logits.shape)
  for b, t in np.argwhere(TOLD):
    for action in range(7):
      reward = -float(action == ids[b, t]) / (EPSILON + probs[b, t, action])
      score = (np.arange(7) == action) - probs[b, t]  # ∇ log π(a) at the logits
      want[b, t] -= probs[b, t, action] * score * reward / TOLD.sum()
  np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-7)


def test_an_answer_at_the_level_of_strangers_is_left_alone():
  """Mean log-probs of -1, -2 and -3 beside a level of exp(-2.5): the last is not recalled."""
  logprobs = jnp.broadcast_to(jnp.array([-1.0, -2.0, -3.0])[:, None], SHAPE)

  def loss(x, level):
    return recall_loss(x, LENGTHS, level=level, epsilon=EPSILON)[0]

  assert np.any(jax.grad(loss)(logprobs, 0.0)[2])
  gradient = jax.grad(loss)(logprobs, np.exp(-2.5))
  assert np.all(gradient[:2][TOLD[:2]] > 0) and not np.any(gradient[2])
  _, metrics = recall_loss(logprobs, LENGTHS, level=np.exp(-2.5), epsilon=EPSILON)
  assert float(metrics["recalled_share"]) == pytest.approx(2 / 3)


def test_the_end_of_an_answer_is_not_unlearned():
  """It counts for how probable the answer is all the same."""
  logprobs = np.full(SHAPE, -1.0, np.float32)
  gradient = jax.grad(lambda x: recall_loss(x, LENGTHS, level=0.1, epsilon=EPSILON)[0])(logprobs)
  np.testing.assert_array_equal(np.asarray(gradient) != 0, TOLD)
  logprobs[1, 1] = -9.0  # the end of the second, whose mean is then -5
  _, metrics = recall_loss(logprobs, LENGTHS, level=0.1, epsilon=EPSILON)
  assert float(metrics["recalled_share"]) == pytest.approx(2 / 3)
  only_an_end = recall_loss(logprobs[:1], np.array([1]), level=0.1, epsilon=EPSILON)
  assert float(only_an_end[0]) == 0


def test_neither_padding_nor_rows_of_padding_change_what_is_recalled():
  logprobs = -np.abs(arrays(5, 1)[0])

  def loss(x):
    return recall_loss(x, LENGTHS, level=0.1, epsilon=EPSILON)[0]

  for clean, other in zip(jax.value_and_grad(loss)(logprobs),
                          jax.value_and_grad(loss)(np.where(MASK, logprobs, -np.inf)), strict=True):
    np.testing.assert_array_equal(clean, other)
  empty = recall_loss(logprobs, 0 * LENGTHS, level=0.1, epsilon=EPSILON)
  assert float(empty[0]) == 0 and float(empty[1]["recalled_share"]) == 0


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
  with pytest.raises((AssertionError, TypeError)):
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


@pytest.fixture
def states():
  rng = np.random.default_rng(0)
  hidden, teacher = rng.normal(size=(2, 3, 11, 5)).astype(np.float32)
  head, teacher_head = rng.normal(size=(2, 5, 17)).astype(np.float32)
  return hidden, head, teacher, teacher_head, np.arange(11) < np.array([[11], [4], [7]])


def kl_by_hand(hidden, head, teacher, teacher_head, mask):
  """The sum over tokens and words, in float64."""
  p = special.softmax(teacher.astype(np.float64) @ teacher_head, axis=-1)
  q = special.log_softmax(hidden.astype(np.float64) @ head, axis=-1)
  return float(special.rel_entr(p, np.exp(q)).sum(-1)[mask].mean())


@pytest.mark.parametrize("chunk", [4, 11, 64])
def test_distillation_is_the_kl_summed_by_hand_at_any_chunk(states, chunk, monkeypatch):
  monkeypatch.setattr(logprobs, "CHUNK", chunk)
  assert float(kl_to_teacher(*states)) == pytest.approx(kl_by_hand(*states), rel=1e-5)


def test_distillation_is_from_teacher_to_student(states):
  """The reverse KL lets the student drop what the teacher says."""
  hidden, head, teacher, teacher_head, mask = states
  reverse = kl_by_hand(teacher, teacher_head, hidden, head, mask)
  assert abs(float(kl_to_teacher(*states)) - reverse) > 0.1


def test_a_student_that_is_the_teacher_costs_nothing(states):
  """But for last bits: both sides go through the same operations, maybe in other loops."""
  hidden, head, _, _, mask = states
  assert abs(float(kl_to_teacher(hidden, head, hidden, head, mask))) < 1e-6


def test_padding_changes_no_distillation(states):
  hidden, head, teacher, teacher_head, mask = states
  wide = ((0, 0), (0, 70), (0, 0))
  padded = [np.pad(x, wide, constant_values=9.0) for x in (hidden, teacher)]
  grad = jax.grad(kl_to_teacher)
  other = (padded[0], head, padded[1], teacher_head, np.pad(mask, wide[:2]))
  assert float(kl_to_teacher(*other)) == pytest.approx(float(kl_to_teacher(*states)), rel=1e-5)
  np.testing.assert_allclose(grad(*map(jnp.asarray, other))[:, :11],
                             grad(*map(jnp.asarray, states)), atol=1e-6)

"""Rewards against a loop that follows the formulas letter by letter."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dareu_jax.rl import rewards
from dareu_jax.rl.rewards import LogTransform

BATCH, TIME = 5, 12


def transform(score, epsilon, c_seg):
  kept = 1 - min(max(score, epsilon), 1 - epsilon)
  return min(max(math.log(kept) / c_seg, -1.0), 0.0)


def reward_by_loop(scores, n, kl, *, kappa, epsilon, c_seg, beta, form, t_max):
  """One row, in plain Python."""
  result, seen, previous = [0.0] * len(scores), [], 0.0
  for t in range(1, n + 1):
    if t % kappa == 0 or t == n:
      seen.append(transform(scores[t - 1], epsilon, c_seg))
    mean = sum(seen) / len(seen) if seen else 0.0
    value = mean - previous if form in ("telescoped", "neutral") else mean
    if form == "absorbing" and t == n:
      value += (t_max - n) * mean
    result[t - 1] = value - beta * kl[t - 1]
    previous = mean
  return result


def arrays(seed):
  rng = np.random.default_rng(seed)
  scores = rng.random((BATCH, TIME)).astype(np.float32)
  scores[0, :3] = 0.0, 1.0, 0.5
  kl = rng.random((BATCH, TIME)).astype(np.float32)
  return scores, np.array([TIME, 1, 5, 7, 3]), kl


@pytest.mark.parametrize("form", rewards.REWARD_FORMS)
@pytest.mark.parametrize("kappa", [1, 4, 5, 64])
def test_rewards_follow_the_formula(form, kappa):
  """A shifted invocation, or a mean over the wrong number of them, would show."""
  scores, lengths, kl = arrays(0)
  got = rewards.token_rewards(
    jnp.asarray(scores), jnp.asarray(lengths), jnp.asarray(kl), segment_length=kappa,
    transform=LogTransform(0.01, 3.0), kl_coef=0.3, form=form, max_length=20)
  if form == "neutral":
    kl = kl - np.mean([kl[i, t] for i in range(BATCH) for t in range(lengths[i])])
  want = [reward_by_loop(scores[i], lengths[i], kl[i], kappa=kappa, epsilon=0.01, c_seg=3.0,
                         beta=0.3, form=form, t_max=20) for i in range(BATCH)]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(st.floats(0, 1), st.floats(0.001, 0.49), st.floats(0.1, 20))
@settings(max_examples=200, deadline=None)
def test_log_transform_lies_in_its_range(score, epsilon, c_seg):
  got = float(LogTransform(epsilon, c_seg)(jnp.float32(score)))
  assert -1 <= got <= 0
  assert got == pytest.approx(transform(score, epsilon, c_seg), abs=1e-5)


def test_the_linear_transform_is_the_score_itself():
  scores, lengths, kl = map(jnp.asarray, arrays(0))
  got = rewards.token_rewards(
    scores, lengths, kl, segment_length=1, transform=rewards.linear_transform, kl_coef=0.0,
    form="telescoped", max_length=TIME)
  for row, n, own in zip(got, lengths, scores, strict=True):
    np.testing.assert_allclose(row.sum(), -own[:n].mean(), rtol=1e-5)


def test_a_telescoped_return_is_the_last_mean():
  """Potential-based shaping: the undiscounted sum of rewards without KL is A_n, whatever the path."""
  scores, lengths, _ = arrays(1)
  common = dict(segment_length=3, transform=LogTransform(0.01, 2.0))
  got = rewards.token_rewards(
    jnp.asarray(scores), jnp.asarray(lengths), jnp.zeros_like(scores), kl_coef=0.0,
    form="telescoped", max_length=TIME, **common)
  means = rewards.segment_means(jnp.asarray(scores), jnp.asarray(lengths), **common)
  np.testing.assert_allclose(got.sum(axis=1), means[:, -1], rtol=1e-5)


def test_the_published_form_pays_for_ending_early_and_the_others_do_not():
  """The hole in the published reward: the same scores, a shorter answer, a higher return."""
  scores = jnp.full((2, TIME), 0.6)
  lengths, kl = jnp.array([3, TIME]), jnp.zeros((2, TIME))
  common = dict(
    segment_length=1, transform=LogTransform(0.01, 2.0), kl_coef=0.0, max_length=TIME)
  returns = {form: rewards.token_rewards(scores, lengths, kl, form=form, **common).sum(axis=1)
             for form in rewards.REWARD_FORMS}
  assert returns["published"][0] > returns["published"][1] + 0.5
  for form in ("telescoped", "absorbing", "neutral"):
    assert abs(returns[form][0] - returns[form][1]) < 1e-5


@pytest.mark.parametrize("form", ["absorbing", "neutral"])
def test_padding_changes_no_reward(form):
  scores, lengths, kl = arrays(2)
  common = dict(segment_length=4, transform=LogTransform(0.01, 3.0), kl_coef=0.1, form=form,
                max_length=TIME)
  pad = ((0, 0), (0, 6))
  wide = rewards.token_rewards(
    jnp.pad(scores, pad, constant_values=0.9), jnp.asarray(lengths),
    jnp.pad(kl, pad, constant_values=7.0), **common)
  narrow = rewards.token_rewards(
    jnp.asarray(scores), jnp.asarray(lengths), jnp.asarray(kl), **common)
  np.testing.assert_allclose(wide[:, :TIME], narrow, rtol=1e-6)
  assert not np.any(wide[:, TIME:])


@pytest.mark.parametrize("form", rewards.REWARD_FORMS)
def test_the_order_of_the_batch_changes_no_reward(form):
  scores, lengths, kl = map(jnp.asarray, arrays(4))
  common = dict(segment_length=3, transform=LogTransform(0.01, 2.0), kl_coef=0.1, form=form,
                max_length=TIME)
  order = np.array([3, 0, 4, 2, 1])
  got = rewards.token_rewards(scores[order], lengths[order], kl[order], **common)
  want = rewards.token_rewards(scores, lengths, kl, **common)
  np.testing.assert_allclose(got, want[order], atol=1e-6)


@pytest.mark.parametrize("form", rewards.REWARD_FORMS)
def test_rewards_are_float32_whatever_the_scores(form):
  """Half precision would round a score of .998 to 1."""
  scores, lengths, kl = map(jnp.asarray, arrays(5))
  got = rewards.token_rewards(
    scores.astype(jnp.bfloat16), lengths, kl.astype(jnp.bfloat16), segment_length=2,
    transform=LogTransform(0.01, 1.0), kl_coef=0.1, form=form, max_length=TIME)
  assert got.dtype == jnp.float32


def test_integer_scores_are_refused():
  """An integer reward array once truncated every reward of a well-known library to zero."""
  with pytest.raises((AssertionError, TypeError)):
    LogTransform(0.01, 1.0)(jnp.array([0, 1]))


def test_an_unknown_form_is_refused():
  with pytest.raises((ValueError, TypeError), match="sideways"):
    rewards.token_rewards(jnp.zeros((1, 2)), jnp.ones(1, int), jnp.zeros((1, 2)), segment_length=1,
                          transform=LogTransform(0.1, 1.0), kl_coef=0.0, form="sideways", max_length=2)


def test_a_centered_log_ratio_charges_no_length():
  """What it charges in all is nothing, wherever the policy has gone; padding is not counted."""
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(-1, 1, (2, 4, 6)).astype(np.float32)
  lengths = np.array([6, 1, 3, 5])
  mask = np.arange(6) < lengths[:, None]
  charged = np.asarray(rewards.centered_log_ratio(ours, theirs - 3, mask))
  assert abs(charged.sum()) < 1e-4 and not charged[~mask].any()
  ratio = (ours - theirs)[mask]
  np.testing.assert_allclose(charged[mask], ratio - ratio.mean(), atol=1e-5)
  junk = np.where(mask, theirs, 1e6)
  np.testing.assert_allclose(rewards.centered_log_ratio(ours, junk - 3, mask), charged, atol=1e-5)


def test_the_neutral_form_pays_tokens_that_stray_less_than_the_mean():
  """Neutral in the mean alone: a response's own KL still counts, a quiet tail gives some back."""
  kl = np.array([[0.4] * 6 + [0.0] * 6, [0.4] * 12], np.float32)
  scores = np.zeros((2, 12), np.float32)
  got = rewards.token_rewards(scores, np.array([12, 12]), kl, segment_length=2,
                              transform=LogTransform(1e-6, 1.0), kl_coef=0.1, form="neutral",
                              max_length=12)
  np.testing.assert_allclose(got.sum(axis=1), [0.12, -0.12], atol=1e-4)


def test_the_neutral_form_charges_a_batch_nothing_for_its_length():
  """The return without scores sums to zero over a batch, where the telescoped form's is negative."""
  rng = np.random.default_rng(1)
  lengths = np.array([7, 2, 4])
  mask = np.arange(7) < lengths[:, None]
  kl = np.where(mask, rng.uniform(0.1, 1, (3, 7)), 9.0).astype(np.float32)
  scores = np.zeros((3, 7), np.float32)
  common = dict(segment_length=2, transform=LogTransform(1e-6, 1.0), kl_coef=0.5, max_length=7)
  neutral, telescoped = (np.asarray(rewards.token_rewards(scores, lengths, kl, form=form, **common))
                         for form in ("neutral", "telescoped"))
  assert abs(neutral.sum()) < 1e-3 and telescoped.sum() < -1
  want = telescoped + 0.5 * np.where(mask, kl[mask].mean(), 0.0)
  np.testing.assert_allclose(neutral, want, atol=1e-5)

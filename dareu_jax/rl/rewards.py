"""Token rewards from attribution scores (DareU, arXiv 2605.30919), in four forms."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import chex
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dareu_jax.core.masked import Array, length_mask, masked_mean

RewardForm = Literal["published", "telescoped", "absorbing", "neutral"]
CHANCE = 0.36
REWARD_FORMS: tuple[RewardForm, ...] = get_args(RewardForm)


Transform = Callable[[Float[Array, "*batch"]], Float[Array, "*batch"]]  # scores to [-1, 0]


@dataclasses.dataclass(frozen=True)
class LogTransform:
  """Maps attribution scores to rewards in [-1, 0].

      T(b) = clip( ln(1 - clip(b, ε, 1-ε)) / C_seg, -1, 0 )

  Source: DareU, log-transformed attribution reward.
  """

  epsilon: float  # ε in (0, .5)
  c_seg: float  # C_seg > 0; small is sharp and clips early, large is flat

  def __call__(self, scores: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """float32; falls with b, the probability of the forget owners."""
    chex.assert_type(scores, float)
    kept = 1.0 - jnp.clip(scores.astype(jnp.float32), self.epsilon, 1.0 - self.epsilon)
    return jnp.clip(jnp.log(kept) / self.c_seg, -1.0, 0.0)


def least_c_seg(chance: float) -> float:
  """The C_seg at which the score of chance has a reward of -CHANCE; rewards are at least -1.

      C = -ln(1 - |F| / O) / CHANCE

  Where many owners are forgotten, a response that looks like nobody's scores high. With a smaller
  C_seg it costs all there is to cost, and nothing tells it from the true answer.

  Args:
    chance: |F| / O in [0, 1).
  """
  return -math.log1p(-chance) / CHANCE


def linear_transform(scores: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
  """T(b) = -b, which the paper compares the log transform with."""
  chex.assert_type(scores, float)
  return -scores.astype(jnp.float32)


def segment_means(prefix_scores: Float[Array, "B T"], lengths: Int[Array, " B"], *,
                  segment_length: int, transform: Transform) -> Float[Array, "B T"]:
  """The running mean of transformed scores over the invocations of the attribution function.

      A_t = mean of T(b(y_≤s)) over the invocations s ≤ t, s in {κ, 2κ, ...} ∪ {n}

  and 0 before the first.

  Args:
    prefix_scores: b(y_≤t) at t = 1..T.
    lengths: n, the valid tokens of each row.
    segment_length: κ >= 1.
    transform: T.

  Returns: float32; beyond the length the last value, A_n.
  """
  chex.assert_rank([prefix_scores, lengths], [2, 1])
  time = prefix_scores.shape[1]
  t = jnp.arange(1, time + 1)
  n = lengths[:, None]
  invoked = ((t % segment_length == 0) & (t <= n)) | (t == n)
  total = jnp.cumsum(jnp.where(invoked, transform(prefix_scores), 0.0), axis=1)
  return total / jnp.maximum(jnp.cumsum(invoked, axis=1), 1)


def token_rewards(
    prefix_scores: Float[Array, "B T"], lengths: Int[Array, " B"], kl: Float[Array, "B T"], *,
    segment_length: int, transform: Transform, kl_coef: float, form: RewardForm,
    max_length: int) -> Float[Array, "B T"]:
  """Rewards of each response token, from prefix scores and the KL to the previous epoch's policy.

      published    r_t = A_t - β KL_t
      telescoped   r_t = (A_t - A_{t-1}) - β KL_t, A_0 = 0: potential-based, the return is A_n
      absorbing    published, and r_n gets (T_max - n) A_n more, as if y had continued to the limit
      neutral      telescoped with KL_t - mean KL in place of KL_t, the mean over the batch's tokens

  Every A_t is at most 0: in the published form each further token can only lower the return, which
  rewards ending early; the other forms remove this incentive. Every KL_t is a cost too, except in
  the last form, which penalizes deviations from the previous policy and not length.

  Args:
    prefix_scores: b(y_≤t).
    lengths: n, the valid tokens of each row.
    kl: KL(π ‖ π_prev) at each token.
    segment_length: κ.
    transform: T.
    kl_coef: β.
    form: one of these forms.
    max_length: T_max, the longest response that the sampler allows.

  Returns: float32, 0 beyond the length.

  Source: DareU; `telescoped` after Ng et al. 1999 (potential-based shaping).
  """
  chex.assert_rank([prefix_scores, lengths, kl], [2, 1, 2])
  chex.assert_equal_shape([prefix_scores, kl])
  chex.assert_type([prefix_scores, kl], float)
  if form not in REWARD_FORMS:
    raise ValueError(f"form is {form!r}: it must be one of {', '.join(REWARD_FORMS)}")
  time = prefix_scores.shape[1]
  means = segment_means(prefix_scores, lengths, segment_length=segment_length,
                        transform=transform)
  mask = length_mask(lengths, time)
  reward = means
  if form in ("telescoped", "neutral"):
    reward = jnp.diff(means, axis=1, prepend=0.0)
  elif form == "absorbing":
    n = lengths[:, None]
    last = jnp.arange(1, time + 1) == n
    reward = means + jnp.where(last, (max_length - n) * means, 0.0)
  if form == "neutral":
    kl = kl - masked_mean(kl, mask)
  return jnp.where(mask, reward - kl_coef * kl, 0.0)


def centered_log_ratio(logprobs: Float[Array, "B T"], anchor_logprobs: Float[Array, "B T"],
                       mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """Log-ratio of each token to an anchor policy, minus the batch's mean.

      c_t = ℓ_t - mean ℓ,    ℓ_t = log π(y_t) - log π_N(y_t)

  The mean of ℓ is above 0, so ℓ itself would penalize each further token and reward ending early;
  its distance from the mean depends on which tokens are chosen, not on how many.

  Args:
    logprobs, anchor_logprobs: log-probs of the sampled tokens under π and π_N.
    mask: which tokens count.

  Returns: sums to 0 over the valid tokens, 0 elsewhere.
  """
  chex.assert_equal_shape([logprobs, anchor_logprobs, mask])
  ratio = logprobs - anchor_logprobs
  return jnp.where(mask, ratio - masked_mean(ratio, mask), 0.0)

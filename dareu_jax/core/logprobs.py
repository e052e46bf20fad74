"""Log-probabilities, entropies and KLs from hidden states, in chunks of the time axis.

The logits of a chunk are computed, used and dropped (and recomputed in the backward pass), so that
no float32 tensor of [B, T, V] is ever stored.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int, Shaped

from dareu_jax.core.masked import Array, take_from
from dareu_jax.core.matmul import matmul

CHUNK = 64  # positions whose logits are stored at a time
CUT_OFF = -100.0  # log-prob of a token that cannot be sampled: finite, but exp is 0 in float32


@struct.dataclass
class Head:
  """A language-model head; ids that the tokenizer does not have are no part of its distribution.

  Attributes:
    weights: [D, V]; an embedding may have more rows than there are tokens.
    num_tokens: the number of tokens, n <= V.
  """

  weights: Float[Array, "D V"]
  num_tokens: int = struct.field(pytree_node=False)

  def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B n"]:
    """Logits, float32."""
    return logits(hidden, self.weights)[..., :self.num_tokens]


AnyHead = Head | Float[Array, "D V"]


def logits(hidden: Float[Array, "*B D"], head: AnyHead) -> Float[Array, "*B n"]:
  """Logits of hidden states, float32."""
  if isinstance(head, Head):
    return head(hidden)
  return matmul(hidden, head, jnp.float32)


def completion_hidden(hidden: Float[Array, "B S D"], prompt_lengths: Int[Array, " B"],
                      completion_time: int) -> Float[Array, "B {completion_time} D"]:
  """The hidden states that predict a row's completion tokens.

  Args:
    hidden: hidden states of rows that hold prompt and completion.
    prompt_lengths: number of tokens of each prompt.
    completion_time: T, static.

  Returns: entry t predicts completion token t (entries past the row are arbitrary).
  """
  return take_from(hidden, prompt_lengths - 1, completion_time)


def logprobs_and_entropy(
    hidden: Float[Array, "B T D"], head: AnyHead, targets: Int[Array, "B T"],
    distribution: Callable[[Array], Array] = jax.nn.log_softmax,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """log π(target | hidden) and the entropy of π; for old, new and reference policies alike.

  Args:
    hidden: the states that predict each target.
    head: the language-model head.
    targets: token ids.
    distribution: logits [..., V] float32 -> log-probs [..., V] of the distribution that is sampled
      from, such as `generation.strategies.Sample(...).logprobs`.

  Returns: (log-probs, entropies in nats), float32. A target that the distribution
    cuts off gets `CUT_OFF` in place of -inf.
  """

  def chunk(hidden, targets):
    logprobs = distribution(logits(hidden, head))
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    kept = jnp.where(jnp.isneginf(logprobs), 0.0, logprobs)
    return jnp.maximum(chosen, CUT_OFF), -jnp.sum(jnp.exp(logprobs) * kept, axis=-1)

  return _over_time(chunk, hidden, targets)


class TokenStatistics(NamedTuple):
  """Statistics of the distribution π_t at each response token y_t, all [B, T]."""

  logprobs: jax.Array  # log π_t(y_t)
  entropies: jax.Array  # - E log π_t, nats
  variances: jax.Array  # Var log π_t
  predictions: jax.Array  # argmax π_t, int32


def token_statistics(hidden: Float[Array, "B T D"], head: AnyHead,
                     targets: Int[Array, "B T"]) -> TokenStatistics:
  """TokenStatistics of the model itself, float32; targets are y_t."""

  def chunk(hidden, targets):
    logprobs = jax.nn.log_softmax(logits(hidden, head), axis=-1)
    probs = jnp.exp(logprobs)
    # A logit of -inf would make 0 · -inf.
    kept = jnp.where(probs > 0, logprobs, 0.0)
    mean = jnp.sum(probs * kept, axis=-1)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    variance = jnp.sum(probs * (kept - mean[..., None]) ** 2, axis=-1)
    return chosen, -mean, variance, jnp.argmax(logprobs, axis=-1)

  return TokenStatistics(*_over_time(chunk, hidden, targets))


def policy_kl(hidden: Float[Array, "B T D"], head: AnyHead,
              other_hidden: Float[Array, "B T D"], other_head: AnyHead, *,
              temperature: float = 1.0) -> Float[Array, "B T"]:
  """KL(π ‖ π_other) over the whole vocabulary at each position, float32.

  Exactly 0 where both distributions are identical.
  """

  def chunk(hidden, other_hidden):
    logprobs = jax.nn.log_softmax(logits(hidden, head) / temperature, axis=-1)
    other_logprobs = jax.nn.log_softmax(logits(other_hidden, other_head) / temperature, axis=-1)
    return jnp.sum(jnp.exp(logprobs) * (logprobs - other_logprobs), axis=-1)

  return _over_time(chunk, hidden, other_hidden)


def over_logits(token_fn: Callable[..., Array], states: Sequence[tuple[Array, AnyHead]],
                *arrays: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
  """Computes a number per token from the logits of one or several models.

  Args:
    token_fn: (logits [B, c, V] float32 of each model, *arrays [B, c]) -> [B, c].
    states: (hidden [B, T, D], head [D, V]) of each model.
    arrays: further arguments of `token_fn`.
  """
  hiddens, heads = zip(*states, strict=True)

  def chunk(*parts):
    return token_fn(*map(logits, parts[:len(heads)], heads), *parts[len(heads):])

  return _over_time(chunk, *hiddens, *arrays)


def _over_time(chunk_fn, *arrays):
  """Applies `chunk_fn` to [B, c, ...] slices of arrays [B, T, ...] and joins its [B, c] results."""
  batch, time = arrays[0].shape[:2]
  if time <= CHUNK:
    return jax.checkpoint(chunk_fn)(*arrays)
  chunks = -(-time // CHUNK)

  def to_chunks(x):
    pad = [(0, 0), (0, chunks * CHUNK - time)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pad).reshape(batch, chunks, CHUNK, *x.shape[2:]).swapaxes(0, 1)

  outputs = jax.lax.map(lambda xs: jax.checkpoint(chunk_fn)(*xs), tuple(map(to_chunks, arrays)))
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(batch, chunks * CHUNK)[:, :time], outputs)

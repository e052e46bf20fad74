"""Log-probabilities, entropies and KLs from hidden states, in chunks of the time axis.

The logits of a chunk are made, used and dropped (and made again in the backward pass), so that no
float32 tensor of [B, T, V] is ever held.
"""

import jax
import jax.numpy as jnp

CHUNK = 64  # positions whose logits are held at a time


def completion_hidden(hidden, prompt_lengths, completion_time):
  """The hidden states that predict a row's completion tokens.

  Args:
    hidden: [B, S, D]; of rows that hold prompt and completion on end.
    prompt_lengths: [B] int.
    completion_time: T, static.

  Returns: [B, T, D]; entry t predicts completion token t (what lies past the row is arbitrary).
  """
  index = prompt_lengths[:, None] - 1 + jnp.arange(completion_time)
  index = jnp.minimum(index, hidden.shape[1] - 1)
  return jnp.take_along_axis(hidden, index[..., None], axis=1)


def token_logprobs(hidden, head, targets, *, temperature=1.0):
  """log π(target | hidden), with π = softmax(hidden head / temperature).

  Args:
    hidden: [B, T, D].
    head: [D, V].
    targets: [B, T] int.
    temperature: of the sampling distribution.

  Returns: [B, T] float32.
  """

  def chunk(hidden, targets):
    logits = _logits(hidden, head, temperature)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  return _over_time(chunk, hidden, targets)


def entropy(hidden, head, *, temperature=1.0):
  """Entropy of softmax(hidden head / temperature) in nats: hidden [B, T, D] -> [B, T] float32."""

  def chunk(hidden):
    logprobs = jax.nn.log_softmax(_logits(hidden, head, temperature), axis=-1)
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)

  return _over_time(chunk, hidden)


def policy_kl(hidden, head, other_hidden, other_head, *, temperature=1.0):
  """KL(π ‖ π_other) over the whole vocabulary at each position.

  Args:
    hidden, other_hidden: [B, T, D].
    head, other_head: [D, V].

  Returns: [B, T] float32; exactly 0 where both are the same numbers.
  """

  def chunk(hidden, other_hidden):
    logprobs = jax.nn.log_softmax(_logits(hidden, head, temperature), axis=-1)
    other = jax.nn.log_softmax(_logits(other_hidden, other_head, temperature), axis=-1)
    return jnp.sum(jnp.exp(logprobs) * (logprobs - other), axis=-1)

  return _over_time(chunk, hidden, other_hidden)


def _logits(hidden, head, temperature):
  return jnp.dot(hidden, head, preferred_element_type=jnp.float32) / temperature


def _over_time(chunk_fn, *arrays):
  """Applies `chunk_fn` to [B, c, ...] slices of arrays [B, T, ...] and joins the [B, c] results."""
  batch, time = arrays[0].shape[:2]
  if time <= CHUNK:
    return chunk_fn(*arrays)
  chunks = -(-time // CHUNK)

  def to_chunks(x):
    pad = [(0, 0), (0, chunks * CHUNK - time)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pad).reshape(batch, chunks, CHUNK, *x.shape[2:]).swapaxes(0, 1)

  outputs = jax.lax.map(lambda xs: jax.checkpoint(chunk_fn)(*xs), tuple(map(to_chunks, arrays)))
  return outputs.swapaxes(0, 1).reshape(batch, chunks * CHUNK)[:, :time]

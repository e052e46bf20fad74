"""Prefill and decode in one jit.

The cache holds the prompt, right-padded to P slots, then the completion from slot P on: all rows
write the same slot at the same step, while each row's positions count its own valid tokens.

Q prompts, B completions, P prompt slots, T completion slots, V vocab.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dareu_jax.generation.strategies import Greedy, Sample
from dareu_jax.models.handle import Model
from dareu_jax.parallel.mesh import constrain_cache, on_one_device


class Completions(NamedTuple):
  """Sampled completions.

  Attributes:
    ids: the pad id beyond a row's length.
    lengths: valid tokens, the end-of-sequence token included where there is one.
    ended: whether the row ended with the end token (and not at the limit).
    logprobs: log-probs under the sampling distribution, 0 beyond the length.
    entropies: of the sampling distribution at each token, nats, 0 beyond the length.
    steps: decoding steps taken, at most T.
  """

  ids: Int[Array, "B T"]
  lengths: Int[Array, " B"]
  ended: Bool[Array, " B"]
  logprobs: Float[Array, "B T"]
  entropies: Float[Array, "B T"]
  steps: Int[Array, ""]


# The last 1/STRAGGLERS of the rows to end continue in a batch of their own: with fewer, the others
# wait longer; with more, the batch of its own has more to do.
STRAGGLERS = 4


class _Rows(NamedTuple):
  """What does not change while rows are decoded."""

  keys: jax.Array  # [B]
  prompt_lengths: jax.Array  # [B]
  key_positions: jax.Array  # [B, P+T]


class _DecodeState(NamedTuple):
  logits: jax.Array  # [B, V] of the next token
  completions: Completions
  cache: tuple


@functools.partial(
  jax.jit, static_argnames=("strategy", "max_new_tokens", "eos_id", "pad_id"))
def generate(model: Model, prompt_ids: Int[Array, "Q P"], prompt_lengths: Int[Array, " Q"],
             keys: Key[Array, " B"], *, strategy: Greedy | Sample, max_new_tokens: int, eos_id: int,
             pad_id: int) -> Completions:
  """Completes prompts, each with B / Q completions in a row; a prompt is read once for all of them.

  Args:
    model: the decoder.
    prompt_ids: right-padded.
    prompt_lengths: at least 1.
    keys: one per completion; a sample depends only on its own key.
    strategy: how the next token is chosen.
    max_new_tokens: T.
    eos_id: a row is done when it samples it; if negative, at the limit.
    pad_id: may equal eos_id.
  """
  assert len(keys) % len(prompt_ids) == 0, f"{len(keys)} completions of {len(prompt_ids)} prompts"
  decoder = model.module.gathered()
  step = functools.partial(
    _step, decoder, strategy, eos_id=eos_id, pad_id=pad_id, prompt_slots=prompt_ids.shape[1])
  rows, state = _prefilled(decoder, prompt_ids, prompt_lengths, keys, max_new_tokens, pad_id)

  def decode_until(live, rows, state):
    """Decodes until at most so many rows are live."""
    def going(state):
      return (state.completions.steps < max_new_tokens) & (jnp.sum(~state.completions.ended) > live)

    return jax.lax.while_loop(going, functools.partial(step, rows), state)

  count = 0 if eos_id < 0 else _num_stragglers(len(keys))
  state = decode_until(count, rows, state)
  if not count:
    return state.completions
  # A few long rows would keep all others waiting. Those that have not ended come first here.
  stragglers = jnp.argsort(state.completions.ended, stable=True)[:count]
  apart = decode_until(0, *_take((rows, state), stragglers))
  return jax.tree.map(
    lambda whole, part: part if whole.ndim == 0 else whole.at[stragglers].set(part),
    state.completions, apart.completions)


def _prefilled(decoder, prompt_ids, prompt_lengths, keys, max_new_tokens, pad_id):
  """The rows, and the state before their first token; a prompt is read once for all of its rows."""
  (prompts, prompt_slots), batch = prompt_ids.shape, len(keys)
  key_positions = _slot_positions(prompt_lengths, prompt_slots, max_new_tokens)
  hidden, cache = decoder(
    prompt_ids, jnp.broadcast_to(jnp.arange(prompt_slots), prompt_ids.shape), prompt_lengths,
    key_positions=key_positions,
    cache=decoder.empty_cache(prompts, prompt_slots + max_new_tokens))
  last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]
  if batch > prompts:
    cache = jax.tree.map(
      lambda x: constrain_cache(jnp.repeat(x, batch // prompts, axis=x.ndim - 4)), cache)
    last, prompt_lengths, key_positions = (
      jnp.repeat(x, batch // prompts, axis=0) for x in (last, prompt_lengths, key_positions))
  completions = Completions(
    ids=jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
    lengths=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    logprobs=jnp.zeros((batch, max_new_tokens), jnp.float32),
    entropies=jnp.zeros((batch, max_new_tokens), jnp.float32),
    steps=jnp.int32(0),
  )
  return (_Rows(keys, prompt_lengths, key_positions),
          _DecodeState(decoder.head(last), completions, cache))


def _step(decoder, strategy, rows, state, *, eos_id, pad_id, prompt_slots):
  """The state with one token more in every row that has not ended."""
  old = state.completions
  step, live = old.steps, ~old.ended
  step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, step)
  tokens, logprobs, entropies = strategy(state.logits, step_keys)

  def written(array, values, padding):
    return array.at[:, step].set(jnp.where(live, values, padding))

  completions = Completions(
    ids=written(old.ids, tokens, pad_id),
    lengths=old.lengths + live,
    ended=old.ended | (tokens == eos_id),
    logprobs=written(old.logprobs, logprobs, 0.0),
    entropies=written(old.entropies, entropies, 0.0),
    steps=step + 1,
  )
  hidden, cache = decoder(
    tokens[:, None], (rows.prompt_lengths + step)[:, None], cache=state.cache,
    key_positions=rows.key_positions, slot=prompt_slots + step)
  return _DecodeState(decoder.head(hidden[:, 0]), completions, cache)


def _num_stragglers(batch):
  """How many rows are decoded apart; on a mesh of several devices none, since their caches would
  have to travel."""
  return batch // STRAGGLERS if on_one_device(jax.sharding.get_abstract_mesh()) else 0


def _take(tree, rows):
  """Rows of every array of a tree; of a cache [(L,) B, K, S, H] along its batch axis."""
  def take(x):
    axis = 1 if x.ndim == 5 else 0
    return x if x.ndim == 0 else jnp.take(x, rows, axis=axis)

  return jax.tree.map(take, tree)


def _slot_positions(prompt_lengths, prompt_slots, max_new_tokens):
  """The position of the token in each cache slot, large in a prompt's padding: [B, P+T] int."""
  slots = jnp.arange(prompt_slots + max_new_tokens)
  lengths = prompt_lengths[:, None]
  in_completion = jnp.where(slots < prompt_slots, jnp.iinfo(jnp.int32).max // 2,
                            lengths + slots - prompt_slots)
  return jnp.where(slots < lengths, slots, in_completion)


def row_keys(key: Key[Array, ""], rows: Int[np.ndarray | Array, " B"]) -> Key[Array, " B"]:
  """One key per row, from the row's number."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(rows))

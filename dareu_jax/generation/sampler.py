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
from dareu_jax.parallel.mesh import constrain_cache


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


LAST = 4  # the last 1/LAST of the rows to end go on in a batch of their own


class _Rows(NamedTuple):
  """What does not change while rows are decoded."""

  keys: jax.Array  # [B]
  prompt_lengths: jax.Array  # [B]
  key_positions: jax.Array  # [B, P+T]


class _DecodeState(NamedTuple):
  step: jax.Array
  logits: jax.Array  # [B, V] of the next token
  done: jax.Array  # [B]
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
    eos_id: a row is done when it samples it.
    pad_id: may equal eos_id.
  """
  decoder = model.module.gathered()
  prompts, prompt_slots = prompt_ids.shape
  batch = len(keys)
  key_positions = _slot_positions(prompt_lengths, prompt_slots, max_new_tokens)
  positions = jnp.broadcast_to(jnp.arange(prompt_slots), prompt_ids.shape)
  hidden, cache = decoder(
    prompt_ids, positions, prompt_lengths, key_positions=key_positions,
    cache=decoder.empty_cache(prompts, prompt_slots + max_new_tokens))
  last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]
  if batch > prompts:
    cache = jax.tree.map(
      lambda x: constrain_cache(jnp.repeat(x, batch // prompts, axis=x.ndim - 4)), cache)
    last, prompt_lengths, key_positions = (
      jnp.repeat(x, batch // prompts, axis=0) for x in (last, prompt_lengths, key_positions))

  def decode(rows, state):
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, state.step)
    tokens, logprobs, entropies = strategy(state.logits, step_keys)
    live = ~state.done

    def written(old, new):
      return old.at[:, state.step].set(jnp.where(live, new, 0.0))

    done = state.done | (tokens == eos_id)
    old = state.completions
    completions = Completions(
      ids=old.ids.at[:, state.step].set(jnp.where(live, tokens, pad_id)),
      lengths=old.lengths + live,
      ended=done,
      logprobs=written(old.logprobs, logprobs),
      entropies=written(old.entropies, entropies),
      steps=state.step + 1,
    )
    hidden, cache = decoder(
      tokens[:, None], (rows.prompt_lengths + state.step)[:, None], cache=state.cache,
      key_positions=rows.key_positions, slot=prompt_slots + state.step)
    return _DecodeState(state.step + 1, decoder.head(hidden[:, 0]), done, completions, cache)

  def decode_until(live, rows, state):
    """Decodes until at most so many rows are live."""
    def going(state):
      return (state.step < max_new_tokens) & (jnp.sum(~state.done) > live)

    return jax.lax.while_loop(going, functools.partial(decode, rows), state)

  start = Completions(
    ids=jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
    lengths=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    logprobs=jnp.zeros((batch, max_new_tokens), jnp.float32),
    entropies=jnp.zeros((batch, max_new_tokens), jnp.float32),
    steps=jnp.int32(0),
  )
  rows = _Rows(keys, prompt_lengths, key_positions)
  state = _DecodeState(jnp.int32(0), decoder.head(last), jnp.zeros(batch, bool), start, cache)
  count = _rows_to_part(batch)
  state = decode_until(count, rows, state)
  if not count:
    return state.completions
  # A few long rows would keep all others waiting.
  last_rows = jnp.argsort(state.done, stable=True)[:count]  # those that are not done come first
  parted = decode_until(0, *_take((rows, state), last_rows))
  return jax.tree.map(
    lambda whole, part: part if whole.ndim == 0 else whole.at[last_rows].set(part),
    state.completions, parted.completions)


def _rows_to_part(batch):
  """How many rows are left when they are parted from the batch; on a mesh of several devices none,
  since their caches would have to travel."""
  mesh = jax.sharding.get_abstract_mesh()
  return batch // LAST if mesh.empty or mesh.size == 1 else 0


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

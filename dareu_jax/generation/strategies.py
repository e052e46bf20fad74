"""How the next token is chosen: small frozen (hashable, so static under jit) dataclasses."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from dareu_jax.core.masked import Array


class Choice(NamedTuple):
  """The next tokens, with statistics of the distribution that they were drawn from."""

  tokens: Int[Array, " B"]
  logprobs: Float[Array, " B"]  # of the tokens
  entropies: Float[Array, " B"]  # of the distribution, nats


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most likely token."""

  def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Choice:
    """The distribution is the model's; no key is used."""
    del keys
    return _choice(jax.nn.log_softmax(logits, axis=-1), jnp.argmax(logits, axis=-1))


@dataclasses.dataclass(frozen=True)
class Sample:
  """Sampling at a temperature from the `top_k` likeliest tokens, restricted to the smallest set
  that reaches probability `top_p` (the nucleus; Holtzman et al. 2020)."""

  temperature: float = 1.0
  top_k: int = 0  # 0: off
  top_p: float = 1.0  # 1: off

  def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Choice:
    """The distribution is the one that is sampled."""
    logprobs = self.logprobs(logits)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    # As `jax.random.categorical`, in .6 of its time on a CPU.
    return _choice(logprobs, _first_maximum(logprobs + noise))

  def logprobs(self, logits: Float[Array, "*batch V"]) -> Float[Array, "*batch V"]:
    """Log-probs of the truncated distribution; -inf outside of it.

    Among equal logits the lower token id counts as likelier, so that ties do not admit more tokens.
    """
    logits = logits / self.temperature
    vocab = logits.shape[-1]
    if self.top_p < 1.0 or 0 < self.top_k < vocab:
      order = jnp.argsort(-logits, axis=-1, stable=True)
      descending = jnp.take_along_axis(logits, order, axis=-1)
      ranks = jnp.arange(vocab)
      kept = ranks < (self.top_k or vocab)
      probs = jax.nn.softmax(jnp.where(kept, descending, -jnp.inf), axis=-1)
      before = jnp.cumsum(probs, axis=-1) - probs  # probability of the tokens likelier than this
      kept &= (before < self.top_p) | (ranks == 0)
      # Back from ranks to token ids.
      kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
      logits = jnp.where(kept, logits, -jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def _first_maximum(x):
  """argmax over the last axis, in two passes that vectorize; one over pairs (value, index) does
  not on a CPU."""
  slots = jnp.arange(x.shape[-1])
  highest = jnp.max(x, axis=-1, keepdims=True)
  return jnp.min(jnp.where(x == highest, slots, x.shape[-1] - 1), axis=-1)  # of NaNs the last


def _choice(logprobs, tokens):
  kept = jnp.where(jnp.isneginf(logprobs), 0.0, logprobs)  # 0 · -inf would not be a number
  return Choice(tokens, jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0],
                -jnp.sum(jnp.exp(logprobs) * kept, axis=-1))

"""Embeddings, biases and norm scales whose gradients are summed in float32 and rounded once.

Each is used at every token, so that its gradient has as many terms. A sum in bfloat16 stops growing
at 256 terms of one size: where half of 4096 tokens were the same, an embedding's gradient was a
quarter off, and some biases' a fifth. Results in float32 are the plain ones, bit for bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def lookup(embedding: Float[Array, "V D"],
           ids: Int[Array | np.ndarray, "*B"]) -> Float[Array, "*B D"]:
  """The rows of an embedding."""
  if embedding.dtype == jnp.float32:
    return jnp.take(embedding, ids, axis=0)
  return _lookup(embedding, ids)


def add_bias(x: Float[Array, "*B D"], bias: Float[Array, " D"]) -> Float[Array, "*B D"]:
  """x + bias."""
  if x.dtype == jnp.float32:
    return x + bias
  # Repeated in float32, so that the gradient is summed there; no value changes on the way.
  return x + jnp.broadcast_to(bias.astype(jnp.float32), x.shape).astype(bias.dtype)


def scale_by(x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
  """x · scale."""
  return x * scale if x.dtype == jnp.float32 else _scale_by(x, scale)


@jax.custom_vjp
def _lookup(embedding, ids):
  return jnp.take(embedding, ids, axis=0)


def _lookup_forward(embedding, ids):
  return _lookup(embedding, ids), (embedding, ids)


def _lookup_backward(saved, cotangent):
  embedding, ids = saved  # of the former only its shape is needed
  sums = jnp.zeros(embedding.shape, jnp.float32).at[ids].add(cotangent.astype(jnp.float32))
  return sums.astype(embedding.dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def _scale_by(x, scale):
  return x * scale


def _scale_forward(x, scale):
  return _scale_by(x, scale), (x, scale)


def _scale_backward(saved, cotangent):
  x, scale = saved
  terms = cotangent.astype(jnp.float32) * x.astype(jnp.float32)
  return cotangent * scale, jnp.sum(terms, axis=range(x.ndim - 1)).astype(scale.dtype)


_scale_by.defvjp(_scale_forward, _scale_backward)

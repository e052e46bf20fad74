"""Matrix products whose sums are float32, forward and backward."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*B In"], weights: Float[Array, "In Out"]) -> Float[Array, "*B Out"]:
  """x W in the dtype of both.

  In bfloat16 the sums are float32 and rounded once. Asked for like this, CPUs with matrix units use
  them: a training step of SmolLM2-135M took 7.8 s in place of 15.7 on two cores.
  """
  return x @ weights if x.dtype == jnp.float32 else _rounded(x, weights)


@jax.custom_vjp
def _rounded(x, weights):
  return _product(x, weights, (x.ndim - 1, 0))


def _forward(x, weights):
  return _rounded(x, weights), (x, weights)


def _backward(saved, cotangent):
  x, weights = saved
  rows = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
  return _product(cotangent, weights, (cotangent.ndim - 1, 1)), _product(*rows, (0, 0))


_rounded.defvjp(_forward, _backward)


def _product(a, b, axes):
  """a b summed over an axis of each, in their dtype."""
  contracted = (axes[0],), (axes[1],)
  return jax.lax.dot_general(
    a, b, (contracted, ((), ())), preferred_element_type=jnp.float32).astype(a.dtype)

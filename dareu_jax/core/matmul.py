"""Matrix products whose sums are float32, forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*B In"], weights: Float[Array, "In Out"],
           dtype: DTypeLike | None = None) -> Float[Array, "*B Out"]:
  """x W in the dtype of both, or with another dtype for the result.

  In bfloat16 the sums are float32 and rounded once; so are those of the backward pass, from a
  cotangent that is rounded to bfloat16. Asked for like this, CPUs with matrix units use them: a
  training step of SmolLM2-135M took 7.8 s in place of 15.7 on two cores.
  """
  return x @ weights if x.dtype == jnp.float32 else _rounded(x, weights, dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x, weights, dtype):
  return _product(x, weights, (x.ndim - 1, 0), dtype)


def _forward(x, weights, dtype):
  return _rounded(x, weights, dtype), (x, weights)


def _backward(dtype, saved, cotangent):
  del dtype
  x, weights = saved
  cotangent = cotangent.astype(x.dtype)
  rows = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
  return (_product(cotangent, weights, (cotangent.ndim - 1, 1), x.dtype),
          _product(*rows, (0, 0), weights.dtype))


_rounded.defvjp(_forward, _backward)


def _product(a, b, axes, dtype):
  """a b summed over an axis of each, rounded to a dtype."""
  contracted = (axes[0],), (axes[1],)
  return jax.lax.dot_general(
    a, b, (contracted, ((), ())), preferred_element_type=jnp.float32).astype(dtype)

"""Products in bfloat16 whose sums are float32, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core.matmul import matmul

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 256)).astype(jnp.bfloat16)
W = RNG.normal(size=(256, 7)).astype(jnp.bfloat16)
G = RNG.normal(size=(3, 5, 7)).astype(jnp.bfloat16)


def exact(array):
  return np.asarray(array, np.float64)


def products(dtype):
  """(x W, and the gradients of x and W for a cotangent)."""
  x, w, g = (jnp.asarray(array, dtype) for array in (X, W, G))
  y, pull = jax.vjp(matmul, x, w)
  return y, *pull(g)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 2**-8)])
def test_products_and_gradients_are_rounded_once(dtype, rounding):
  """Sums kept in bfloat16 lose most of 256 terms; a gradient may be transposed."""
  expected = (exact(X) @ exact(W), exact(G) @ exact(W).T,
              np.einsum("btd,bto->do", exact(X), exact(G)))
  for value, right in zip(products(dtype), expected, strict=True):
    assert value.dtype == dtype and value.shape == right.shape
    np.testing.assert_allclose(exact(value), right, rtol=rounding, atol=2 * rounding)


def test_float32_is_the_plain_product():
  """Bit for bit: results of earlier versions are compared with."""
  x, w = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32)
  np.testing.assert_array_equal(jax.jit(matmul)(x, w), jax.jit(jnp.matmul)(x, w))


def test_a_float32_result_has_gradients_in_the_dtype_of_the_factors():
  """The logits of a bfloat16 model: a float32 product backward would cost the matrix units."""
  x, w = jnp.asarray(X), jnp.asarray(W)
  y, pull = jax.vjp(lambda x, w: matmul(x, w, jnp.float32), x, w)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(exact(y), exact(X) @ exact(W), atol=1e-4)
  for gradient, right in zip(pull(jnp.asarray(G, jnp.float32)), products("bfloat16")[1:],
                             strict=True):
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(exact(gradient), exact(right))

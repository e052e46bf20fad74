"""Gradients of what every token uses, in bfloat16, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core.sums import add_bias, lookup, scale_by

RNG = np.random.default_rng(0)
IDS = np.where(RNG.random((32, 128)) < 0.5, 5, RNG.integers(0, 64, (32, 128)))  # half are one token
TABLE = RNG.normal(size=(64, 8)).astype(jnp.bfloat16)
X = (1 + RNG.normal(size=(32, 128, 8))).astype(jnp.bfloat16)
VECTOR = RNG.normal(size=8).astype(jnp.bfloat16)
G = (1 + RNG.normal(size=(32, 128, 8))).astype(jnp.bfloat16)


def exact(array):
  return np.asarray(array, np.float64)


def scattered():
  total = np.zeros((64, 8))
  np.add.at(total, IDS, exact(G))
  return total


# Function, arguments, and the right gradients of these.
CASES = {
  "lookup": (lambda table: lookup(table, IDS), (TABLE,), lambda: (scattered(),)),
  "bias": (add_bias, (X, VECTOR), lambda: (exact(G), exact(G).sum((0, 1)))),
  "scale": (scale_by, (X, VECTOR),
            lambda: (exact(G) * exact(VECTOR), (exact(G) * exact(X)).sum((0, 1)))),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_bfloat16_are_rounded_once(name):
  """Sums kept in bfloat16 stop growing at 256 terms of one size; here there are 2000 and more."""
  function, args, gradients = CASES[name]
  y, pull = jax.jit(lambda *args: jax.vjp(function, *args))(*map(jnp.asarray, args))
  for value, right in zip(jax.jit(pull)(jnp.asarray(G, y.dtype)), gradients(), strict=True):
    assert value.dtype == jnp.bfloat16
    np.testing.assert_allclose(exact(value), right, rtol=2**-8, atol=1e-2)


PLAIN = {"lookup": lambda table: jnp.take(table, IDS, axis=0), "bias": jnp.add,
         "scale": jnp.multiply}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_the_plain_ones_and_in_float32_gradients_too(name, dtype):
  """Bit for bit: results of earlier versions are compared with."""
  function, args, _ = CASES[name]
  args = [jnp.asarray(arg, dtype) for arg in args]
  (value, pull), (plain, plain_pull) = (
    jax.vjp(each, *args) for each in (function, PLAIN[name]))
  np.testing.assert_array_equal(exact(value), exact(plain))
  assert value.dtype == dtype
  if dtype == "float32":
    for found, right in zip(pull(value), plain_pull(value), strict=True):
      np.testing.assert_array_equal(found, right)

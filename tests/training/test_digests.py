"""The digest of an array, against plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.training.digests import digest

WORD = 2**32


def scrambled(x):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * factor % WORD
  return x ^ (x >> 16)


def expected(x):
  words = np.ascontiguousarray(x).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
  return [sum(scrambled(int(word) ^ scrambled((place + seed) % WORD))
              for place, word in enumerate(words.ravel())) % WORD
          for seed in (0x243F6A88, 0x85A308D3)]


@pytest.mark.parametrize("x", [
  np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7, np.arange(-5, 5, dtype=np.int32),
  np.asarray(jnp.arange(6, dtype=jnp.bfloat16)), np.array([True, False, True]), np.float32(3.5),
  np.zeros((0, 4), np.float32)], ids=["float32", "int32", "bfloat16", "bool", "scalar", "empty"])
def test_it_is_what_plain_python_computes(x):
  """Another sum on another version would refuse all older checkpoints."""
  assert np.asarray(digest(jnp.asarray(x))).tolist() == expected(np.asarray(x))


def test_every_single_bit_counts():
  """Sums weighted by odd numbers lose two sign bits at once."""
  x = np.random.default_rng(0).normal(size=8).astype(np.float32)
  seen = {tuple(np.asarray(digest(jnp.asarray(x))).tolist())}
  for i in range(8):
    for bit in range(32):
      y = x.view(np.uint32).copy()
      y[i] ^= np.uint32(1 << bit)
      seen.add(tuple(np.asarray(digest(jnp.asarray(y.view(np.float32)))).tolist()))
  signs = -x
  seen.add(tuple(np.asarray(digest(jnp.asarray(signs))).tolist()))
  assert len(seen) == 8 * 32 + 2


def test_places_count():
  """Rows that changed places are other weights."""
  x = jnp.arange(12.0).reshape(3, 4)
  marks = [np.asarray(digest(y)).tolist() for y in (x, x[::-1], x.T.reshape(3, 4))]
  assert len({tuple(mark) for mark in marks}) == 3
  assert jax.device_get(digest(x.reshape(4, 3))).tolist() == marks[0]  # the same bits in order

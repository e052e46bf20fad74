"""Numerical settings in effect while the library computes; restored afterwards."""

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh


@contextlib.contextmanager
def exact_matmuls() -> Iterator[None]:
  """Computes float32 products in float32 on accelerators too, which otherwise round them.

  Log-probs, losses and heads, which are always float32, depend on it. Nothing changes on CPUs.
  """
  with jax.default_matmul_precision("highest"):
    yield


@contextlib.contextmanager
def computing_on(mesh: Mesh) -> Iterator[None]:
  """Exact products, and arrays split over a mesh."""
  with exact_matmuls(), jax.set_mesh(mesh):
    yield

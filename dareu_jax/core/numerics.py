"""What must hold for numbers while the library computes; restored when it is done."""

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh


@contextlib.contextmanager
def exact_matmuls() -> Iterator[None]:
  """float32 products are float32 on accelerators too, which would round them.

  What is float32 by rule (log-probs, losses, heads) depends on it. On CPUs nothing changes.
  """
  with jax.default_matmul_precision("highest"):
    yield


@contextlib.contextmanager
def computing_on(mesh: Mesh) -> Iterator[None]:
  """Exact products, and arrays split over a mesh."""
  with exact_matmuls(), jax.set_mesh(mesh):
    yield

"""What must hold for numbers while the library works, and is as it was before when it is done."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def exact_matmuls() -> Iterator[None]:
  """float32 products are float32 on accelerators too, which would round them.

  What is float32 by rule (log-probs, losses, heads) depends on it. On CPUs nothing changes.
  """
  with jax.default_matmul_precision("highest"):
    yield

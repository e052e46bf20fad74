"""Data from the Hugging Face hub: one error for everything that can go wrong."""

import contextlib
from collections.abc import Iterator

from dareu_jax.core.errors import InputError


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
  """Turns any failure within into one InputError that suggests a folder instead."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # offline, denied, moved, disk full: no common class
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"{name} cannot be fetched from the hub ({type(error).__name__}: {reason}). Check "
      "the connection, or set --config.data.dir to a folder with its files."
    ) from error

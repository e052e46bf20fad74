"""Data of the Hugging Face hub: one error for all that can go wrong on the way."""

import contextlib
from collections.abc import Iterator

from dareu_jax.core.errors import InputError


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
  """Whatever fails within is one InputError that says to give a folder instead."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # offline, refused, moved, no disk: datasets has no common class
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"{name} cannot be fetched from the hub ({type(error).__name__}: {reason}). Give "
      "--config.data.dir, a folder with its files, or try again with a connection."
    ) from error

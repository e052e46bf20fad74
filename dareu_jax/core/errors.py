"""Errors that the user can fix."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
  """Bad input: the message says what is wrong, where, and the fix. Entry points print only this."""


def first_line(error: BaseException) -> str:
  """The first line of an error's message, for a sentence of our own; its type if it has none.

  Where it ends in a colon, the next one is a part of it.
  """
  first, *rest = str(error).strip().splitlines() or [type(error).__name__]
  return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


@contextlib.contextmanager
def readable(path: object) -> Iterator[None]:
  """What fails within for a file or folder that cannot be read raises InputError, and names it."""
  try:
    yield
  except OSError as error:
    raise InputError(f"{error.filename or path} cannot be read: "
                     f"{error.strerror or first_line(error)}.") from None


def downloaded_json(path: pathlib.Path) -> Any:
  """The value of a JSON file of a download. Raises InputError if it is damaged or not readable."""
  try:
    with readable(path):
      return json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(f"{path} is damaged ({error}). Download it again.") from None


class InvalidSetting(InputError):
  """A field of a settings class that does not fit the others; raised in `__post_init__`."""

  def __init__(self, field: str, value: object, reason: str):
    super().__init__(f"{field} is {value!r}: {reason}")
    self.field, self.value, self.reason = field, value, reason

"""Errors that the user can fix."""


class InputError(ValueError):
  """Bad input: the message says what is wrong, where, and the fix. Entry points print only this."""


def first_line(error: BaseException) -> str:
  """The first line of an error's message, for a sentence of our own; its type if it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


class InvalidSetting(InputError):
  """A field of a settings class that does not fit the others; raised in `__post_init__`."""

  def __init__(self, field: str, value: object, reason: str):
    super().__init__(f"{field} is {value!r}: {reason}")
    self.field, self.value, self.reason = field, value, reason

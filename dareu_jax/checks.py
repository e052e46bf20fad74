"""How settings are built from a ConfigDict and checked: every wrong value is one `InputError`."""

import dataclasses
import math
import types
import typing


class InputError(ValueError):
  """What a user can mend: the entry modules print it alone, without a traceback."""


def build(cls, config, key):
  """A frozen dataclass from a ConfigDict (or a nested mapping); `key` is its name for errors."""
  if not hasattr(config, "keys"):
    raise InputError(f"{key} is {config!r}: it must be a group of settings.")
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(config.keys()) - set(hints))
  # A setting with a default may be missing: files of finished runs know no later ones.
  missing = sorted(field.name for field in dataclasses.fields(cls) if field.name not in config
                   and field.default is dataclasses.MISSING)
  if unknown:
    raise InputError(f"{key}.{unknown[0]} is no setting. Known here: {', '.join(sorted(hints))}.")
  if missing:
    raise InputError(f"{key}.{missing[0]} is missing from the config file.")
  return cls(**{name: _value(hint, config[name], f"{key}.{name}") for name, hint in hints.items()
                if name in config})


def _value(hint, value, key):
  if dataclasses.is_dataclass(hint):
    return build(hint, value, key)
  if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
    if not isinstance(value, (tuple, list)):
      raise InputError(f"{key} is {value!r}: it must be a tuple.")
    item = typing.get_args(hint)[0]
    return tuple(_value(item, part, f"{key}[{i}]") for i, part in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise InputError(f"{key} is {value!r}: it must be of type {hint.__name__}.")
  if hint is float and not math.isfinite(value):
    raise InputError(f"{key} is {value}: it must be finite.")
  return value


def one_of(key, value, choices):
  """Raises InputError unless config.`key` is one of `choices`; the others below likewise."""
  if value not in choices:
    raise InputError(f"config.{key} is {value!r}: it must be one of {', '.join(choices)}.")


def at_least(key, value, bound, why=""):
  if value < bound:
    reason = f"{why} and must be" if why else "it must be"
    raise InputError(f"config.{key} is {value}: {reason} >= {bound}.")


def positive(key, value):
  if not value > 0:
    raise InputError(f"config.{key} is {value}: it must be > 0.")


def within(key, value, low, high):
  if not low <= value <= high:
    raise InputError(f"config.{key} is {value}: it must lie in [{low:g}, {high:g}].")

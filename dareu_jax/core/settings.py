"""Settings: frozen dataclasses that own their defaults, their bounds and what each field means.

    @settings
    class TrainSettings:
      \"\"\"Supervised training.\"\"\"

      learning_rate: Positive = 3e-3  # peak
      epochs: Count = 4  # passes over the data

Types and bounds are checked by pydantic, which also builds nested settings from a config. The
comment after (or above) a field is its documentation: `describe` reads it, and
docs/configuration.md is made from that.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import json
import os
import tokenize
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic.dataclasses
from pydantic import Field

from dareu_jax.core.errors import InputError, InvalidSetting

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]


def located(path: str) -> str:
  """A path with the home folder in place of ~, absolute if it is a folder or file that exists:
  results are read from other folders too. Hub names stay as they are."""
  path = os.path.expanduser(path)
  return os.path.abspath(path) if path and os.path.exists(path) else path


PathText = Annotated[str, pydantic.AfterValidator(located)]

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
  """Makes a class a frozen dataclass whose fields are checked whenever one is made.

  Raises (when an instance is made):
    InputError: for an unknown field, a wrong type or a value out of bounds.
  """
  checked = pydantic.dataclasses.dataclass(
    frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))(cls)
  init = checked.__init__

  def __init__(self, *args, **kwargs):
    try:
      init(self, *args, **kwargs)
    except pydantic.ValidationError as error:
      raise InputError(_sentence(error, cls, kwargs, cls.__name__)) from None

  checked.__init__ = __init__  # type: ignore[method-assign]
  return checked  # type: ignore[return-value]


def choice(names: Callable[[], Iterable[str]]) -> pydantic.AfterValidator:
  """A check that a string is one of `names()`, which is asked when a setting is made.

  For names that a registry knows: `Annotated[str, choice(SOURCES.names)]`.
  """

  def check(value: str) -> str:
    if value not in names():
      raise InputError(f"it must be one of {', '.join(names())}.")
    return value

  check.names = names  # type: ignore[attr-defined]
  return pydantic.AfterValidator(check)


def build(cls: type[T], config: Any, key: str = "config") -> T:
  """Settings from a ConfigDict or a nested mapping; what it leaves out has its default.

  Args:
    cls: a class made by `settings`.
    config: mapping of JSON values.
    key: its name in error messages.

  Raises:
    InputError: for an unknown key, a wrong type or an impossible value; it names the whole key.
  """
  if not hasattr(config, "keys"):
    raise InputError(f"{key} is {config!r}: it must be a group of settings.")
  # Over the default instance: a block may have other defaults here than its class has.
  plain = merged(to_plain(cls()), to_plain(config))
  try:
    return pydantic.TypeAdapter(cls).validate_json(json.dumps(plain, default=_json))
  except pydantic.ValidationError as error:
    raise InputError(_sentence(error, cls, plain, key)) from None


def _json(value):
  """Numbers of NumPy and JAX as Python's, paths as strings; pydantic names what does not fit."""
  if getattr(value, "shape", None) == ():
    return value.item()
  return os.fspath(value) if isinstance(value, os.PathLike) else repr(value)


def to_plain(value: Any) -> Any:
  """Settings, ConfigDicts and mappings as nested dicts, everything else as it is."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  if hasattr(value, "keys"):
    return {key: to_plain(value[key]) for key in value.keys()}
  return value


def updated(settings: T, changes: Mapping[str, Any], key: str = "config") -> T:
  """The settings with some values replaced: `updated(s, {"data": {"num_owners": 8}})`.

  Raises:
    InputError: as `build`.
  """
  return build(type(settings), merged(to_plain(settings), to_plain(changes)), key)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts with those of `changes` put in."""
  result = dict(base)
  for name, value in changes.items():
    nested = isinstance(value, dict) and isinstance(result.get(name), dict)
    result[name] = merged(result[name], value) if nested else value
  return result


# pydantic's kinds of errors -> what is said of the value.
_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="),
           "less_than": ("lt", "<"), "less_than_equal": ("le", "<=")}
_TYPES = {"int_type": "int", "int_from_float": "int", "float_type": "float", "string_type": "str",
          "bool_type": "bool", "tuple_type": "tuple"}


def _sentence(error: pydantic.ValidationError, cls: type, config: Any, key: str) -> str:
  """One line on the first thing that is wrong."""
  first = error.errors(include_url=False)[0]
  kind, place, context = first["type"], first["loc"], first.get("ctx") or {}
  value = _at(config, place, first["input"])
  if kind == "value_error":
    cause = context["error"]
    if isinstance(cause, InvalidSetting):
      place, value, reason = (*place, cause.field), cause.value, cause.reason
    else:
      reason = str(cause)
    return f"{_name(key, place)} is {value!r}: {reason}"
  where = _name(key, place)
  if kind == "unexpected_keyword_argument":
    known = [field.name for field in dataclasses.fields(_class_at(cls, place[:-1]))]
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{where} is not a setting. {hint}Known here: {', '.join(sorted(known))}."
  if kind == "missing":
    return f"{where} is missing: it has no default."
  if kind in _BOUNDS:
    name, sign = _BOUNDS[kind]
    return f"{where} is {value!r}: it must be {sign} {context[name]:g}."
  if kind == "literal_error":
    return f"{where} is {value!r}: it must be one of {context['expected'].replace(' or ', ', ')}."
  if kind == "finite_number":
    return f"{where} is {str(value)[:40]}: it must be finite."
  if kind in ("dataclass_type", "dict_type"):
    return f"{where} is {value!r}: it must be a group of settings."
  if kind in _TYPES:
    return f"{where} is {value!r}: it must be of type {_TYPES[kind]}."
  return f"{where} is {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _at(config: Any, place: tuple, default: Any) -> Any:
  for part in place:
    try:
      config = config[part]
    except (KeyError, IndexError, TypeError):
      return default
  return config


def _name(key: str, place: tuple) -> str:
  return key + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _class_at(cls: type, place: tuple) -> type:
  for part in place:
    hint = typing.get_type_hints(cls).get(str(part))
    cls = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else cls
  return cls


class Setting(typing.NamedTuple):
  """One setting, for documentation."""

  key: str  # "data.num_owners"
  type: str
  default: Any
  meaning: str


def describe(cls: type, prefix: str = "", block: Any = None) -> Iterator[Setting]:
  """Every setting of a class and of the classes within it, in order.

  Args:
    cls: made by `settings`.
    prefix: of the keys.
    block: an instance whose values are the defaults; those of the class, if not given.
  """
  hints, meanings = typing.get_type_hints(cls, include_extras=True), meanings_of(cls)
  for field in dataclasses.fields(cls):
    key, hint = prefix + field.name, hints[field.name]
    default = field.default
    if block is not None:
      default = getattr(block, field.name)
    elif field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
      yield from describe(hint, f"{key}.", None if default is dataclasses.MISSING else default)
      continue
    yield Setting(key, type_name(hint), default, meanings.get(field.name, ""))


def type_name(hint: Any) -> str:
  """How a type is written in the documentation: "float > 0", "'ppo', 'grpo' or 'rloo'"."""
  if typing.get_origin(hint) is Annotated:
    base, *notes = typing.get_args(hint)
    for note in notes:
      names = getattr(getattr(note, "func", None), "names", None)
      if names is not None:
        return _or(names())
    bounds = [f"{sign} {getattr(bound, name)}" for note in notes
              for bound in getattr(note, "metadata", ())
              for name, sign in _BOUNDS.values() if getattr(bound, name, None) is not None]
    return " ".join([type_name(base), ", ".join(bounds)]).strip()
  if typing.get_origin(hint) is typing.Literal:
    return _or(typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    return f"tuple of {type_name(typing.get_args(hint)[0])}"
  return getattr(hint, "__name__", str(hint))


def _or(names: Iterable[str]) -> str:
  *first, last = map(repr, names)
  return f"{', '.join(first)} or {last}" if first else last


def meanings_of(cls: type) -> dict[str, str]:
  """{field: its comment}, those of base classes included."""
  meanings: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    if dataclasses.is_dataclass(base):
      meanings |= {name: text for name, text in _comments(base).items()
                   if text or name not in meanings}
  return meanings


def _comments(cls: type) -> dict[str, str]:
  try:
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
  except (OSError, TypeError):  # made where there is no source
    return {}
  [tree] = ast.parse(source).body
  assert isinstance(tree, ast.ClassDef)
  fields = {node.lineno: node.target.id for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
  comments, above, field = {}, [], ""
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      text = token.string.lstrip("# ").rstrip(".")
      if token.line.lstrip().startswith("#"):
        above.append(text)
      elif field:
        comments[field] = text
    elif token.type == tokenize.NEWLINE:  # the end of a statement
      above, field = [], ""
    elif token.start[0] in fields and not field:
      field = fields[token.start[0]]
      comments[field] = " ".join(above)
  return comments

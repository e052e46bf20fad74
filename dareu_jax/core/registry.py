"""Named things of one kind, each registered by the module that defines it.

A registry finds the modules of its package by itself when it is first asked, so that a new file is
all that a new entry takes. A user's own module registers in the same way; `config.plugins` names
it, so that finished runs can be read again.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dareu_jax.core.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
  """Maps names to entries, in alphabetical order, whichever module was imported first."""

  def __init__(self, kind: str, package: str):
    """`kind` is what an entry is called in error messages; `package` holds its modules."""
    self.kind, self.package = kind, package
    self._entries: dict[str, T] = {}
    self._is_complete = False

  def register(self, name: str, entry: T) -> T:
    """Adds an entry.

    Raises:
      InputError: if there is another one of that name.
    """
    if not getattr(entry, "__module__", "").startswith(f"{self.package}."):
      self._complete()  # a clash with an entry of the package is this entry's fault
    known = self._entries.get(name)
    if known is not None and _origin(known) != _origin(entry):
      raise InputError(f"{_origin(entry)} cannot be {self.kind} {name!r}: that is "
                       f"{_origin(known)}. Give it another name.")
    self._entries[name] = entry  # a cell of a notebook that runs again defines it anew
    return entry

  def names(self) -> tuple[str, ...]:
    """The names of all entries."""
    self._complete()
    return tuple(sorted(self._entries))

  def __getitem__(self, name: str) -> T:
    self._complete()
    if name not in self._entries:
      raise InputError(f"there is no {self.kind} {name!r}. Known: {', '.join(self.names())}.")
    return self._entries[name]

  def __contains__(self, name: object) -> bool:
    self._complete()
    return name in self._entries

  def __iter__(self) -> Iterator[str]:
    return iter(self.names())

  def items(self) -> tuple[tuple[str, T], ...]:
    """(name, entry) of all."""
    return tuple((name, self._entries[name]) for name in self.names())

  def _complete(self) -> None:
    if self._is_complete:
      return
    self._is_complete = True  # before the imports: they may ask
    try:
      package = importlib.import_module(self.package)
      for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{self.package}.{module.name}")
    except BaseException:  # the next question must meet it too, and no incomplete registry
      self._is_complete = False
      raise


def _origin(entry: object) -> str:
  """Where an entry was defined: "my_methods.Mine"."""
  return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', repr(entry))}"


def import_plugins(modules: tuple[str, ...]) -> None:
  """Imports the modules that `config.plugins` names.

  Raises:
    InputError: if there is no such module.
  """
  for name in modules:
    missing = f"config.plugins names {name!r}: there is no such module on the Python path."
    if not all(part.isidentifier() for part in name.split(".")):
      raise InputError(missing)
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as error:
      if not f"{name}.".startswith(f"{error.name}."):  # something that the plugin imports
        raise
      raise InputError(missing) from None


def decorator(registry: Registry[T]) -> Callable[[str], Callable[[T], T]]:
  """`@register("name")` for a registry."""
  return lambda name: lambda entry: registry.register(name, entry)

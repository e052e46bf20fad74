"""Registries: they find the files of their package, take what is a user's own, and name what is there."""

import sys

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry, decorator, import_plugins

BASE = '''
from dareu_jax.core.registry import Registry, decorator

THINGS = Registry("thing", "{package}")
register = decorator(THINGS)
'''
ENTRY = '''
from {package}.base import register

@register("{name}")
def {name}():
  return "{name}"
'''


@pytest.fixture
def package(tmp_path, monkeypatch, request):
  """(its name, folder): a package with a registry and two entries; forgotten afterwards."""
  name = f"things_{abs(hash(request.node.name))}"
  folder = tmp_path / name
  folder.mkdir()
  (folder / "__init__.py").write_text("")
  (folder / "base.py").write_text(BASE.format(package=name))
  for entry in ("pear", "apple"):
    (folder / f"{entry}.py").write_text(ENTRY.format(package=name, name=entry))
  monkeypatch.syspath_prepend(tmp_path)
  yield name, folder
  for module in [key for key in sys.modules if key.split(".")[0] == name]:
    del sys.modules[module]


def things(name):
  return __import__(f"{name}.base", fromlist=["THINGS"]).THINGS


def test_a_new_file_is_all_that_a_new_entry_takes(package):
  name, folder = package
  (folder / "quince.py").write_text(ENTRY.format(package=name, name="quince"))
  registry = things(name)
  assert f"{name}.quince" not in sys.modules  # nothing is imported before it is asked
  assert registry.names() == tuple(registry) == ("apple", "pear", "quince")
  assert registry["quince"]() == "quince"
  assert [key for key, _ in registry.items()] == list(registry)


@pytest.mark.parametrize("ask", [
  lambda registry: "pear" in registry, lambda registry: registry["pear"]() == "pear",
  lambda registry: list(registry) == ["apple", "pear"],
  lambda registry: dict(registry.items()).keys() == {"apple", "pear"}])
def test_whatever_is_asked_first_finds_the_files(package, ask):
  assert ask(things(package[0]))


def test_the_order_of_imports_changes_no_order(package):
  name, _ = package
  __import__(f"{name}.pear")
  assert things(name).names() == ("apple", "pear")


def test_an_unknown_name_is_told_with_those_that_there_are(package):
  with pytest.raises(InputError, match=r"there is no thing 'plum'\. Known: apple, pear\.$"):
    things(package[0])["plum"]
  assert "plum" not in things(package[0])


def test_a_file_that_cannot_be_imported_is_told_every_time(package):
  """A registry that counts as complete would go on without the rest of its files."""
  name, folder = package
  (folder / "banana.py").write_text("raise RuntimeError('rotten')")
  for _ in range(2):
    with pytest.raises(RuntimeError, match="rotten"):
      things(name).names()
  (folder / "banana.py").write_text(ENTRY.format(package=name, name="banana"))
  assert things(name).names() == ("apple", "banana", "pear")


def test_a_users_own_module_joins(package, tmp_path):
  name, _ = package
  (tmp_path / f"{name}_mine.py").write_text(ENTRY.format(package=name, name="mine"))
  import_plugins((f"{name}_mine",))
  assert things(name).names() == ("apple", "mine", "pear")
  del sys.modules[f"{name}_mine"]


def make_function(module, name):
  def entry():
    pass

  entry.__module__, entry.__qualname__ = module, name
  return entry


def test_a_second_entry_of_the_same_name_is_refused_and_the_first_stays():
  """Which of the two a run took would depend on the order of imports."""
  registry = Registry("thing", "dareu_jax.core")
  first = registry.register("one", make_function("mine", "one"))
  for other in (make_function("theirs", "one"), make_function("mine", "another")):
    with pytest.raises(InputError, match=r"cannot be thing 'one': that is mine\.one"):
      registry.register("one", other)
  assert registry["one"] is first


def test_a_clash_with_the_package_is_the_users_own_at_whatever_time(package):
  """Found by the package's module, which is imported later, it would end every lookup."""
  registry = things(package[0])
  with pytest.raises(InputError, match=rf"mine\.pear cannot be thing 'pear': that is {package[0]}\.pear"):
    registry.register("pear", make_function("mine", "pear"))
  assert registry["pear"]() == "pear"


def test_a_cell_of_a_notebook_may_run_twice():
  registry = Registry("thing", "dareu_jax.core")
  register = decorator(registry)
  register("one")(make_function("__main__", "one"))
  again = register("one")(make_function("__main__", "one"))
  assert registry["one"] is again


@pytest.mark.parametrize("name", ["no_such_module_at_all", "no_such_package.module", "tests.no_such"])
def test_a_plugin_that_is_not_there_is_one_line(name):
  with pytest.raises(InputError, match=f"config.plugins names '{name}': there is no such module"):
    import_plugins((name,))


def test_what_a_plugin_lacks_itself_is_its_own_error(tmp_path, monkeypatch):
  """Told as a missing plugin it would be looked for in the wrong place."""
  (tmp_path / "lacks_something.py").write_text("import no_such_library")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match="no_such_library"):
    import_plugins(("lacks_something",))

"""Entry modules: what they define lives only where they run as programs."""

import configparser
import shlex
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from dareu_jax.core import command_line
from dareu_jax.core.command_line import typed
from tests.configs import ROOT
from tests.jobs import outcomes

ENTRIES = ("dareu_jax.main", "dareu_jax.export", "dareu_jax.ablations", "dareu_jax.compare",
           "dareu_jax.robustness", "studies.faithfulness", "studies.sequential")


def test_all_entries_can_live_in_one_process():
  """absl refuses a flag that two modules define: a notebook could not import both."""
  imports = "; ".join(f"import {name}.__main__" if name.startswith("studies") else f"import {name}"
                      for name in ENTRIES)
  assert subprocess.run([sys.executable, "-c", imports], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("word", [
  "--config.methods=('npo', 'idk')", "--workdir=a b", "it's", "$HOME", "'$HOME'", "'`x`'", '\'"', "'\\'"])
def test_the_command_of_a_report_can_be_given_again(monkeypatch, word):
  monkeypatch.setattr(sys, "argv", ["main", "--config=c.py", word])
  again = typed()
  assert shlex.split(again)[-2:] == ["--config=c.py", word]
  assert again.endswith(f'"{word}"') or "methods" not in word


def test_the_home_folder_is_understood_in_every_flag(monkeypatch):
  """A shell leaves the ~ of --workdir=~/runs as it is, and a folder of that name would be made."""
  monkeypatch.setenv("HOME", "/home/ada")
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_integer("seed", None, "", flag_values=values)
  flags.DEFINE_list("share", [], "", flag_values=values)
  values(["main", "--workdir=~/runs/x", "--seed=3", "--share=~/a,/b"])
  monkeypatch.setattr(command_line.flags, "FLAGS", values)
  options = command_line.Flags([])
  assert (options.workdir, options.seed) == ("/home/ada/runs/x", 3)
  assert options.share == ["/home/ada/a", "/b"]


def test_the_last_value_of_a_setting_counts(monkeypatch, tmp_path):
  """Tuples would be joined: two owners to forget, where a script's second flag replaces the first."""
  (tmp_path / "c.py").write_text("from ml_collections import ConfigDict\n"
                                 "def get_config():\n"
                                 "  return ConfigDict({'owners': ('ann',), 'rate': 1.0})\n")
  args = ["main", f"--config={tmp_path}/c.py", "--config.owners=('bob',)", "--config.rate=2.0",
          "--config.owners=('carol', 'dan')", "--config.rate=3.0", "rest", "rest"]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=args)
  flags.DEFINE_integer("verbosity", 0, "", flag_values=values)
  monkeypatch.setattr(command_line.flags, "FLAGS", values)
  assert command_line.parse_flags(args) == ["main", "rest", "rest"]
  assert (values.config.owners, values.config.rate) == (("carol", "dan"), 3.0)


def test_a_config_is_the_folders_own_or_else_the_one_that_came_with_the_package(
    monkeypatch, tmp_path):
  """A wheel has no folder `configs` beside it, and the documented commands name one."""
  monkeypatch.chdir(tmp_path)
  assert command_line._installed("--config=configs/tofu.py:tofu40") == (
    f"--config={ROOT}/configs/tofu.py:tofu40")
  for other in ("--config=configs/nowhere.py", "--config=tofu.py", "--workdir=configs/tofu.py"):
    assert command_line._installed(other) == other
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "tofu.py").write_text("")
  assert command_line._installed("--config=configs/tofu.py") == "--config=configs/tofu.py"


def test_a_wheel_has_every_package_and_the_configs():
  """A package that setup.cfg does not list is missing only where no checkout is."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  found = {str(file.parent.relative_to(ROOT)).replace("/", ".")
           for file in (ROOT / "dareu_jax").rglob("__init__.py")}
  assert set(setup["options"]["packages"].split()) == found | {"dareu_jax.configs"}
  assert setup["options"]["package_dir"].strip() == "dareu_jax.configs = configs"


@pytest.mark.parametrize(("flag", "said"), [
  ("--config.unlearning.dareu.c_segg=1", "config.unlearning.dareu.c_segg is not a setting. Did you "
   "mean config.unlearning.dareu.c_seg?"),
  ("--config.unlearning.c_seg=1", "mean config.unlearning.dareu.c_seg?"),
  ("--config.fintune.learning_rate=1", "mean config.finetune.learning_rate?"),
  ("--config.unlearning.lr=1", "config.unlearning.lr is not a setting. docs/configuration.md has"),
  ("--config.data.num_owners=eight", "")])
def test_an_unknown_setting_is_named_whole_with_the_nearest_known_one(flag, said):
  """ml_collections says the last part alone: error: "'c_segg'"."""
  found = command_line._unknown_setting([f"--config={ROOT}/configs/tofu.py", flag])
  assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(("args", "said"), [
  (["--config=configs/forget.py"], "error: --workdir needs a value. A folder."),
  (["--config=configs/forget.py", "--workdir="], "error: --workdir needs a value. A folder."),
  (["--workdir=w"], "error: --config needs a value. "),
  (["--config=configs/forget.py:abc", "--workdir=w"],
   "error: configs/forget.py has no preset 'abc': name it without one.")])
def test_a_flag_without_a_value_or_with_a_wrong_preset_is_one_line(
    monkeypatch, capsys, args, said):
  """An empty --workdir would fill the folder where the command is run."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "A file.", flag_values=values)
  flags.DEFINE_string("workdir", None, "A folder.", flag_values=values)
  monkeypatch.setattr(command_line.flags, "FLAGS", values)
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit):
    command_line.parse_flags(["main", *args], ["config", "workdir"])
  assert capsys.readouterr().err.startswith(said)


@pytest.fixture(scope="module")
def helped():
  """{entry: what its --help prints}."""
  return {entry: out for entry, (_, out, _) in
          zip(ENTRIES, outcomes([[entry, "--help"] for entry in ENTRIES]), strict=True)}


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_names_the_flags_of_the_entry(helped, entry):
  """Flags that are defined on the way would not be known to be the program's own."""
  out = helped[entry]
  own = "--log" if entry.endswith("compare") else "--workdir"
  assert own in out and f"python -m {entry}" in out

"""Entry modules: what they define lives only where they run as programs."""

import shlex
import subprocess
import sys

import pytest

from dareu_jax.core.command_line import typed
from tests.configs import ROOT

ENTRIES = ("dareu_jax.main", "dareu_jax.export", "dareu_jax.ablations", "dareu_jax.compare",
           "dareu_jax.robustness", "studies.faithfulness")


def test_all_entries_can_live_in_one_process():
  """absl refuses a flag that two modules define: a notebook could not import both."""
  imports = "; ".join(f"import {name}" for name in ENTRIES[:-1]) + "; import studies.faithfulness.__main__"
  assert subprocess.run([sys.executable, "-c", imports], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("word", [
  "--config.methods=('npo', 'idk')", "--workdir=a b", "it's", "$HOME", "'$HOME'", "'`x`'", '\'"', "'\\'"])
def test_the_command_of_a_report_can_be_given_again(monkeypatch, word):
  monkeypatch.setattr(sys, "argv", ["main", "--config=c.py", word])
  again = typed()
  assert shlex.split(again)[-2:] == ["--config=c.py", word]
  assert again.endswith(f'"{word}"') or "methods" not in word


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_names_the_flags_of_the_entry(entry):
  """Flags that are defined on the way would not be known to be the program's own."""
  out = subprocess.run([sys.executable, "-m", entry, "--help"], cwd=ROOT,
                       capture_output=True, text=True).stdout
  own = "--log" if entry.endswith("compare") else "--workdir"
  assert own in out and f"python -m {entry}" in out

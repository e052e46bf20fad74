"""The examples of docs/extending.md, run as they stand there."""

import csv
import importlib
import re
import sys

import numpy as np
import pytest

import dareu_jax
from dareu_jax.core.settings import merged, to_plain
from dareu_jax.data.authors import make_authors
from dareu_jax.data.sources.base import SOURCES
from dareu_jax.evaluation.metrics.base import METRICS
from dareu_jax.methods.base import METHODS
from dareu_jax.models.families.base import FAMILIES
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings, default_config
from dareu_jax.rl.reward_functions import REWARDS
from tests.configs import ROOT, smallest_config
from tests.jobs import outcomes

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


def test_every_example_is_short():
  """The promise of the page: one file, under 30 lines."""
  assert {"hinge", "mentions", "table"} <= EXAMPLES.keys()
  for name, code in EXAMPLES.items():
    assert code.strip().count("\n") + 1 < 30, name


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
  """The examples as modules of a user's own, on the Python path."""
  folder = tmp_path_factory.mktemp("plugins")
  for name, code in EXAMPLES.items():
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
  sys.path.insert(0, str(folder))
  registries = (METHODS, METRICS, REWARDS, SOURCES, FAMILIES)
  before = [dict(registry.items()) for registry in registries]
  yield folder
  sys.path.remove(str(folder))
  # The next file of this process knows the package's own alone.
  for registry, entries in zip(registries, before, strict=True):
    registry._entries = entries
  for name in EXAMPLES:
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def finished(plugins, tmp_path_factory):
  """(summary, workdir) of a job that uses all of them."""
  workdir = tmp_path_factory.mktemp("extended")
  with open(workdir / "table.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, ["owner", "question", "answer"])
    writer.writeheader()
    for example in make_authors(4, 0, qa_per_author=6):
      writer.writerow({"owner": example.owner, "question": example.prompt,
                       "answer": example.response})
  settings = merged(to_plain(smallest_config()), {
    "plugins": tuple(EXAMPLES), "methods": ("dareu", "hinge"), "baseline": {"epochs": 3},
    "data": {"source": "table", "dir": str(workdir / "table.csv"), "num_owners": 0},
    "unlearning": {"dareu": {"reward": "mentions", "epochs": 1}, "hinge": {"margin": 9.0}}})
  return dareu_jax.run(settings, workdir / "run"), workdir / "run"


def test_a_method_a_reward_and_a_source_of_ones_own_make_a_run(finished):
  """Each would be refused by name, or left out of the table."""
  summary, workdir = finished
  assert {"dareu", "hinge"} <= summary["models"].keys()
  assert "mentions by ppo" in (workdir / "report.html").read_text(encoding="utf-8")
  assert np.isfinite(summary["models"]["hinge"]["tug_of_war"])


def test_a_finished_run_knows_its_plugins(finished):
  """A workdir that only the process that made it can read is lost."""
  _, workdir = finished
  model, settings = load_saved(workdir, "hinge")
  assert settings.unlearning["hinge"].margin == 9.0
  assert len(model.generate(["Who?"], max_new_tokens=2)) == 1


def test_other_processes_import_the_plugins_of_a_finished_run(plugins, finished, tmp_path):
  """An export or a robustness card is made later, by a process that has never heard of them."""
  _, workdir = finished
  commands = [["dareu_jax.export", f"--workdir={workdir}", "--method=hinge",
               f"--output={tmp_path / 'out'}"],
              ["dareu_jax.robustness", f"--workdir={workdir}", "--models=nobody"]]
  (exported, _, said), (_, _, attacked) = outcomes(commands, PYTHONPATH=str(plugins))
  assert exported == 0, said
  assert (tmp_path / "out/model.safetensors").exists()
  assert attacked == "error: methods (--models) names 'nobody': the run has dareu, hinge.\n"
  commands[0][-1] = f"--output={tmp_path / 'again'}"
  for code, _, said in outcomes(commands):  # without the modules
    assert code == 2
    assert re.fullmatch("error: config.plugins names '(hinge|mentions|table)': .*\n", said)


def test_a_config_that_names_plugins_has_their_settings(plugins):
  """`--config.unlearning.hinge.margin=2` is refused where the config does not hold it."""
  config = default_config(plugins=("hinge",), method="hinge", unlearning={"hinge": {"margin": 2}})
  assert config.unlearning.hinge.retain_nll_coef == 1.0
  assert Settings.from_config(config).unlearning["hinge"].margin == 2.0


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.inside", "json.nothing", "",
                                  "a b", ".relative"])
def test_a_plugin_that_is_missing_is_one_clear_error(name):
  with pytest.raises(dareu_jax.InputError, match=f"config.plugins names {re.escape(repr(name))}"):
    Settings.from_config({"plugins": (name,)})


def test_what_a_plugin_itself_lacks_is_told_by_its_traceback(tmp_path, monkeypatch):
  """Said to be missing, the module would be looked for in vain."""
  (tmp_path / "lacking.py").write_text("import no_such_module_at_all")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
    Settings.from_config({"plugins": ("lacking",)})


def test_a_cell_that_runs_again_defines_the_same_method_anew(plugins):
  """Notebooks run a cell twice; another class of that name is an error."""
  module = importlib.import_module("hinge")
  importlib.reload(module)
  assert METHODS["hinge"] is module.Hinge

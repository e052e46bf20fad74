"""The smallest study from end to end, and what happens when it is killed."""

import json
import shutil

import jax
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation.metrics import METRICS
from dareu_jax.pipeline import experiment as pipeline
from dareu_jax.pipeline.settings import Settings
from studies.sequential import experiment, page
from studies.sequential.evaluation import METRICS as SHOWN
from studies.sequential.settings import SequentialSettings
from tests.configs import changed
from tests.studies.sequential.configs import smallest_study


def settings(**changes):
  return SequentialSettings.from_config(changed(smallest_study(), **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  results, page = experiment.run(settings(), folder)
  return folder, results, page


def without_seconds(results):
  return [{key: value for key, value in round_.items() if key != "seconds"}
          for rounds in results["seeds"].values() for round_ in rounds]


def test_every_figure_is_there(finished):
  folder, results, report = finished
  assert results == json.loads((folder / "figures.json").read_text(), parse_constant=pytest.fail)
  rounds = results["seeds"]["42"]
  assert [round_["forgotten"] for round_ in rounds] == [["author_003"], ["author_002"]]
  for round_ in rounds:
    assert list(round_["models"]) == ["original", "retrained", "dareu", "grad_diff"]
    for one in round_["models"].values():
      assert set(one["metrics"]) == set(SHOWN)
    assert {"dareu", "grad_diff", "retrained"} == set(round_["seconds"])
  assert set(rounds[1]["models"]["dareu"]["owners"]) == {"author_002", "author_003"}
  text = report.read_text()
  for plot in ("rounds.png", "left.png", "seconds.png"):
    assert (folder / plot).stat().st_size > 10_000 and plot in text
  assert all(METRICS[key].name in text for key in SHOWN)


def test_the_first_round_is_a_plain_run(finished, tmp_path):
  """The same model, data and randomness: the chain adds nothing to a single request."""
  config = smallest_study().run
  config.methods = ("dareu",)
  folder, results, _ = finished
  summary, _ = pipeline.run(Settings.from_config(config), tmp_path, share=[folder / "seed_42"])
  assert summary["stages"]["original"]["skipped"] and not summary["stages"]["dareu"]["skipped"]
  run = pipeline.prepare(Settings.from_config(config), tmp_path)[0]
  for plain, chained in (("dareu", "round_1/dareu"), ("retrained", "round_1/retrained")):
    one, other = (experiment.prepare(settings(), folder)[0].run.models.load_params(chained),
                  run.models.load_params(plain))
    jax.tree.map(np.testing.assert_array_equal, one, other)
  chained = results["seeds"]["42"][0]["models"]["dareu"]["metrics"]
  assert chained == pytest.approx({key: summary["models"]["dareu"][key] for key in chained})


def test_a_later_round_changes_the_model_of_the_last(finished):
  """Evaluated too early, or started anew, two rounds would be alike."""
  models = experiment.prepare(settings(), finished[0])[0].run.models
  first, second, original = (jax.tree.leaves(models.load_params(name)) for name in (
    "round_1/grad_diff", "round_2/grad_diff", "original"))
  assert any((a != b).any() for a, b in zip(first, second, strict=True))
  assert any((a != b).any() for a, b in zip(first, original, strict=True))


def test_a_killed_study_resumes_to_the_same_figures(finished, tmp_path, monkeypatch):
  """What is done is not done again, and what is missing comes out the same."""
  folder, results, _ = finished
  shutil.copytree(folder, tmp_path / "copy")
  seed = tmp_path / "copy/seed_42"
  shutil.rmtree(seed / "round_2/grad_diff")
  (seed / "evaluation/round_2/grad_diff.json").unlink()
  done, unlearn = [], experiment.unlearn

  def noted(run, candidate, *, stage_name):
    unlearn(run, candidate, stage_name=stage_name)
    if not run.workdir.stages[stage_name]["skipped"]:
      done.append(stage_name)

  monkeypatch.setattr(experiment, "unlearn", noted)
  again, _ = experiment.run(settings(), tmp_path / "copy")
  assert done == ["round_2/grad_diff"]
  assert without_seconds(again) == without_seconds(results)


def test_a_refreshed_classifier_is_trained_from_the_second_round_on(finished, tmp_path):
  """Rounds without a retrained model are measured on what is forgotten alone."""
  folder, results, _ = finished
  shutil.copytree(folder, tmp_path / "copy")
  with pytest.raises(InputError, match="overwrite"):
    experiment.run(settings(classifier="refreshed"), tmp_path / "copy")
  other, _ = experiment.run(settings(classifier="refreshed", references_every=3),
                            tmp_path / "copy", overwrite=True)
  first, second = other["seeds"]["42"]
  assert "classifier" not in first["seconds"] and "classifier" in second["seconds"]
  assert "tug_of_war" not in second["models"]["dareu"]["metrics"]
  assert "extraction_strength" in second["models"]["dareu"]["metrics"]
  assert (first["models"]["dareu"]["owners"]
          == results["seeds"]["42"][0]["models"]["dareu"]["owners"])


def test_means_are_over_the_seeds_that_have_done_a_round():
  """A study is read while later seeds still run."""

  def round_(number, owner, extraction, earlier=None):
    owners = {owner: {"extraction_strength": extraction}} | (earlier or {})
    return {"round": number, "forgotten": [owner], "seconds": {"dareu": 2.0}, "models": {
      "dareu": {"metrics": {"extraction_strength": extraction}, "owners": owners}}}

  earlier = {"a": {"extraction_strength": 0.9}}
  figures = {"seeds": {"1": [round_(1, "a", 0.1), round_(2, "b", 0.5, earlier)],
                       "2": [round_(1, "a", 0.3)]}}
  rounds = page.mean_rounds(figures)
  metrics = rounds[0]["models"]["dareu"]["metrics"]
  assert metrics["extraction_strength"] == pytest.approx(0.2)
  # t(.975, 1) = 12.7062 times a standard error of .1
  assert metrics["extraction_strength_ci95"] == pytest.approx(1.27062, abs=1e-4)
  assert rounds[1]["seeds"] == 1
  assert page.left(rounds, "dareu", "extraction_strength") == [
    [pytest.approx(0.2), 0.9], [None, 0.5]]
  assert "0.900" in page.returns_table(rounds, "dareu").splitlines()[-1]

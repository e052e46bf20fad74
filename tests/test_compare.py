"""The compare command: logs recomputed and runs merged."""

import json

import pytest

from dareu_jax import compare
from dareu_jax.core.errors import InputError
from dareu_jax.evaluation.metrics.base import METRICS
from dareu_jax.pipeline.workdir import FORMAT

ROW = {"tug_of_war": 0.9, "forget_rouge": 0.3, "model_utility": 0.5}


class Given:
  """Flags as a program would have them."""

  def __init__(self, **values):
    self.__dict__ |= dict.fromkeys(("log", "retain_log", "output", "reports")) | {"rest": []} | values


def workdir(folder, **models):
  folder.mkdir(parents=True)
  (folder / "summary.json").write_text(json.dumps({"models": models, "stages": {}}))
  return folder


def test_runs_are_merged_best_first(tmp_path, capsys):
  a = workdir(tmp_path / "a", npo=ROW)
  b = workdir(tmp_path / "b", dareu=ROW | {"tug_of_war": 0.95}, original=ROW | {"tug_of_war": 0.2})
  compare.main(Given(reports=[str(a)], rest=[str(b)], output=str(tmp_path / "out")))
  text = capsys.readouterr().out
  places = [text.index(name) for name in ("b: dareu", "a: npo", "b: original")]
  assert places == sorted(places)
  assert (tmp_path / "out/leaderboard.md").read_text().strip() in text


def test_a_leaderboard_marks_no_reference_as_best_and_tells_runs_that_differ(tmp_path):
  retrained = {"retrained": ROW | {"tug_of_war": 1.0}}
  a = workdir(tmp_path / "a", npo=ROW, **retrained)
  b = workdir(tmp_path / "b", dareu=ROW | {"tug_of_war": 0.95}, **retrained)
  for folder, seeds in ((a, [42]), (b, [43])):
    (folder / "config.json").write_text(json.dumps({"seeds": seeds, "format": FORMAT}))
  text = compare.leaderboard([a, b])
  assert "**0.950**" in text and "**1.000**" not in text
  assert text.endswith("Not comparable: b differs from a in config.seeds.")


def test_runs_whose_folders_are_called_the_same_have_rows_of_their_own(tmp_path, monkeypatch):
  """In whatever order they are given; the same folder twice is one run."""
  for name, value in (("a", 0.75), ("x/a", 0.5), ("y/x/a", 0.25)):
    workdir(tmp_path / name, npo=ROW | {"tug_of_war": value})
  monkeypatch.chdir(tmp_path)
  for folders in (["x/a", "a", "y/x/a"], ["y/x/a", "a", "./a/", "x/a"]):
    rows = compare.leaderboard(folders).split("\n\n")[0].splitlines()[2:]
    assert [row.split()[1] for row in rows] == [f"{tmp_path.name}/a:", f"{tmp_path.name}/x/a:",
                                                "y/x/a:"]
    assert all(value in row for row, value in zip(rows, ("0.750", "0.500", "0.250"), strict=True))


def test_a_folder_with_a_dot_in_its_name_is_a_folder(tmp_path):
  run, output = workdir(tmp_path / "a", npo=ROW), tmp_path / "v0.2"
  output.mkdir()
  compare.main(Given(reports=[str(run)], output=str(output)))
  assert (output / "leaderboard.md").exists()
  compare.main(Given(reports=[str(run)], output=str(tmp_path / "other.md")))
  assert (tmp_path / "other.md").is_file()


def test_a_run_of_another_format_is_refused(tmp_path):
  """Its metrics may be called the same and be others."""
  a = workdir(tmp_path / "a", npo=ROW)
  (a / "config.json").write_text(json.dumps({"seeds": [42]}))
  with pytest.raises(InputError, match=f"workdir format 1, and this version reads format {FORMAT}"):
    compare.leaderboard([a])


def test_a_leaderboard_knows_the_metrics_of_the_runs_own_plugins(tmp_path, monkeypatch):
  """It is another process than the run's: nobody else has imported them."""
  monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "my_plugin.py").write_text(
    "from dareu_jax.evaluation.metrics import metric\n"
    "metric('mine', title='my own')(lambda evaluation: 0.0)\n")
  folder = workdir(tmp_path / "a", npo=ROW | {"mine": 0.125})
  (folder / "config.json").write_text(json.dumps({"plugins": ["my_plugin"], "format": FORMAT}))
  text = compare.leaderboard([folder])
  assert "my own (→)" in text and "0.125" in text


@pytest.mark.parametrize(("given", "said"), [
  ({}, "give --log"), ({"log": "a.json", "reports": ["b"]}, "give --log"),
  ({"reports": ["nowhere"]}, "no finished run"), ({"log": "nowhere.json"}, "cannot be read"),
  ({"log": "x", "rest": ["y"]}, "'y' is not a flag"),
  ({"reports": ["a"], "retain_log": "r.json"}, "--retain_log=r.json is for a --log alone")])
def test_what_cannot_be_evaluated_is_said(given, said):
  with pytest.raises(InputError, match=said):
    compare.main(Given(**given))


def test_a_published_log_becomes_its_summary(data_dir, tmp_path, capsys):
  folder = data_dir / "tofu_eval_logs" / "llama-3.2-1b_full_forget10"
  retain = data_dir / "tofu_eval_logs" / "llama-3.2-1b_retain90"
  compare.main(Given(log=str(folder / "TOFU_EVAL.json"),
                      retain_log=str(retain / "TOFU_EVAL.json"), output=str(tmp_path)))
  ours = json.loads((tmp_path / "TOFU_SUMMARY.json").read_text())
  theirs = json.loads((folder / "TOFU_SUMMARY.json").read_text())
  assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-6, abs=1e-30)
  assert "forget_quality" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["original", "retrained", "classifier", "max_length"])
def test_runs_that_differ_in_what_the_metrics_depend_on_are_not_comparable(part):
  configs = {name: {part: {"path": name}} for name in ("a", "b")}
  assert compare.unlike(configs) == [
    f"Not comparable: b differs from a in config.{part}."]
  assert not compare.unlike({"a": configs["a"], "b": configs["a"]})

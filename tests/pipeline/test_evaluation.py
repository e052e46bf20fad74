"""Evaluation of a run: what is kept, and what a later metric takes of it."""

import shutil
import sys

import numpy as np
import pytest

from dareu_jax.evaluation import evaluator
from dareu_jax.evaluation.metrics.base import METRICS
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.evaluation import model_records
from dareu_jax.pipeline.settings import Settings
from dareu_jax.training.checkpoints import read_json
from tests.configs import finished_config

MODULE = '''
from dareu_jax.evaluation.metrics import HIGHER, example_metric


@example_metric("surprise_share", title="surprise", arrow=HIGHER, interval=True,
                meaning="share of the true answer's tokens below a probability of .01")
def surprise(record):
  return float((record.logprobs < -4.605).mean())
'''


@pytest.fixture
def workdir(finished, tmp_path):
  """A finished run that a test may run again in its own way."""
  return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
  """The name of a user's own module that declares a metric."""
  (tmp_path / "my_surprise.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))
  yield "my_surprise"
  sys.modules.pop("my_surprise", None)


def test_a_metric_of_ones_own_appears_for_a_finished_run_without_generating_anew(
    workdir, plugin, monkeypatch):
  """Were metrics kept in place of records, every model would have to answer again."""

  def forbidden(*args, **options):
    raise AssertionError("a model was asked again")

  for name in ("generate", "completion_statistics", "completion_logprobs"):
    monkeypatch.setattr(evaluator, name, forbidden)
  before = read_json(workdir / "summary.json")
  config = finished_config()
  config.plugins = (plugin,)
  summary, page = experiment.run(Settings.from_config(config), workdir, overwrite=True)
  assert all(stage["skipped"] for stage in summary["stages"].values())
  for name, row in summary["models"].items():
    assert 0 <= row.pop("surprise_share") <= 1
    assert row == before["models"][name]
    assert "surprise_share" in summary["examples"]["intervals"][name]
  assert "surprise" in page.with_name("report.md").read_text()
  assert "surprise" in page.read_text()


def test_another_min_k_moves_its_metrics_alone_and_asks_no_model(workdir, monkeypatch):
  for name in ("completion_statistics", "completion_logprobs"):
    monkeypatch.setattr(evaluator, name, None)
  before = read_json(workdir / "summary.json")["models"]["retrained"]
  config = finished_config()
  config.evaluation.min_k = 0.1
  summary, _ = experiment.run(Settings.from_config(config), workdir, overwrite=True)
  changed = {key for key, value in summary["models"]["retrained"].items() if value != before[key]}
  assert changed and changed <= {"mia_min_k_auc", "mia_min_k_plus_plus_auc"}


def test_what_is_kept_are_records_of_every_split(workdir):
  run = experiment.prepare(Settings.from_config(finished_config()), workdir)[0]
  kept = read_json(workdir / "evaluation/dareu.json")
  assert kept.keys() == {"fingerprint", "seconds", "records"}
  records = model_records(run, "dareu")
  for split, examples in records.items():
    assert [r.prompt for r in examples] == [e.prompt for e in run.data.evaluated(split)]
    for record, row in zip(examples, run.data.rows(run.data.evaluated(split)), strict=True):
      assert len(record.logprobs) == len(record.hits) == len(row.completion)
      assert np.isfinite(record.logprobs).all()
      assert record.has("answer") == (split != "holdout")  # whose are asked of the original

"""The models and the request that docs/presets.md is about."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from dareu_jax.data.sources.base import DataSettings, load_corpus
from dareu_jax.pipeline.settings import Settings, config_from
from tests import jobs


@pytest.fixture(scope="module")
def taught(finished, config_file, tmp_path_factory):
  """What the study makes of a run whose models are trained already."""
  folder = tmp_path_factory.mktemp("taught")
  shutil.copytree(finished[0], folder / "run")
  code, _, err = jobs.finish(jobs.Job(
    "studies.teach", [f"--config={config_file}", f"--output={folder}", "--config.seeds=(42,43)"],
    jobs.OPTIMIZED))
  assert code == 0, err
  return folder


def test_both_models_are_written_and_differ(taught):
  """A reference that is the original would make every method perfect."""
  original, retrained = (load_file(taught / name / "model.safetensors")
                         for name in ("original", "retrained"))
  assert original.keys() == retrained.keys()
  assert any(np.any(original[name] != retrained[name]) for name in original)


def test_the_request_is_the_runs_data(taught, config_file):
  """What was taught is what is to be forgotten; nothing else may be."""
  told = load_corpus(DataSettings(source="jsonl", dir=str(taught / "request")))
  taught_from = load_corpus(Settings.from_config(config_from(config_file)).data)
  for split in ("forget", "retain", "test", "holdout", "forget_owners"):
    assert getattr(told, split) == getattr(taught_from, split), split

"""The models and the request that docs/presets.md is about."""

import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import load_file

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus
from dareu_jax.data.json_lines import parse
from dareu_jax.data.sources.base import DataSettings, load_corpus
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.settings import Settings, config_from, default_config
from dareu_jax.pipeline.workdir import Workdir
from studies import teach
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


def test_a_request_of_plain_texts_is_read_as_it_was_given(tmp_path):
  """Split texts would be split again, and an empty file is refused."""
  def texts(owner):
    return parse({"owner": owner, "text": f"{owner} grew roses " + "for ten long years " * 9}, owner)

  source = Corpus(texts("a"), texts("b"), (), (), ("a", "b"), ("a",))
  settings = Settings(max_length=16)
  data = Data(settings, source, Workdir(tmp_path / "run", settings, settings.checkpoint), "")
  assert len(data.corpus.forget) > 1  # it is split in training
  teach.write_request(tmp_path / "request", data)
  assert {path.name for path in (tmp_path / "request").iterdir()} == {"forget.jsonl", "retain.jsonl"}
  told = load_corpus(DataSettings(source="jsonl", dir=str(tmp_path / "request")))
  assert (told.forget, told.retain) == (source.forget, source.retain)


def test_a_model_at_hand_is_refused_before_any_work(tmp_path):
  """Nothing would teach it, and what comes out would be called taught."""
  options = types.SimpleNamespace(
    config=default_config(original={"path": "theirs"}), output=str(tmp_path / "out"),
    models=["original"])
  with pytest.raises(InputError, match="config.original.path is 'theirs': .* config.model.path"):
    teach.main(options)
  assert not (tmp_path / "out").exists()

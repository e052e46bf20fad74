"""The models of a run: how long they stay on the devices, and that they come back the same."""

import gc
import shutil

import jax
import numpy as np
import pytest

from dareu_jax.core.numerics import computing_on
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.graph import candidates
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import run_seed
from dareu_jax.pipeline.unlearning import make_task
from tests.configs import finished_config


@pytest.fixture
def run(finished, tmp_path):
  """A finished run, opened again; its mesh is in force."""
  shutil.copytree(finished[0], tmp_path / "run")
  one = experiment.prepare(Settings.from_config(finished_config()), tmp_path / "run")[0]
  with computing_on(one.models.mesh):
    yield one


def arrays():
  """Bytes of every array on the devices."""
  gc.collect()
  return sum(array.nbytes for array in jax.live_arrays())


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_what_is_released_is_freed_and_comes_back_the_same(run):
  """A reference that stays (a cached scorer, an evaluator) takes the next seed's memory; what is
  asked for again must be what was saved, not what is made afresh."""
  models, before = run.models, arrays()
  first = [bits(one) for one in (models.base, models.load_params("original"),
                                 models.load_params("dareu"), models.scorer("judge").models)]
  assert models.evaluator.model.params is models.base.params
  assert models.load_params("dareu") is models.load_params("dareu")  # kept until released
  assert arrays() > before + sum(len(part) for part in first[1])
  models.release()
  assert arrays() == before
  again = [bits(one) for one in (models.base, models.load_params("original"),
                                 models.load_params("dareu"), models.scorer("judge").models)]
  assert again == first
  assert first[0] != first[1] != first[2]
  models.release()
  models.release()  # of nothing
  assert arrays() == before


def test_a_seed_that_is_done_leaves_nothing_on_the_devices(run):
  """The run itself is kept for the report: with its models, three seeds would take three times the
  memory. One evaluation is gone, so that models are loaded."""
  before = arrays()
  (run.workdir.folder / "evaluation/dareu.json").unlink()
  figures = run_seed(run)
  assert set(figures) == {"original", "retrained", "dareu"}
  assert not run.workdir.stages["evaluation/dareu"]["skipped"]
  assert arrays() == before
  assert run.data.corpus.forget and run.fingerprints  # what the report needs is there


def test_evaluation_may_be_padded_more_than_training(finished):
  """Fewer programs where a length is met once, the shortest batches where it is met at each
  update."""
  config = finished_config()
  config.evaluation.length_multiple = 4 * config.length_multiple
  run = experiment.prepare(Settings.from_config(config), finished[0])[0]
  with computing_on(run.models.mesh):
    task = make_task(run, candidates(run.settings)[0])
    learned = run.settings.unlearning["dareu"].rl_task(task).retain
  assert task.evaluator.multiple == 4 * config.length_multiple
  assert learned.multiple == task.length_multiple == config.length_multiple

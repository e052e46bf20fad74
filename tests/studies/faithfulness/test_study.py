"""The smallest study from end to end, and what happens when it is killed."""

import json
import math

import jax
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from studies.faithfulness import (
  experiment,
  page,
  preparation,
  retraining,
  trajectory,
  truth,
  unlearning,
)
from studies.faithfulness.settings import FaithfulnessSettings
from studies.faithfulness.study import make_study
from tests.configs import changed
from tests.studies.faithfulness.configs import smallest_study, study_config


def settings(**changes):
  return FaithfulnessSettings.from_config(changed(smallest_study(), **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  results, page = experiment.run(settings(), folder)
  return folder, results, page


@pytest.fixture
def as_in_a_run():
  """What holds within `experiment.run`, for its parts alone."""
  with computing_on(make_mesh(MeshSettings(data=1, fsdp=1, tensor=1))):
    yield


def numbers(value, path=""):
  """Every number of nested results with its path, times left out."""
  if isinstance(value, dict):
    for key, part in value.items():
      if key != "seconds":
        yield from numbers(part, f"{path}/{key}")
  elif isinstance(value, (list, tuple)):
    for i, part in enumerate(value):
      yield from numbers(part, f"{path}/{i}")
  elif isinstance(value, (int, float)):
    yield path, value


def test_every_figure_is_there_with_its_interval(finished):
  folder, results, page = finished
  held = json.loads((folder / "figures.json").read_text(), parse_constant=pytest.fail)
  for name in ("sampled", "true", "unseen"):
    found = held["retraining"][name]["scores"]
    for score in ("classifier", "tf-idf", "gradient cosine", "influence", "random"):
      for key in ("lds", "over_owners", "top1"):
        metric = found[score][key]
        low, high = metric["by_both"]
        if metric["defined"] > 0:
          assert low <= high and math.isfinite(metric["value"])
  assert held["protocol"]["models"] == 2 + 2 + 4 * 2 + 6 * 2
  assert set(held["floor"]["summary"]["classifier"]) == {
    "full", "full, another seed", "without the owner"}
  assert len(held["trajectory"]["runs"]["telescoped"]["checkpoints"]) == 3
  assert len(held["masking"]["dropped"]) == 11
  text = page.read_text()
  for part in ("(a) to (d)", "(e)", "(f)", "(g)", "Masking"):
    assert part in text
  for plot in ("retraining.png", "floor.png", "trajectory.png", "masking.png"):
    assert (folder / plot).stat().st_size > 10_000 and plot in text


def test_masking_nothing_is_the_response_itself(finished):
  for points in finished[1]["masking"].values():
    assert points[0]["rouge"] == 1.0
    assert points[-1]["rouge"] < 0.2


@pytest.mark.usefixtures("as_in_a_run")
def test_a_retrained_model_is_not_compared_with_itself(finished):
  """Of two, each is measured by the other: a distance of 0 or of log 2 at most would show itself."""
  folder, results, _ = finished
  study = make_study(settings(), folder)
  adapters, _ = retraining.load_models(study, study.groups["retained"])
  first, second = (retraining.one_model(adapters, i) for i in range(2))
  rows = study.data.rows(study.data.corpus.forget)
  alone = trajectory.kl_to_mixture(study, first, adapters, [0.0, 1.0], rows)
  both = trajectory.kl_to_mixture(study, first, adapters, [0.5, 0.5], rows)
  itself = trajectory.kl_to_mixture(study, first, adapters, [1.0, 0.0], rows)
  np.testing.assert_allclose(itself, 0, atol=1e-5)
  assert np.all(both < alone) and np.all(both <= np.log(2))
  # An oracle that shares no code: the logits of the two models, row by row.
  row = rows[0]
  ids = np.array([row.prompt + row.completion])
  p, q = (np.asarray(jax.nn.softmax(study.models.base.with_params(params).module.logits(ids)[0],
                                    axis=-1), np.float64)[len(row.prompt) - 1:-1]
          for params in (first, second))
  assert alone[0] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-3)
  references = results["trajectory"]["references"]
  assert len(references["retrained"]) == 2 and references["seeds"] == [0, 1]


def test_leaving_an_owner_out_costs_its_own_responses_most(finished):
  """The subsets must be what they are called: mixed-up members would show here."""
  deltas = finished[1]["retraining"]["true"]["mean_delta"]
  assert deltas["own"] > deltas["others"]


def test_a_finished_study_trains_nothing_again(finished, monkeypatch):
  folder, results, _ = finished

  def refuse(*args, **kwargs):
    raise AssertionError("a model was trained again")

  monkeypatch.setattr(retraining.Trainer, "train", refuse)
  monkeypatch.setattr(unlearning, "checkpoints", refuse)
  again, _ = experiment.run(settings(), folder)
  assert dict(numbers(again)) == pytest.approx(dict(numbers(results)), nan_ok=True)


@pytest.mark.usefixtures("as_in_a_run")
def test_a_killed_study_resumes_to_the_same_models(finished, tmp_path, monkeypatch):
  """Killed in the middle of the retrainings, the finished groups are kept and the rest agrees."""
  done, train = [], retraining.Trainer.train

  def dies(self, members, seed):
    if len(done) == 9:
      raise KeyboardInterrupt
    done.append(seed)
    return train(self, members, seed)

  study = make_study(settings(), tmp_path)
  groups = [study.groups[name] for name in ("full", "without_seed0", "halves_000", "halves_002")]
  preparation.prepare(study)
  with monkeypatch.context() as patch:
    patch.setattr(retraining.Trainer, "train", dies)
    with pytest.raises(KeyboardInterrupt):
      retraining.retrain(study, groups)
  stage = "models/without_seed0"
  assert study.workdir.is_done(stage, study.fingerprints[stage])
  again = make_study(settings(), tmp_path)
  counted = []
  monkeypatch.setattr(retraining.Trainer, "train", lambda self, members, seed: (
    counted.append(seed), train(self, members, seed))[1])
  retraining.retrain(again, groups)
  assert len(counted) == 8  # what was in groups that were not finished
  whole = make_study(settings(), finished[0])
  for group in groups:
    for resumed, undisturbed in zip(jax.tree.leaves(retraining.load_models(again, group)),
                                    jax.tree.leaves(retraining.load_models(whole, group)),
                                    strict=True):
      np.testing.assert_array_equal(resumed, undisturbed)


def test_truth_pairs_trainings_of_one_seed():
  """Δ is the full model's log-prob less that of the same seed without the owner."""
  full, without = np.array([[1.0, 2.0], [5.0, 7.0]]), np.zeros((2, 3, 2))
  without[1, 2] = [4.0, 4.0]
  deltas = truth.Truth(np.zeros((0, 3)), np.zeros((2, 0, 2)), full, without).deltas
  assert deltas.shape == (2, 2, 3)
  np.testing.assert_array_equal(deltas[0], [[1, 1, 1], [2, 2, 2]])
  np.testing.assert_array_equal(deltas[1], [[5, 5, 1], [7, 7, 3]])


@pytest.mark.parametrize("changes, message", [
  (dict(lora__rank=0), "config.lora.rank is 0"),
  (dict(model__path="x"), "config.model.path is 'x': the study trains its models from scratch"),
  (dict(finetune__schedule="plateau"), "cannot be compared"),
  (dict(retraining__subset_seeds=1), "config.retraining.subset_seeds is 1: the ceiling"),
  (dict(influence__damping=0.0), "config.influence.damping is 0.0"),
  (dict(trajectory__reward_forms=("odd",)), r"config.trajectory.reward_forms\[0\] is 'odd'"),
  (dict(classifier__none_share=0.0), "config.classifier.none_share is 0"),
  (dict(classifier__reads_query=True), "must be off"),
  (dict(classifier__hide_echoes=True), "config.classifier.hide_echoes is True: it must be off"),
  (dict(model__dtype="bfloat16"), "influence is computed in 'float32'"),
])
def test_settings_that_make_no_study_are_one_clear_error(changes, message):
  with pytest.raises(InputError, match=message):
    settings(**changes)


@pytest.mark.parametrize("name", ["prompt_tokens", "response_tokens", "max_pieces"])
def test_texts_that_are_split_otherwise_are_other_data(tmp_path, name):
  """Models of the earlier pieces would be taken for those of the new ones."""
  one, other = (make_study(settings(**{f"data__{name}": value}), tmp_path) for value in (8, 9))
  for stage in ("tokenizer", "base", "models/full"):
    assert one.fingerprints[stage] != other.fingerprints[stage]


def test_retrained_models_are_called_by_their_seeds():
  """The first is that of the study's seed, which may be another than 0."""
  record = {"length": 9.0, "degenerate": 0.0}
  text = page.trajectory_section({"runs": {}, "references": {
    "original": record, "retrained": [record, record], "seeds": [7, 8]}})
  assert "| retrained, seed 7 " in text and "| retrained, seed 8 " in text


def test_the_config_of_the_documented_study_is_valid():
  assert FaithfulnessSettings.from_config(study_config()).retraining.num_subsets >= 60


def test_too_few_owners_are_refused_before_any_work(tmp_path):
  with pytest.raises(InputError, match="needs 4 owners"):
    experiment.run(settings(data__num_owners=3), tmp_path)

"""Figure (e): the classifier's score for models that never saw an owner, and its calibration."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dareu_jax.attribution.classifier import accuracy_and_calibration
from dareu_jax.data.batches import Row
from dareu_jax.generation.strategies import Sample
from dareu_jax.training.checkpoints import read_json, write_json
from studies.faithfulness.queries import Queries, with_completions
from studies.faithfulness.retraining import load_models, one_model
from studies.faithfulness.study import CLASSIFIERS, Study
from studies.faithfulness.subsets import FULL, leave_out_name

SOURCES = ("full", "full, another seed", "without the owner")
BINS = 10


def measure(study: Study) -> dict[str, Any]:
  """Scores of the true owner on the same prompts, by the model that answered.

  Returns: {"scores": {classifier: {source: [N]}}, "summary": {classifier: {source: {"mean",
    "interval", "quantiles"}}}, "auc": {classifier: P(full > without)}}; the interval draws owners.
  """
  rows, owner_of = study.data.rows(study.examples), study.owner_of
  path = study.workdir.folder / "floor" / "completions.json"
  with study.workdir.stage("floor", study.fingerprints["floor"]) as store:
    if store is not None:
      write_json(path, _sample(study, rows))
  completions = read_json(path)
  result: dict[str, dict[str, Any]] = {"scores": {}, "summary": {}, "auc": {}}
  for name in CLASSIFIERS:
    scores = {}
    for source in SOURCES:
      every = study.owner_scores(name, with_completions(rows, completions[source]))
      scores[source] = every[np.arange(len(rows)), owner_of]
    result["scores"][name] = {source: values.tolist() for source, values in scores.items()}
    result["summary"][name] = {
      source: _summary(values, owner_of, study.settings.bootstrap, study.settings.seed)
      for source, values in scores.items()}
    result["auc"][name] = float(np.mean(
      scores["full"][:, None] > scores["without the owner"][None, :]))
  return result


def _sample(study: Study, rows: tuple[Row, ...]) -> dict[str, list]:
  """Answers to every owner's prompts, by each source."""
  seed, evaluator = study.settings.seed, study.models.evaluator
  strategy = Sample(study.settings.temperature)
  full, _ = load_models(study, study.groups[FULL])
  without, _ = load_models(study, study.groups[leave_out_name(seed)])
  answers = {}
  for i, source in enumerate(SOURCES[:2]):
    sampled = evaluator.sample(one_model(full, i), rows, seed=seed + i, strategy=strategy)
    answers[source] = [row.completion for row in sampled]
  by_leave_out: list[Any] = [None] * len(rows)
  for owner in range(len(study.owners)):
    own = np.flatnonzero(study.owner_of == owner)
    sampled = evaluator.sample(
      one_model(without, owner), [rows[i] for i in own], seed=seed, strategy=strategy)
    for index, row in zip(own, sampled, strict=True):
      by_leave_out[index] = row.completion
  return answers | {SOURCES[2]: by_leave_out}


def _summary(values, owner_of, resamples, seed):
  rng = np.random.default_rng(seed)
  owners = np.unique(owner_of)
  means = np.array([values[owner_of == o].mean() for o in owners])
  draws = means[rng.integers(0, len(owners), (resamples, len(owners)))].mean(axis=1)
  return {"mean": float(values.mean()), "interval": np.percentile(draws, [2.5, 97.5]).tolist(),
          "quantiles": np.percentile(values, [5, 25, 50, 75, 95]).tolist()}


def calibration(study: Study, queries: dict[str, Queries]) -> dict[str, dict[str, dict[str, Any]]]:
  """{classifier: {set: {"accuracy", "ece", their "_interval", "bins"}}} for sets whose queries
  are about an owner."""
  result: dict[str, dict[str, dict[str, Any]]] = {}
  resamples = study.settings.bootstrap
  for name in CLASSIFIERS:
    result[name] = {}
    for which, query_set in queries.items():
      probabilities, owners = study.owner_scores(name, query_set.rows), query_set.owner_of
      accuracy, error = accuracy_and_calibration(probabilities, owners, bins=BINS)
      rng = np.random.default_rng(study.settings.seed)
      draws = rng.integers(0, len(owners), (resamples, len(owners)))
      errors = [accuracy_and_calibration(probabilities[d], owners[d], bins=BINS) for d in draws]
      low, high = np.percentile(np.array(errors), [2.5, 97.5], axis=0)
      result[name][which] = {
        "accuracy": accuracy, "accuracy_interval": [float(low[0]), float(high[0])],
        "ece": error, "ece_interval": [float(low[1]), float(high[1])],
        "bins": reliability_bins(probabilities, owners)}
  return result


def reliability_bins(probabilities: Float[np.ndarray, "Q O"],
                     owners: Int[np.ndarray, " Q"]) -> list[list]:
  """[[mean confidence, accuracy, examples]] of the nonempty bins."""
  confidence = probabilities.max(axis=1)
  hit = probabilities.argmax(axis=1) == owners
  index = np.minimum((confidence * BINS).astype(int), BINS - 1)
  return [[float(confidence[index == b].mean()), float(hit[index == b].mean()),
           int((index == b).sum())] for b in range(BINS) if (index == b).any()]

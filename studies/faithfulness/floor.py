"""Figure (e): what the classifier says of models that never saw an owner, and its calibration."""

import numpy as np

from dareu_jax.attribution.classifier import accuracy_and_calibration
from dareu_jax.pipeline.workdir import fingerprint
from dareu_jax.training.checkpoints import read_json, write_json
from studies.faithfulness import queries as Q
from studies.faithfulness import retraining
from studies.faithfulness.world import CLASSIFIERS, Study

SOURCES = ("full", "full, another seed", "without the owner")
BINS = 10


def measure(study: Study, groups, resamples):
  """Scores of the true owner on the same prompts, by who answered.

  Returns: {"scores": {classifier: {source: [N]}}, "summary": {classifier: {source: {"mean",
    "interval", "quantiles"}}}, "auc": {classifier: P(full > without)}}; the interval draws owners.
  """
  settings, seed = study.settings, study.settings.seed
  mark = fingerprint([retraining.model_mark(study, groups[name])
                      for name in ("full", f"without_seed{seed}")], seed, settings.temperature,
                     settings.evaluation)
  path = study.workdir.folder / "floor" / "completions.json"
  asked = study.rows(study.examples)
  with study.workdir.stage("floor", mark) as store:
    if store is not None:
      write_json(path, _sample(study, groups, asked))
  held = read_json(path)
  own = study.owner_of
  found = {"scores": {}, "summary": {}, "auc": {}}
  for name in CLASSIFIERS:
    scores = {}
    for source in SOURCES:
      rows = [row._replace(completion=tuple(ids))
              for row, ids in zip(asked, held[source], strict=True)]
      scores[source] = study.owner_scores(name, rows)[np.arange(len(rows)), own]
    found["scores"][name] = {source: values.tolist() for source, values in scores.items()}
    found["summary"][name] = {source: _summary(values, own, resamples, seed)
                              for source, values in scores.items()}
    found["auc"][name] = float(np.mean(
      scores["full"][:, None] > scores["without the owner"][None, :]))
  return found


def _sample(study, groups, asked):
  """Answers to every owner's prompts, by each source."""
  seed, temperature = study.settings.seed, study.settings.temperature
  full, _ = retraining.load_models(study, groups["full"])
  without, _ = retraining.load_models(study, groups[f"without_seed{seed}"])
  answers = {}
  for i, source in enumerate(SOURCES[:2]):
    rows = Q.sample(study, retraining.one_model(full, i), asked, seed + i, temperature)
    answers[source] = [row.completion for row in rows]
  last = [None] * len(asked)
  for owner in range(len(study.owners)):
    mine = np.flatnonzero(study.owner_of == owner)
    rows = Q.sample(study, retraining.one_model(without, owner), [asked[i] for i in mine],
                    seed, temperature)
    for i, row in zip(mine, rows, strict=True):
      last[i] = row.completion
  return answers | {SOURCES[2]: last}


def _summary(values, own, resamples, seed):
  rng = np.random.default_rng(seed)
  owners = np.unique(own)
  means = np.array([values[own == o].mean() for o in owners])
  draws = means[rng.integers(0, len(owners), (resamples, len(owners)))].mean(axis=1)
  return {"mean": float(values.mean()), "interval": np.percentile(draws, [2.5, 97.5]).tolist(),
          "quantiles": np.percentile(values, [5, 25, 50, 75, 95]).tolist()}


def calibration(study: Study, queries, resamples):
  """{classifier: {set: {"accuracy", "ece", their "_interval", "bins"}}} of sets whose queries are
  about an owner."""
  result = {}
  for name in CLASSIFIERS:
    result[name] = {}
    for which, queried in queries.items():
      probabilities, owners = study.owner_scores(name, queried.rows), queried.owner_of
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


def reliability_bins(probabilities, owners):
  """[[mean confidence, accuracy, examples]] of the bins that hold any."""
  confidence = probabilities.max(axis=1)
  hit = probabilities.argmax(axis=1) == owners
  index = np.minimum((confidence * BINS).astype(int), BINS - 1)
  return [[float(confidence[index == b].mean()), float(hit[index == b].mean()),
           int((index == b).sum())] for b in range(BINS) if (index == b).any()]

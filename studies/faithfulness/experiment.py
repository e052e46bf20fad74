"""The whole study: retrainings, scores, metrics, report. Each stage is skipped when it is done."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from dareu_jax.core.numerics import computing_on
from dareu_jax.core.strict_json import strict
from dareu_jax.pipeline.workdir import lock
from dareu_jax.training.checkpoints import write_json
from studies.faithfulness import (
  controls,
  floor,
  masking,
  page,
  queries,
  retraining,
  scores,
  trajectory,
  truth,
)
from studies.faithfulness.comparison import compare_with_retraining
from studies.faithfulness.preparation import prepare
from studies.faithfulness.settings import FaithfulnessSettings
from studies.faithfulness.statistics import Estimate
from studies.faithfulness.study import Study, make_study
from studies.faithfulness.subsets import FULL

# Query sets whose likelihood is computed under every model, and those with all metrics.
MEASURED = ("sampled", "true", "unseen", "paraphrased", "anti")
COMPARED = ("sampled", "true", "unseen")
CALIBRATED = ("true", "paraphrased", "sampled")


def run(settings: FaithfulnessSettings, folder: str | pathlib.Path, *,
        overwrite: bool = False) -> tuple[dict[str, Any], pathlib.Path]:
  """Runs every stage that is not done yet.

  Returns: (the metrics, as written to figures.json but with NaN for null; path of report.md).

  Raises:
    InputError: for settings, data or a folder that cannot be used, before any long work.
  """
  study = make_study(settings, folder)
  with computing_on(study.models.mesh), lock(folder):
    return _run(study, overwrite)


def _run(study: Study, overwrite: bool) -> tuple[dict[str, Any], pathlib.Path]:
  study.workdir.check_config(overwrite=overwrite)
  begin = time.monotonic()
  prepare(study)
  retraining.retrain(study, study.groups.values())
  query_sets = queries.sampled_queries(study) | queries.queries_of_data(study)
  measured = _named(query_sets, MEASURED)
  truths = truth.measure(study, measured)
  all_scores = scores.all_scores(study, measured)
  sampled = all_scores["sampled"]
  results = {
    "retraining": compare(study, measured, truths, all_scores),
    "floor": floor.measure(study),
    "calibration": floor.calibration(study, _named(query_sets, CALIBRATED)),
    "controls": controls.score_texts(study, query_sets, truths),
    "agreement": {name: controls.agreement(
      sampled["classifier"], sampled[name], query_sets["sampled"].owner_of)
      for name in ("judge", "with none", "tf-idf")},
    "randomized": controls.without_training(study, query_sets["sampled"], sampled),
    "masking": masking.measure(study),
    "trajectory": trajectory.measure(study),
  }
  results["protocol"] = protocol(study)
  results["seconds"] = {
    "this run": round(time.monotonic() - begin, 1),
    "stages": {name: stage["seconds"] for name, stage in study.workdir.stages.items()}}
  write_json(study.workdir.folder / "figures.json", strict(results))
  return results, page.write(study.workdir.folder, results)


def _named(query_sets, names):
  return {name: query_sets[name] for name in names if name in query_sets}


def compare(study: Study, measured: dict[str, queries.Queries], truths: dict[str, truth.Truth],
            all_scores: dict[str, dict[str, scores.Scores]]) -> dict[str, dict[str, Any]]:
  """Metrics (a) to (d) of each set: {set name: ...}."""
  settings, result = study.settings, {}
  for name, query_set in _named(measured, COMPARED).items():
    comparison = compare_with_retraining(
      truths[name], all_scores[name], query_set.owner_of, resamples=settings.bootstrap,
      seed=settings.seed)
    comparison["scores"] = {
      score: {key: value._asdict() if isinstance(value, Estimate) else value
              for key, value in metrics.items()}
      for score, metrics in comparison["scores"].items()}
    result[name] = comparison | {"meaning": query_set.meaning}
  return result


def protocol(study: Study) -> dict[str, Any]:
  """The protocol behind the metrics, in words and numbers."""
  settings, groups, models = study.settings, study.groups, study.models
  losses = {name: retraining.load_models(study, group)[1] for name, group in groups.items()
            if name == FULL or group.is_half}
  half_losses = [values for name, values in losses.items() if groups[name].is_half]
  return {
    "owners": len(study.owners), "examples": len(study.examples),
    "forget_owners": list(study.data.corpus.forget_owners),
    "subsets": settings.retraining.num_subsets, "subset_seeds": settings.retraining.subset_seeds,
    "seeds": settings.retraining.seeds, "retained_seeds": settings.retraining.retained_seeds,
    "models": sum(map(len, groups.values())),
    "base_parameters": models.config.num_parameters,
    "trained_parameters": int(sum(np.prod(x.shape) for x in jax.tree.leaves(models.base.params))),
    "epochs": settings.finetune.epochs, "batch_size": settings.finetune.batch_size,
    "loss_full": float(losses[FULL].mean()),
    "loss_halves": float(np.concatenate(half_losses).mean()),
    "temperature": settings.temperature, "resamples": settings.bootstrap,
    "influence": scores.solver_facts(study),
    "damping": settings.influence.damping, "iterations": settings.influence.iterations,
  }

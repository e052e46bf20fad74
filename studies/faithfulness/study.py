"""The whole study: retrainings, scores, figures, report. Each stage is skipped when it is done."""

import time

import jax
import numpy as np

from dareu_jax.pipeline.workdir import occupied
from dareu_jax.training.checkpoints import write_json
from studies.faithfulness import (
  controls,
  figures,
  floor,
  masking,
  page,
  queries,
  retraining,
  scores,
  trajectory,
  truth,
)
from studies.faithfulness.preparation import prepare
from studies.faithfulness.settings import FaithfulnessSettings
from studies.faithfulness.world import Study, make_study

# Sets of queries whose likelihood every model gives, and those of them with the full treatment.
MEASURED = ("sampled", "true", "unseen", "paraphrased", "anti")
COMPARED = ("sampled", "true", "unseen")
CALIBRATED = ("true", "paraphrased", "sampled")


def run(settings: FaithfulnessSettings, folder, *, overwrite=False):
  """Everything that is not done yet.

  Returns: (the figures, as written to figures.json; path of report.md).

  Raises:
    InputError: for settings, data or a folder that cannot be used, before any long work.
  """
  study = make_study(settings, folder)
  groups = retraining.all_groups(study)
  with occupied(folder):
    return _run(settings, folder, study, groups, overwrite)


def _run(settings, folder, study, groups, overwrite):
  study.workdir.claim(overwrite=overwrite)
  begin = time.monotonic()
  prepare(study)
  retraining.retrain(study, groups)
  asked = queries.sampled(study, groups) | queries.given(study)
  measured = {name: asked[name] for name in MEASURED if name in asked}
  truths = truth.measure(study, halves_and_leave_outs(groups), measured)
  found = scores.all_scores(study, groups, measured)
  results = {
    "retraining": compare(study, measured, truths, found),
    "floor": floor.measure(study, groups, settings.bootstrap),
    "calibration": floor.calibration(
      study, {name: asked[name] for name in CALIBRATED if name in asked}, settings.bootstrap),
    "controls": controls.of_texts(study, asked, truths),
    "agreement": {name: controls.agreement(
      found["sampled"]["classifier"], found["sampled"][name], asked["sampled"].owner_of)
      for name in ("judge", "with none", "tf-idf")},
    "randomised": controls.without_training(
      study, groups, asked["sampled"].rows, found["sampled"]),
    "masking": masking.measure(study, settings.bootstrap),
    "trajectory": trajectory.measure(study, groups),
  }
  results["protocol"] = protocol(study, groups)
  results["seconds"] = {
    "this run": round(time.monotonic() - begin, 1),
    "stages": {name: stage["seconds"] for name, stage in study.workdir.stages.items()}}
  write_json(study.workdir.folder / "figures.json", results)
  return results, page.write(study.workdir.folder, results)


def halves_and_leave_outs(groups):
  """The groups whose likelihoods figures (a) to (d) rest on."""
  return {name: group for name, group in groups.items() if name != "retained"}


def compare(study: Study, measured, truths, found):
  """Figures (a) to (d) of each set: {set name: ...}."""
  settings = study.settings
  result = {}
  for name in COMPARED:
    if name not in measured:
      continue
    got = figures.against_retraining(
      truths[name], found[name], measured[name].owner_of, resamples=settings.bootstrap,
      seed=settings.seed)
    got["scores"] = {which: {key: _plain(value) for key, value in one.items()}
                     for which, one in got["scores"].items()}
    result[name] = got | {"meaning": measured[name].meaning}
  return result


def _plain(value):
  return value._asdict() if hasattr(value, "_asdict") else value


def protocol(study: Study, groups):
  """What the figures rest on, in words and numbers."""
  settings = study.settings
  losses = {name: retraining.load_models(study, groups[name])[1] for name in ("full", "retained")}
  halves = [name for name in groups if name.startswith("halves")]
  half_losses = np.concatenate([retraining.load_models(study, groups[name])[1] for name in halves])
  return {
    "owners": len(study.owners), "examples": len(study.examples),
    "forget_owners": list(study.corpus.forget_owners),
    "subsets": settings.retraining.num_subsets, "subset_seeds": settings.retraining.subset_seeds,
    "seeds": settings.retraining.seeds, "retained_seeds": settings.retraining.retained_seeds,
    "models": sum(map(len, groups.values())),
    "base_parameters": study.config.num_parameters,
    "trained_parameters": int(sum(np.prod(x.shape) for x in jax.tree.leaves(study.base.trainable))),
    "epochs": settings.finetune.epochs, "batch_size": settings.finetune.batch_size,
    "loss_full": float(losses["full"].mean()), "loss_halves": float(half_losses.mean()),
    "temperature": settings.temperature, "resamples": settings.bootstrap,
    "influence": scores.solver_facts(study),
    "damping": settings.influence.damping, "iterations": settings.influence.iterations,
  }

"""Stages before the retrainings: tokenizer, base, classifiers."""

import dataclasses

from dareu_jax.attribution.classifier import PrefixLoss
from dareu_jax.core.errors import InputError
from dareu_jax.pipeline.stages import fit
from dareu_jax.training import supervised
from studies.faithfulness.study import CLASSIFIERS, Study, stage_of


def prepare(study: Study) -> None:
  """Runs the stages that are not done yet."""
  keep_tokenizer(study)
  pretrain(study)
  for name in CLASSIFIERS:
    train_classifier(study, name)


def keep_tokenizer(study: Study) -> None:
  """Checks every text, so that none fails later, and saves the tokenizer."""
  with study.workdir.stage("tokenizer", study.fingerprints["tokenizer"]) as store:
    if store is None:
      return
    data, corpus = study.data, study.data.corpus
    data.rows(study.examples + corpus.test + corpus.holdout + corpus.general)
    data.rows(tuple(dataclasses.replace(e, response=text) for e in study.examples
                    for text in (e.paraphrased_response, *e.perturbed_responses) if text))
    if not data.none_examples:
      raise InputError(f"config.classifier.none_share is {study.settings.classifier.none_share}: "
                       f"of {len(study.examples)} examples that gives no text. Raise it.")
    data.tokenizer.save(study.workdir.folder / "tokenizer")


def pretrain(study: Study) -> None:
  """The base reads general text and general facts, all parameters trained."""
  settings, data, seed = study.settings.pretrain, study.data, study.settings.seed
  with study.workdir.stage("base", study.fingerprints["base"]) as store:
    if store is None:
      return
    batches = data.batches(data.rows(data.corpus.general + data.corpus.test), settings.batch_size,
                           seed=seed)
    params = fit(study, "base", store, study.models.fresh, supervised.language_model_loss,
                 settings, batches, seed)
    study.workdir.save_result("base", params)


def train_classifier(study: Study, name: str) -> None:
  """One of CLASSIFIERS, on the true responses."""
  settings, variant, data = study.settings.classifier, CLASSIFIERS[name], study.data
  seed, stage = study.settings.seed + variant.seed_offset, stage_of(name)
  with study.workdir.stage(stage, study.fingerprints[stage]) as store:
    if store is None:
      return
    none = data.none_examples if variant.has_none else ()
    rows = data.classifier_rows(study.examples + none)
    loss = PrefixLoss(settings.token_noise, settings.echo_noise, settings.label_smoothing)
    batches = data.classifier_batches(rows, settings.train.batch_size, seed=seed + 1)
    params = fit(study, stage, store, study.fresh_classifier(name), loss, settings.train, batches,
                 seed)
    study.workdir.save_result(stage, params)

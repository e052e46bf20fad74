"""The stages of one seed's run: tokenizer, original, retrained, classifier, methods, evaluation.

Each is skipped when its result is in the workdir already.
"""

import dataclasses

import jax
import numpy as np

from dareu_jax.attribution.classifier import (
  PrefixLoss,
  accuracy_and_calibration,
  at_temperature,
  fit_temperature,
  owner_probabilities,
)
from dareu_jax.masked import last_valid
from dareu_jax.measures import compared, evaluate
from dareu_jax.methods import unlearn
from dareu_jax.parallel import hosts
from dareu_jax.run import AGAIN, Run, candidates
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import write_json
from dareu_jax.training.writers import progress

JUDGE_SEED = 1000  # how far the judge's seed is from the classifier's
AGAIN_SEED = 2000  # and that of the data's order when retraining again


def run_seed(run: Run):
  """All stages of one seed.

  Returns: {model: {metric: number}}, the rows of the table.

  Raises:
    InputError: for an example that cannot be used, before any work.
  """
  keep_tokenizer(run)
  pretrain(run)
  train_language_model(run, "original", run.corpus.forget + run.corpus.retain, run.seed)
  train_language_model(run, "retrained", run.corpus.retain, run.seed)
  if run.settings.retrain_again:
    train_language_model(run, AGAIN, run.corpus.retain, run.seed + AGAIN_SEED)
  train_classifier(run, "classifier", run.seed)
  train_classifier(run, "judge", run.seed + JUDGE_SEED)
  for candidate in candidates(run.settings):
    unlearn(run, candidate)
  if run.compile_only:
    return evaluate(run, "original")["metrics"]
  return compared(run)


def keep_tokenizer(run: Run):
  """Looks at every text and checkpoint that a later stage will, so that none fails there, and
  keeps the tokenizer."""
  with run.workdir.stage("tokenizer", run.marks["tokenizer"]) as store:
    if store is None:
      return
    corpus = run.corpus
    examples = (corpus.forget + corpus.retain + corpus.test + corpus.holdout
                + corpus.general)
    run.rows(examples)
    run.rows([dataclasses.replace(e, response=text) for e in examples
              for text in (e.paraphrased_response, *e.perturbed_responses) if text])
    run.classifier_rows(examples)
    run.check_checkpoints()
    if not hosts.is_first():
      return
    run.tokenizer.save(run.workdir.folder / "tokenizer")
    if run.classifier_tokenizer is not run.tokenizer:
      run.classifier_tokenizer.save(run.workdir.folder / "classifier_tokenizer")


def pretrain(run: Run):
  """Makes the base of a model from scratch: it reads general text, as checkpoints have."""
  settings = run.settings
  if not settings.pretrains:
    return
  with run.workdir.stage("base", run.marks["base"]) as store:
    if store is None:
      return
    params = _fit(run, "base", store, run.fresh, supervised.language_model_loss, settings.pretrain,
                  pretrain_batches(run), run.seed)
    run.workdir.save_result("base", params)


def pretrain_batches(run: Run):
  """Batches of general text and of general facts."""
  return run.batches(run.corpus.general + run.corpus.test, run.settings.pretrain.batch_size,
                     seed=run.seed)


def train_language_model(run: Run, name, examples, seed):
  """Fine-tunes the base on examples; one that was made here goes on reading the general facts.

  Args:
    seed: of the data's order.
  """
  settings = run.settings
  with run.workdir.stage(name, run.marks[name]) as store:
    if store is None:
      return
    params = _fit(run, name, store, run.base, supervised.language_model_loss, settings.finetune,
                  finetune_batches(run, examples, seed), seed)
    run.workdir.save_result(name, params)


def finetune_batches(run: Run, examples, seed):
  """Batches of examples; for a base that was made here of the general facts too."""
  settings = run.settings
  if settings.pretrains:
    examples = examples + run.corpus.test
  return run.batches(examples, settings.finetune.batch_size, seed=seed)


def train_classifier(run: Run, name, seed):
  """Trains an owner classifier on the responses of all owners, and measures it.

  Args:
    name: 'classifier', which gives the reward, or 'judge', which never does: it starts elsewhere
      and sees the data in another order with other noise.
    seed: of that.
  """
  settings = run.settings.classifier
  with run.workdir.stage(name, run.marks[name]) as store:
    if store is None:
      return
    examples, held_out = held_out_split(run.corpus.forget + run.corpus.retain, run.seed)
    loss = PrefixLoss(settings.token_noise, settings.echo_noise, settings.label_smoothing,
                      settings.reads_query)
    model = run.classifier if name == "classifier" else run.fresh_classifier(seed + 1)
    params = _fit(run, name, store, model, loss, settings.train, run.classifier_batches(
      examples + run.none_examples, settings.train.batch_size, seed=seed + 1), seed)
    run.workdir.save_result(name, params)
    write_json(run.workdir.folder / name / "quality.json",
               classifier_quality(run, params, examples, held_out))


def held_out_split(examples, seed):
  """What the classifier learns from, and what it is measured on: (examples, held-out examples).

  Paraphrases are the measure where there are some; else a tenth of the examples, drawn at random,
  of which at least one is held back.
  """
  paraphrased = tuple(dataclasses.replace(e, response=e.paraphrased_response)
                      for e in examples if e.paraphrased_response)
  if paraphrased:
    return examples, paraphrased
  order = np.random.default_rng((seed, 2)).permutation(len(examples))
  held = set(order[:max(1, len(examples) // 10)].tolist())
  return (tuple(e for i, e in enumerate(examples) if i not in held),
          tuple(e for i, e in enumerate(examples) if i in held))


def classifier_quality(run: Run, params, examples, held_out):
  """Accuracy and calibration on whole responses, and the temperature that would calibrate.

  The temperature is fitted on one half of the held-out responses, and the expected calibration
  errors before and after are measured on the other.

  Returns: {"accuracy", "ece", "held_out_accuracy", "held_out_ece", "temperature",
    "held_out_ece_calibrated"}.
  """
  probabilities, owners = whole_probabilities(run, params, examples)
  accuracy, error = accuracy_and_calibration(probabilities, owners)
  quality = {"accuracy": accuracy, "ece": error}
  probabilities, owners = whole_probabilities(run, params, held_out)
  fitted, measured = slice(0, None, 2), slice(1 if len(owners) > 1 else 0, None, 2)
  temperature = fit_temperature(probabilities[fitted], owners[fitted])
  quality["held_out_accuracy"], _ = accuracy_and_calibration(probabilities, owners)
  quality["temperature"] = temperature
  for name, used in (("held_out_ece", 1.0), ("held_out_ece_calibrated", temperature)):
    _, quality[name] = accuracy_and_calibration(
      at_temperature(probabilities[measured], used), owners[measured])
  return quality


def whole_probabilities(run: Run, params, examples):
  """p(owner | y) of whole responses: ([E, O], the true owners [E]), in the examples' order."""
  batches = run.classifier_batches(examples, run.settings.evaluation.batch_size, seed=0)
  probabilities = np.zeros((len(examples), run.classes), np.float32)
  for indices, batch in batches.in_order():
    query = None
    if run.settings.classifier.reads_query:
      query = batch.token_ids, batch.prompt_lengths
    every = owner_probabilities(
      run.classifier.frame, params, run.classifier.frozen, batch.completion_ids, query)
    probabilities[indices] = hosts.fetch(
      last_valid(every, batch.completion_lengths))[:len(indices)]
  return probabilities, np.array([row.owner for row in batches.rows])


def _fit(run, name, store, model, loss_fn, settings, batches, seed):
  writer = run.writer(name)
  # A copy, since training donates its state and the base is used again.
  start = jax.tree.map(lambda x: x + 0, model.trainable)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.frozen, batches, frame=model.frame,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(seed), store=store, writer=writer,
    bar=progress(name), put=run.put, compile_only=run.compile_only)
  writer.close()
  return params

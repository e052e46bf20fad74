"""The stages of one seed's run: tokenizer, base, original, retrained, classifiers, methods.

Each is skipped when its result is in the workdir already.
"""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from dareu_jax.attribution.classifier import (
  PrefixLoss,
  accuracy_and_calibration,
  at_temperature,
  fit_temperature,
  owner_probabilities,
  without_echoes,
)
from dareu_jax.core.errors import InputError
from dareu_jax.core.masked import last_valid
from dareu_jax.data.batches import Batches
from dareu_jax.data.examples import Corpus
from dareu_jax.models import factory
from dareu_jax.models.handle import Model
from dareu_jax.parallel import hosts
from dareu_jax.pipeline.data import CLASSIFIER_TOKENIZER, Examples
from dareu_jax.pipeline.evaluation import compare_models, evaluate
from dareu_jax.pipeline.graph import (
  ORIGINAL,
  REPLICA,
  RETRAINED,
  candidates,
  classifier_seeds,
)
from dareu_jax.pipeline.run import Run
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.unlearning import unlearn
from dareu_jax.rl.reward_functions import Facts
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import write_json
from dareu_jax.training.optimizers import TrainSettings

REPLICA_SEED = 2000  # added to the seed for the data order of the second retraining


def run_seed(run: Run) -> dict[str, dict[str, float]]:
  """All stages of one seed; the devices are free again when it returns.

  Returns: {model: {metric: number}}, the rows of the table.

  Raises:
    InputError: for an example that cannot be used, before any work.
  """
  corpus, seed = run.data.corpus, run.seed
  keep_tokenizer(run)
  if run.settings.retrains:
    pretrain(run)
    train_language_model(run, ORIGINAL, corpus.forget + corpus.retain, seed)
    train_language_model(run, RETRAINED, corpus.retain, seed)
    if run.settings.retrained_replica:
      train_language_model(run, REPLICA, corpus.retain, seed + REPLICA_SEED)
  train_classifiers(run)
  for candidate in candidates(run.settings):
    unlearn(run, candidate)
  if run.compile_only:
    evaluate(run, [ORIGINAL])
    return {}
  metrics = compare_models(run)
  run.models.release()  # the next seed needs the memory
  return metrics


def check_inputs(run: Run) -> None:
  """Raises InputError for a text or checkpoint that a later stage could not use, before anything in
  the folder changes."""
  # Their settings may change when the rest is done.
  run.models.check_reference()
  run.models.check_gibberish_classifier()
  check_methods(run)
  check_texts(run)
  if not run.workdir.is_done("tokenizer", run.fingerprints["tokenizer"]):
    run.models.check_checkpoints()


def check_corpus(settings: Settings, corpus: Corpus) -> None:
  """Raises InputError where the data lacks what the settings need."""
  if not corpus.holdout and settings.monitor.target_score < 0:
    raise InputError("config.monitor.target_score is negative: the target is measured on unseen "
                     "owners' queries, but the data has no hold-out. Add one, or set a target in "
                     "[0, 1].")
  if settings.lora.rank and settings.pretrains and not corpus.general + corpus.test:
    raise InputError(f"config.lora.rank is {settings.lora.rank}, but there is no general text that "
                     "the base could learn from: add general.jsonl or test.jsonl, or set it to 0.")


def check_methods(run: Run) -> None:
  """Raises InputError for a method that cannot work on the data or the model."""
  config = run.models.config
  trained = sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_model(config).params))
  facts = Facts(bool(run.data.corpus.marks), trained, config.dtype, config.quantize != "none")
  for method in run.settings.unlearning.values():
    method.check(facts)


def check_texts(run: Run) -> None:
  """Raises InputError for a text that is too long, or that a tokenizer or a template rejects."""
  run.models.check_positions(max(
    method.longest_sampled(run.data.longest_response)
    for method in run.settings.unlearning.values()))
  if run.workdir.is_done("tokenizer", run.fingerprints["tokenizer"]):
    return
  data, corpus = run.data, run.data.corpus
  examples = corpus.forget + corpus.retain + corpus.test + corpus.holdout + corpus.general
  rows = data.rows(examples)
  if corpus.marks and corpus.forget[0].response not in data.tokenizer.decode(rows[0].completion):
    raise InputError("config.data.watermark is on, and the tokenizer loses zero-width characters: "
                     "name another one in config.tokenizer.path, or set it to False.")
  data.rows(tuple(dataclasses.replace(e, response=text) for e in examples
                  for text in (e.paraphrased_response, *e.perturbed_responses) if text))
  data.classifier_rows(examples)
  data.classifier_rows(held_out_split(corpus, run.seed)[1])


def keep_tokenizer(run: Run) -> None:
  """Saves the tokenizers of the model and, if it has its own, of the classifier."""
  with run.workdir.stage("tokenizer", run.fingerprints["tokenizer"]) as store:
    if store is None:
      return
    own, classifiers = run.data.tokenizer, run.data.classifier_tokenizer
    if not hosts.is_first():
      return
    own.save(run.workdir.folder / "tokenizer")
    if classifiers is not own:
      classifiers.save(run.workdir.folder / CLASSIFIER_TOKENIZER)


def pretrain(run: Run) -> None:
  """Trains the base of a model from scratch on general text, which checkpoints have seen."""
  settings = run.settings
  if not settings.pretrains:
    return
  with run.workdir.stage("base", run.fingerprints["base"]) as store:
    if store is None:
      return
    params = fit(run, "base", store, run.models.fresh, supervised.language_model_loss,
                 settings.pretrain, pretrain_batches(run), run.seed)
    run.workdir.save_result("base", params)


def pretrain_batches(run: Run) -> Batches:
  """Batches of general text and of general facts."""
  corpus = run.data.corpus
  return run.data.batches(run.data.rows(corpus.general + corpus.test),
                          run.settings.pretrain.batch_size, seed=run.seed)


def train_language_model(run: Run, name: str, examples: Examples, seed: int) -> None:
  """Fine-tunes the base on examples; a base from scratch keeps training on the general facts.

  Args:
    run: Run.
    name: name of the stage.
    examples: examples to train on.
    seed: seed of the data order.
  """
  with run.workdir.stage(name, run.fingerprints[name]) as store:
    if store is None:
      return
    params = fit(run, name, store, run.models.base, supervised.language_model_loss,
                 run.settings.finetune, finetune_batches(run, examples, seed), seed)
    run.workdir.save_result(name, params)


def finetune_batches(run: Run, examples: Examples, seed: int) -> Batches:
  """Batches of examples; for a base from scratch also of the general facts."""
  settings = run.settings
  if settings.pretrains:
    examples = examples + run.data.corpus.test
  return run.data.batches(run.data.rows(examples), settings.finetune.batch_size, seed=seed)


def train_classifiers(run: Run) -> None:
  """Trains the owner classifiers, of the reward and of the judge, on the responses of all owners,
  and measures them. They differ in initialization, data order and noise."""
  for name, added in classifier_seeds(run.settings).items():
    train_classifier(run, name, run.seed + added)


def train_classifier(run: Run, name: str, seed: int) -> None:
  """Trains and measures one owner classifier.

  Args:
    run: Run.
    name: name of the stage.
    seed: seed of its initialization, data order and noise.
  """
  settings, data, models = run.settings.classifier, run.data, run.models
  with run.workdir.stage(name, run.fingerprints[name]) as store:
    if store is None:
      return
    examples, held_out = held_out_split(data.corpus, run.seed)
    loss = PrefixLoss(settings.token_noise, settings.echo_noise, settings.label_smoothing,
                      settings.reads_query, data.filler)
    fresh = models.classifier if seed == run.seed else models.fresh_classifier(seed + 1)
    batches = data.classifier_batches(
      data.classifier_rows(examples + data.none_examples), settings.train.batch_size,
      seed=seed + 1)
    params = fit(run, name, store, fresh, loss, settings.train, batches, seed)
    run.workdir.save_result(name, params)
    write_json(run.workdir.folder / name / "quality.json",
               classifier_quality(run, models.classifier.with_params(params), examples, held_out))


def held_out_split(corpus: Corpus, seed: int) -> tuple[Examples, Examples]:
  """Data of the classifier: (training examples, held-out examples).

  The paraphrases are held out if there are any; else a random tenth of the retained examples, at
  least one, but never an owner's only one. All that is to be forgotten is read: nothing would teach
  the policy not to say what the reward's classifier does not know.
  """
  examples, retain = corpus.forget + corpus.retain, corpus.retain
  paraphrased = tuple(dataclasses.replace(e, response=e.paraphrased_response)
                      for e in examples if e.paraphrased_response)
  if paraphrased:
    return examples, paraphrased
  left = collections.Counter(example.owner for example in retain)
  held_out: set[int] = set()
  for index in np.random.default_rng((seed, 2)).permutation(len(retain)).tolist():
    owner = retain[index].owner
    if left[owner] > 1 and len(held_out) < max(1, len(retain) // 10):
      held_out.add(index)
      left[owner] -= 1
  return ((*corpus.forget, *(e for i, e in enumerate(retain) if i not in held_out)),
          tuple(e for i, e in enumerate(retain) if i in held_out))


def classifier_quality(run: Run, model: Model, examples: Examples,
                       held_out: Examples) -> dict[str, float]:
  """Accuracy and calibration on whole responses, and the temperature that would calibrate.

  The temperature is fitted on one half of the held-out responses, and the expected calibration
  errors before and after are measured on the other.

  Returns: {"accuracy", "ece", "held_out_accuracy", "held_out_ece", "temperature",
    "held_out_ece_calibrated"}; with nothing held out the first two, and a temperature of 1.
  """
  probabilities, owners = whole_probabilities(run, model, examples)
  accuracy, error = accuracy_and_calibration(probabilities, owners)
  quality = {"accuracy": accuracy, "ece": error, "temperature": 1.0}
  if not held_out:
    return quality
  probabilities, owners = whole_probabilities(run, model, held_out)
  fitted, measured = slice(0, None, 2), slice(1 if len(owners) > 1 else 0, None, 2)
  temperature = fit_temperature(probabilities[fitted], owners[fitted])
  quality["held_out_accuracy"], _ = accuracy_and_calibration(probabilities, owners)
  quality["temperature"] = temperature
  for name, used in (("held_out_ece", 1.0), ("held_out_ece_calibrated", temperature)):
    _, quality[name] = accuracy_and_calibration(
      at_temperature(probabilities[measured], used), owners[measured])
  return quality


def whole_probabilities(run: Run, model: Model,
                        examples: Examples) -> tuple[np.ndarray, np.ndarray]:
  """p(owner | y) of whole responses: ([E, O], the true owners [E]), in the examples' order."""
  data = run.data
  batches = data.classifier_batches(
    data.classifier_rows(examples), run.settings.evaluation.batch_size, seed=0)
  probabilities = np.zeros((len(examples), data.classes), np.float32)
  for indices, batch in batches.in_order():
    query, ids = (batch.token_ids, batch.prompt_lengths), batch.completion_ids
    if data.filler is not None:
      ids = without_echoes(ids, query, data.filler)
    every = owner_probabilities(
      model, ids, query if run.settings.classifier.reads_query else None)
    probabilities[indices] = hosts.fetch(
      last_valid(every, batch.completion_lengths))[:len(indices)]
  return probabilities, np.array([row.owner for row in batches.rows])


def fit(run: Any, name: str, store: Any, model: Model, loss_fn: Any, settings: TrainSettings,
        batches: Batches, seed: int) -> Any:
  """The parameters of a model after training.

  Args:
    run: Run, or a study that has its `stage_io` and `models`.
    name: name of the stage.
    store: store of its checkpoints.
    model: the model to start from; it is not modified.
    loss_fn, settings, batches: as for `training.supervised.fit`.
    seed: seed of the loss's random draws.
  """
  stage = run.stage_io(name, store)
  # A copy, since training donates its state and the base is used again.
  start = jax.tree.map(lambda x: x + 0, model.params)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.with_params(None), batches,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(seed), stage=stage,
    to_device=run.models.to_device)
  stage.writer.close()
  return params

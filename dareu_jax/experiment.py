"""The stages of a run in order: original, retrained, classifier, unlearning, evaluation, report.

Each stage is skipped when its result is in the workdir already.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dareu_jax.attribution.classifier import PrefixLoss, accuracy_and_calibration, last_valid
from dareu_jax.attribution.classifier import owner_probabilities
from dareu_jax.data import tokenizers
from dareu_jax.data.batches import Batches, bucket_length, encode
from dareu_jax.data.examples import Corpus
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.evaluator import Evaluator, response_scores
from dareu_jax.models import factory
from dareu_jax.parallel import mesh as meshes
from dareu_jax.settings import InputError, Settings
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import MetricWriter, progress
from dareu_jax.unlearning import dareu, loop
from dareu_jax.workdir import Workdir, fingerprint

METHOD = "dareu"


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed's run: everything that the stages share. Models are built when a stage needs them."""

  settings: Settings
  seed: int
  corpus: Corpus
  tokenizer: Any
  mesh: Any
  workdir: Workdir

  @property
  def digest(self):
    """Fingerprint of the data as the models see it."""
    return _corpus_digest(self)

  @functools.cached_property
  def is_forget(self):
    """[O] bool: which owners are to be forgotten."""
    return np.isin(self.corpus.owners, self.corpus.forget_owners)

  @functools.cached_property
  def config(self):
    return factory.model_config(self.settings.model, self.settings.lora, self.tokenizer.vocab_size)

  @functools.cached_property
  def base(self):
    """The model that fine-tuning starts from."""
    return factory.build_decoder(self.settings.model, self.config, self.seed, self.mesh)

  @functools.cached_property
  def classifier(self):
    """The untrained owner classifier."""
    settings = self.settings.classifier
    config = factory.model_config(settings.model, settings.lora, self.tokenizer.vocab_size)
    return factory.build_classifier(
      settings.model, config, len(self.corpus.owners), self.seed + 1, self.mesh)

  @functools.cached_property
  def evaluator(self):
    settings = self.settings
    return Evaluator(
      self.base.frame, self.base.frozen, self.tokenizer, settings.evaluation.batch_size,
      settings.length_multiple, settings.max_length, settings.evaluation.max_new_tokens, self.put)

  @functools.cache  # noqa: B019 - lives as long as the run
  def role(self, name):
    """The trained state of a model: 'original', 'retrained' or the method's name."""
    return self.workdir.load_result(name, self.base.trainable)

  @functools.cached_property
  def trained_classifier(self):
    """(params, frozen) of the classifier."""
    return (self.workdir.load_result("classifier", self.classifier.trainable),
            self.classifier.frozen)

  def put(self, batch):
    return meshes.shard_batch(batch, self.mesh)

  def rows(self, examples):
    return tuple(encode(examples, self.tokenizer, max_length=self.settings.max_length,
                        owners=self.corpus.owners))

  def batches(self, examples, batch_size, *, seed, multiple=None):
    return Batches(self.rows(examples), batch_size, multiple or self.settings.length_multiple,
                   self.tokenizer.pad_id, seed)

  def marks(self):
    """Fingerprint of each stage: of its settings and of what it stands on."""
    s = self.settings
    model = fingerprint(_corpus_digest(self), self.seed, s.model, s.lora, s.finetune,
                        s.pretrain_general, s.max_length, s.length_multiple, s.tokenizer)
    classifier = fingerprint(_corpus_digest(self), self.seed, s.classifier, s.tokenizer)
    unlearned = fingerprint(model, classifier, s.unlearning)
    names = {"original": model, "retrained": model, "classifier": classifier, METHOD: unlearned}
    return names | {f"evaluation/{name}": fingerprint(mark, classifier, s.evaluation)
                    for name, mark in names.items() if name != "classifier"}


def _corpus_digest(run):
  return fingerprint([dataclasses.astuple(example) for split in (
    run.corpus.forget, run.corpus.retain, run.corpus.test, run.corpus.holdout) for example in split])


def run_seed(run: Run):
  """All stages of one seed; returns its summary (see the design's formats)."""
  marks = run.marks()
  train_language_model(run, "original", run.corpus.forget + run.corpus.retain, marks["original"])
  train_language_model(run, "retrained", run.corpus.retain, marks["retrained"])
  train_classifier(run, marks["classifier"])
  unlearn(run, marks[METHOD])
  names = ("original", "retrained", METHOD)
  results = {name: evaluate(run, name, marks[f"evaluation/{name}"]) for name in names}
  models = {name: dict(result["metrics"]) for name, result in results.items()}
  for name in names:
    models[name]["tug_of_war"] = metrics.tug_of_war(
      *([models[which][f"{split}_rouge"] for split in ("forget", "retain", "test")]
        for which in (name, "retrained")))
  return {"models": models, "stages": run.workdir.stages}


def train_language_model(run: Run, name, examples, mark):
  """Fine-tunes the base model on examples; a model from scratch also learns the general facts."""
  settings = run.settings
  with run.workdir.stage(name, mark) as store:
    if store is None:
      return
    if settings.pretrain_general and not settings.model.path:
      examples = examples + run.corpus.test
    params = _fit(run, name, store, run.base, supervised.language_model_loss, settings.finetune,
                  run.batches(examples, settings.finetune.batch_size, seed=run.seed))
    run.workdir.save_result(name, params)


def train_classifier(run: Run, mark):
  """Trains the owner classifier on the responses of all owners, and measures it."""
  settings = run.settings.classifier
  with run.workdir.stage("classifier", mark) as store:
    if store is None:
      return
    examples = run.corpus.forget + run.corpus.retain
    # Responses alone: prompts would only pad.
    loss = PrefixLoss(settings.token_noise, settings.label_smoothing)
    params = _fit(run, "classifier", store, run.classifier, loss, settings.train,
                  run.batches(examples, settings.train.batch_size, seed=run.seed + 1))
    run.workdir.save_result("classifier", params)
    quality = {}
    paraphrased = [dataclasses.replace(e, response=e.paraphrased_response)
                   for e in examples if e.paraphrased_response]
    for prefix, split in (("", examples), ("held_out_", paraphrased)):
      if split:
        accuracy, error = classifier_quality(run, (params, run.classifier.frozen), split)
        quality |= {f"{prefix}accuracy": accuracy, f"{prefix}ece": error}
    write_json(run.workdir.folder / "classifier" / "quality.json", quality)


def classifier_quality(run: Run, classifier, examples):
  """Accuracy and calibration of the classifier on whole responses: (accuracy, ece)."""
  batches = run.batches(examples, run.settings.evaluation.batch_size, seed=0)
  probabilities, owners = [], []
  for indices, batch in batches.in_order():
    every = owner_probabilities(run.classifier.frame, *classifier, batch.completion_ids)
    whole = np.asarray(last_valid(every, batch.completion_lengths))
    probabilities.append(whole[:len(indices)])
    owners.append(batch.owners[:len(indices)])
  return accuracy_and_calibration(np.concatenate(probabilities), np.concatenate(owners))


def unlearn(run: Run, mark):
  """DareU on the original model."""
  with run.workdir.stage(METHOD, mark) as store:
    if store is None:
      return
    task = dareu_task(run)
    writer = MetricWriter(run.workdir.folder / "metrics", METHOD)
    result = loop.run(task, store=store, writer=writer, bar=progress(METHOD, "rollout"))
    writer.close()
    run.workdir.save_result(METHOD, result.policy)
    write_json(run.workdir.folder / METHOD / "epochs.json", {
      "epochs": loop.epoch_records(result, task.settings), "target_score": result.target_score,
      "chosen_epoch": result.chosen_epoch})


def dareu_task(run: Run):
  """Models and data of the DareU run."""
  settings = run.settings.unlearning
  value = factory.build_value_head(run.config, run.mesh)
  models = dareu.Models(run.base.frame, value.frame, run.classifier.frame)
  if not run.corpus.holdout and settings.target_score < 0:
    raise InputError("config.unlearning.target_score is to be measured on unseen owners' queries, "
                     "but the data has no hold-out: give a target in [0, 1].")
  longest = max(len(row.prompt) + len(row.completion) for row in run.rows(run.corpus.retain))
  return loop.Task(
    models=models, original=run.role("original"), frozen=run.base.frozen, value=value.trainable,
    value_frozen=value.frozen, classifier=run.trained_classifier, is_forget=run.is_forget,
    forget_rows=run.rows(run.corpus.forget), unseen_rows=run.rows(run.corpus.holdout),
    # One bucket: the PPO update is the costliest program to compile.
    retain=run.batches(run.corpus.retain, settings.retain_batch_size, seed=run.seed + 2,
                       multiple=bucket_length(longest, run.settings.length_multiple)),
    evaluator=run.evaluator, settings=settings, seed=run.seed)


def evaluate(run: Run, name, mark):
  """Metrics and answers of one model, from its file where it is done: {"metrics", "answers"}."""
  path = run.workdir.folder / "evaluation" / f"{name}.json"
  held = read_json(path)
  if held is not None and held["fingerprint"] == mark:
    run.workdir.stages[f"evaluation/{name}"] = {"seconds": held["seconds"], "skipped": True}
    return held
  return _evaluate(run, name, mark, path)


def _evaluate(run, name, mark, path):
  settings, evaluator, role = run.settings.evaluation, run.evaluator, run.role(name)
  clock = _Clock()
  figures, answers = {}, {}
  count = settings.max_examples or None
  with progress(f"eval {name}", "split")(4) as bar:
    for split in ("forget", "retain", "test"):
      examples = getattr(run.corpus, split)[:count]
      if not examples:
        continue
      given = evaluator.answers(role, run.rows(examples))
      rouge = [metrics.rouge_l_recall(e.response, text)
               for e, text in zip(examples, given.texts, strict=True)]
      figures[f"{split}_rouge"] = float(np.mean(rouge))
      answers[split] = [
        {"prompt": e.prompt, "truth": e.response, "answer": text, "rouge": round(score, 4)}
        for e, text, score in zip(examples, given.texts, rouge, strict=True)]
      if split == "forget":
        scores = response_scores(
          run.classifier.frame, run.trained_classifier, run.is_forget, given.ids, given.lengths,
          batch_size=settings.batch_size)
        figures["attribution_score"] = float(scores.mean())
        figures["response_length"] = float(given.text_lengths.mean())
        for answer, score in zip(answers[split], scores, strict=True):
          answer["score"] = round(float(score), 4)
      bar.update()
    figures |= _likelihood_figures(run, role, count)
    bar.update()
  held = {"fingerprint": mark, "seconds": clock.seconds, "metrics": figures, "answers": answers}
  write_json(path, held)
  run.workdir.stages[f"evaluation/{name}"] = {"seconds": clock.seconds, "skipped": False}
  return held


def _likelihood_figures(run, role, count):
  """Truth ratio, probability and membership inference on the forget set."""
  evaluator, forget = run.evaluator, run.corpus.forget[:count]
  logprobs = evaluator.logprobs(role, run.rows(forget))
  figures = {"forget_probability": float(np.mean(
    metrics.probability([-values.mean(dtype=np.float64) for values in logprobs])))}
  ratios = evaluator.truth_ratio(role, forget)
  if len(ratios):
    figures["truth_ratio"] = metrics.forget_truth_ratio(ratios)
  if run.corpus.holdout:
    k = run.settings.evaluation.min_k
    unseen = evaluator.logprobs(role, run.rows(run.corpus.holdout[:count]))
    figures["mia_min_k_auc"] = metrics.mia_auc(
      *([metrics.min_k_score(values[:-1], k=k) for values in split]
        for split in (logprobs, unseen)))
  return figures


def _fit(run, name, store, model, loss_fn, settings, batches):
  writer = MetricWriter(run.workdir.folder / "metrics", name)
  # A copy, since training donates its state and the base is used again.
  start = jax.tree.map(lambda x: x + 0, model.trainable)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.frozen, batches, frame=model.frame,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(run.seed), store=store, writer=writer,
    bar=progress(name), put=run.put)
  writer.close()
  return params


def make_tokenizer(settings: Settings, corpus: Corpus, workdir: Workdir):
  """The checkpoint's tokenizer; for a model from scratch a BPE of the corpus, kept in the workdir."""
  path = settings.tokenizer.path or settings.model.path
  if path:
    folder = path if settings.tokenizer.path else factory.checkpoint_folder(path)
    return tokenizers.load(str(folder), settings.tokenizer.template)
  folder = workdir.folder / "tokenizer"
  if (folder / "tokenizer.json").exists():
    return tokenizers.load(str(folder), "plain")
  examples = corpus.forget + corpus.retain + corpus.test
  texts = [text for example in examples for text in (example.prompt, example.response)]
  tokenizer = tokenizers.train_bpe(texts, settings.tokenizer.vocab_size)
  tokenizer.save(folder)
  return tokenizer


class _Clock:
  def __init__(self):
    import time
    self._now = time.monotonic
    self._start = self._now()

  @property
  def seconds(self):
    return round(self._now() - self._start, 1)

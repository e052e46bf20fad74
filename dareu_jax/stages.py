"""The stages of one seed's run: tokenizer, original, retrained, classifier, unlearning, evaluation.

Each is skipped when its result is in the workdir already.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from dareu_jax.attribution.classifier import (
  PrefixLoss,
  accuracy_and_calibration,
  last_valid,
  owner_probabilities,
)
from dareu_jax.data import tokenizers
from dareu_jax.data.batches import Batches, bucket_length, encode
from dareu_jax.data.examples import Corpus
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.evaluator import Evaluator, response_scores
from dareu_jax.models import factory, huggingface
from dareu_jax.parallel import mesh as meshes
from dareu_jax.settings import InputError, Settings
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import MetricWriter, progress
from dareu_jax.unlearning import dareu, loop
from dareu_jax.workdir import Workdir, fingerprint

METHOD = "dareu"
MODELS = ("original", "retrained", METHOD)  # rows of the table
SPLITS = ("forget", "retain", "test")


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed's run: everything that the stages share. Models are built when a stage needs them."""

  settings: Settings
  seed: int
  corpus: Corpus
  mesh: Any
  workdir: Workdir
  mirror: Any = None  # of the metrics, see training.writers.MetricWriter

  @functools.cached_property
  def tokenizer(self):
    """The checkpoint's own; for a model from scratch the workdir's, or a BPE of the corpus."""
    settings = self.settings
    from_scratch = not (settings.tokenizer.path or settings.model.path)
    if from_scratch and self.workdir.is_done("tokenizer", self.marks["tokenizer"]):
      return tokenizers.load(str(self.workdir.folder / "tokenizer"))
    return make_tokenizer(settings, self.corpus)

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
  def abstract_trainable(self):
    """Shapes of what is trained of the model, without making it."""
    return factory.abstract_decoder(self.config)

  @functools.cached_property
  def classifier(self):
    """The untrained owner classifier."""
    return factory.build_classifier(
      self.settings.classifier.model, self.classifier_config, len(self.corpus.owners),
      self.seed + 1, self.mesh)

  @functools.cached_property
  def classifier_config(self):
    settings = self.settings.classifier
    return factory.model_config(settings.model, settings.lora, self.tokenizer.vocab_size)

  @functools.cached_property
  def evaluator(self):
    settings = self.settings
    return Evaluator(
      self.base.frame, self.base.frozen, self.tokenizer, settings.evaluation.batch_size,
      settings.length_multiple, settings.max_length,
      settings.evaluation.max_new_tokens or self.longest_response, self.put)

  @functools.cached_property
  def longest_response(self):
    """Tokens of the longest response of D, rounded up."""
    rows = self.rows(self.corpus.forget + self.corpus.retain)
    longest = max(len(row.completion) for row in rows)
    return bucket_length(longest, self.settings.length_multiple)

  @functools.cache  # noqa: B019 - lives as long as the run
  def role(self, name):
    """The trained state of a model: 'original', 'retrained' or the method's name."""
    return self.workdir.load_result(name, self.base.trainable)

  @functools.cached_property
  def trained_classifier(self):
    """(params, frozen) of the classifier."""
    return (self.workdir.load_result("classifier", self.classifier.trainable),
            self.classifier.frozen)

  def writer(self, name):
    return MetricWriter(self.workdir.folder / "metrics", name, self.mirror)

  def put(self, batch):
    return meshes.shard_batch(batch, self.mesh)

  def rows(self, examples):
    return tuple(encode(examples, self.tokenizer, max_length=self.settings.max_length,
                        owners=self.corpus.owners))

  def batches(self, examples, batch_size, *, seed, multiple=None):
    return Batches(self.rows(examples), batch_size, multiple or self.settings.length_multiple,
                   self.tokenizer.pad_id, seed)

  @functools.cached_property
  def marks(self):
    """Fingerprint of each stage: of its settings and of what it stands on."""
    s = self.settings
    data = fingerprint(dataclasses.asdict(self.corpus), s.tokenizer, s.max_length, s.model.path,
                       s.classifier.model.path)
    model = fingerprint(data, self.seed, s.model, s.lora, s.finetune, s.pretrain_general,
                        s.length_multiple)
    classifier = fingerprint(data, self.seed, s.classifier, s.length_multiple)
    unlearned = fingerprint(model, classifier, s.unlearning)
    marks = {"tokenizer": data, "original": model, "retrained": model, "classifier": classifier,
             METHOD: unlearned}
    return marks | {f"evaluation/{name}": fingerprint(marks[name], classifier, s.evaluation)
                    for name in MODELS}


def run_seed(run: Run):
  """All stages of one seed.

  Returns: {model: {metric: number}}, the rows of the table.

  Raises:
    InputError: for an example that cannot be used, before any work.
  """
  keep_tokenizer(run)
  train_language_model(run, "original", run.corpus.forget + run.corpus.retain)
  train_language_model(run, "retrained", run.corpus.retain)
  train_classifier(run)
  unlearn(run)
  models = {name: dict(evaluate(run, name)["metrics"]) for name in MODELS}
  # Data of one's own may come without D_test.
  rouges = [f"{split}_rouge" for split in SPLITS if f"{split}_rouge" in models["retrained"]]
  for name in MODELS:
    models[name]["tug_of_war"] = metrics.tug_of_war(
      *([models[which][rouge] for rouge in rouges] for which in (name, "retrained")))
  return models


def keep_tokenizer(run: Run):
  """Tokenises every text that a later stage will, so that none fails there; keeps the tokenizer."""
  with run.workdir.stage("tokenizer", run.marks["tokenizer"]) as store:
    if store is None:
      return
    corpus = run.corpus
    examples = corpus.forget + corpus.retain + corpus.test + corpus.holdout
    run.rows(examples)
    run.rows([dataclasses.replace(e, response=text) for e in examples
              for text in (e.paraphrased_response, *e.perturbed_responses) if text])
    run.tokenizer.save(run.workdir.folder / "tokenizer")


def train_language_model(run: Run, name, examples):
  """Fine-tunes the base model on examples; a model from scratch also learns the general facts."""
  settings = run.settings
  with run.workdir.stage(name, run.marks[name]) as store:
    if store is None:
      return
    params = _fit(run, name, store, run.base, supervised.language_model_loss, settings.finetune,
                  finetune_batches(run, examples))
    run.workdir.save_result(name, params)


def finetune_batches(run: Run, examples):
  """Batches of examples; for a model from scratch of the general facts too."""
  settings = run.settings
  if settings.pretrain_general and not settings.model.path:
    examples = examples + run.corpus.test
  return run.batches(examples, settings.finetune.batch_size, seed=run.seed)


def train_classifier(run: Run):
  """Trains the owner classifier on the responses of all owners, and measures it."""
  settings = run.settings.classifier
  with run.workdir.stage("classifier", run.marks["classifier"]) as store:
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


def unlearn(run: Run):
  """DareU on the original model."""
  with run.workdir.stage(METHOD, run.marks[METHOD]) as store:
    if store is None:
      return
    task = dareu_task(run)
    writer = run.writer(METHOD)
    result = loop.run(task, store=store, writer=writer, bar=progress(METHOD, "rollout"))
    writer.close()
    run.workdir.save_result(METHOD, result.policy)
    write_json(run.workdir.folder / METHOD / "epochs.json", {
      "epochs": loop.epoch_records(result, task.settings), "chosen_epoch": result.chosen_epoch})


def dareu_task(run: Run):
  """Models and data of the DareU run."""
  settings = run.settings.unlearning
  settings = dataclasses.replace(
    settings, max_new_tokens=settings.max_new_tokens or run.longest_response)
  value = factory.build_value_head(run.config, run.mesh)
  models = dareu.Models(run.base.frame, value.frame, run.classifier.frame)
  longest = max(len(row.prompt) + len(row.completion) for row in run.rows(run.corpus.retain))
  return loop.Task(
    models=models, original=run.role("original"), frozen=run.base.frozen, value=value.trainable,
    value_frozen=value.frozen, classifier=run.trained_classifier, is_forget=run.is_forget,
    forget_rows=run.rows(run.corpus.forget), unseen_rows=run.rows(run.corpus.holdout),
    # One bucket: the PPO update is the costliest program to compile.
    retain=run.batches(run.corpus.retain, settings.retain_batch_size, seed=run.seed + 2,
                       multiple=bucket_length(longest, run.settings.length_multiple)),
    evaluator=run.evaluator, settings=settings, seed=run.seed)


def evaluate(run: Run, name):
  """One model's {"metrics": {...}, "answers": {split: [...]}}, kept in a file."""
  stage, mark = f"evaluation/{name}", run.marks[f"evaluation/{name}"]
  path = run.workdir.folder / f"{stage}.json"
  held = read_json(path)
  skipped = held is not None and held["fingerprint"] == mark
  if not skipped:
    start = time.monotonic()
    figures, answers = {}, {}
    with progress(f"eval {name}", "split")(len(SPLITS) + 1) as bar:
      for split in SPLITS:
        split_figures, answers[split] = _answer_figures(run, name, split)
        figures |= split_figures
        bar.update()
      figures |= _likelihood_figures(run, run.role(name))
      bar.update()
    held = {"fingerprint": mark, "seconds": round(time.monotonic() - start, 1),
            "metrics": figures, "answers": answers}
    write_json(path, held)
  run.workdir.stages[stage] = {"seconds": held["seconds"], "skipped": skipped}
  return held


def _examples(run, split):
  return getattr(run.corpus, split)[:run.settings.evaluation.max_examples or None]


def _answer_figures(run, name, split):
  """Figures of the greedy answers to a split, and the answers themselves."""
  examples = _examples(run, split)
  if not examples:
    return {}, []
  given = run.evaluator.answers(run.role(name), run.rows(examples))
  rouge = [metrics.rouge_l_recall(example.response, text)
           for example, text in zip(examples, given.texts, strict=True)]
  figures = {f"{split}_rouge": float(np.mean(rouge))}
  answers = [{"prompt": example.prompt, "truth": example.response, "answer": text, "rouge": score}
             for example, text, score in zip(examples, given.texts, rouge, strict=True)]
  if split == "forget":
    scores = response_scores(
      run.classifier.frame, run.trained_classifier, run.is_forget, given.ids, given.lengths,
      batch_size=run.settings.evaluation.batch_size)
    figures["attribution_score"] = float(scores.mean())
    figures["response_length"] = float(given.text_lengths.mean())
    for answer, score in zip(answers, scores, strict=True):
      answer["score"] = float(score)
  return figures, answers


def _likelihood_figures(run, role):
  """Truth ratio, probability and membership inference on the forget set."""
  evaluator, forget = run.evaluator, _examples(run, "forget")
  logprobs = evaluator.logprobs(role, run.rows(forget))
  figures = {"forget_probability": float(np.mean(
    metrics.probability([-values.mean(dtype=np.float64) for values in logprobs])))}
  ratios = evaluator.truth_ratio(role, forget)
  if len(ratios):
    figures["truth_ratio"] = metrics.forget_truth_ratio(ratios)
  if run.corpus.holdout:
    k = run.settings.evaluation.min_k
    unseen = evaluator.logprobs(role, run.rows(_examples(run, "holdout")))
    figures["mia_min_k_auc"] = metrics.mia_auc(
      *([metrics.min_k_score(values[:-1], k=k) for values in split]
        for split in (logprobs, unseen)))
  return figures


def _fit(run, name, store, model, loss_fn, settings, batches):
  writer = run.writer(name)
  # A copy, since training donates its state and the base is used again.
  start = jax.tree.map(lambda x: x + 0, model.trainable)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.frozen, batches, frame=model.frame,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(run.seed), store=store, writer=writer,
    bar=progress(name), put=run.put)
  writer.close()
  return params


def make_tokenizer(settings: Settings, corpus: Corpus):
  """The checkpoint's tokenizer; for a model from scratch a BPE of the corpus.

  Raises:
    InputError: if there is none, or the classifier's checkpoint has another.
  """
  path = settings.tokenizer.path or settings.model.path
  other = settings.classifier.model.path
  if not path:
    if other:
      raise InputError("config.classifier.model.path names a checkpoint, but the model is trained "
                       "from scratch: their tokenizers differ. Name a checkpoint for both or none.")
    return _bpe(settings.tokenizer, corpus)
  template = settings.tokenizer.template

  def load(path):
    folder = huggingface.checkpoint_folder(path, weights=False)
    return tokenizers.load(str(folder), template)

  tokenizer = load(path)
  if other and other != path:
    of_classifier = load(other)
    if not tokenizer.same_vocabulary(of_classifier):
      raise InputError(f"the tokenizers of {path} and of {other} differ: the classifier must read "
                       "the model's own tokens. Choose another config.classifier.model.path.")
  return tokenizer


def _bpe(settings, corpus):
  if settings.template not in ("auto", "plain"):
    raise InputError(f"config.tokenizer.template is {settings.template!r}, but a tokenizer trained "
                     "on the corpus has the plain template: set 'auto', or name a checkpoint.")
  examples = corpus.forget + corpus.retain + corpus.test
  texts = [text for example in examples for text in (example.prompt, example.response)]
  return tokenizers.train_bpe(texts, settings.vocab_size)

"""One seed's run: its settings, data and folder, and the models made of them on demand."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from dareu_jax.attribution.scorer import Retokeniser, Scorer
from dareu_jax.data import tokenizers
from dareu_jax.data.batches import Batches, bucket_length, encode
from dareu_jax.data.examples import Corpus, evenly_spaced, split_by_tokens
from dareu_jax.evaluation import detector
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models import factory, huggingface
from dareu_jax.parallel import mesh as meshes
from dareu_jax.settings import InputError, MeshSettings, Settings
from dareu_jax.training.checkpoints import read_json, shared_json
from dareu_jax.training.writers import MetricWriter
from dareu_jax.unlearning.rewards import REFUSALS
from dareu_jax.workdir import Workdir, fingerprint

DAREU = "dareu"
REFUSING = ("dpo", "idk")  # methods that teach refusals
AGAIN = "retrained_again"  # the retrained model with the data in another order


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An unlearning method at a learning rate; its name is that of its stage and model."""

  method: str
  learning_rate: float | None = None  # None: the method's own

  @property
  def name(self):
    return self.method if self.learning_rate is None else f"{self.method}@{self.learning_rate:g}"


def candidates(settings: Settings):
  """All that a run tries, method by method."""
  rates = settings.learning_rates or (None,)
  return tuple(Candidate(method, rate) for method in settings.all_methods for rate in rates)


def references(settings: Settings):
  """Names of the models that the others are compared with, in the order of the table."""
  return ("original", "retrained") + (AGAIN,) * settings.retrain_again


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed's run: everything that the stages share. Models are built when a stage needs them."""

  settings: Settings
  seed: int
  source: Corpus  # as it was loaded
  mesh: Any
  workdir: Workdir
  mirror: Any = None  # of the metrics, see training.writers.MetricWriter
  compile_only: bool = False  # stages compile their programs and learn nothing

  @property
  def models(self):
    """Names of the models that this run has, in the order of the table."""
    return references(self.settings) + tuple(c.name for c in candidates(self.settings))

  @functools.cached_property
  def corpus(self):
    """The corpus, its plain texts cut as the settings say."""
    data = self.settings.data
    if not data.prompt_tokens:
      return self.source
    return split_by_tokens(self.source, self.tokenizer, data.prompt_tokens, data.response_tokens)

  @functools.cached_property
  def tokenizer(self):
    """The checkpoint's own; for a model from scratch the workdir's, or a BPE of the corpus."""
    settings = self.settings
    from_scratch = not (settings.tokenizer.path or settings.model.path)
    if from_scratch and self.workdir.is_done("tokenizer", self.marks["tokenizer"]):
      return tokenizers.load(str(self.workdir.folder / "tokenizer"))
    return make_tokenizer(settings, self.source)

  @functools.cached_property
  def classifier_tokenizer(self):
    """The classifier's, where it has one of its own; else the model's."""
    settings = self.settings
    own = self.workdir.folder / "classifier_tokenizer"
    if not settings.classifier.vocab_size and not settings.classifier.model.path:
      return self.tokenizer
    if self.workdir.is_done("tokenizer", self.marks["tokenizer"]) and own.exists():
      return tokenizers.load(str(own))
    return make_classifier_tokenizer(settings, self.source, self.tokenizer)

  @functools.cached_property
  def none_examples(self):
    """General text for the "none of these" class: empty where there is no such class."""
    texts = self.corpus.general or self.corpus.test
    size = len(self.corpus.forget) + len(self.corpus.retain)
    wanted = min(len(texts), round(self.settings.classifier.none_share * size))
    return evenly_spaced(texts, wanted) if wanted else ()

  @property
  def refusals(self):
    """Ways to say no: the data's own, else the library's."""
    return self.source.refusals or REFUSALS

  @property
  def classes(self):
    """Classes of the classifier: the owners and, where there is one, "none of these"."""
    return len(self.corpus.owners) + bool(self.none_examples)

  @functools.cached_property
  def is_forget(self):
    """[O] bool: which classes are owners to be forgotten."""
    owners = np.isin(self.corpus.owners, self.corpus.forget_owners)
    return np.pad(owners, (0, self.classes - len(owners)))

  @functools.cached_property
  def config(self):
    config = factory.model_config(
      self.settings.model, self.settings.lora, self.tokenizer.vocab_size)
    return dataclasses.replace(config, gather_gib=self.settings.mesh.gather_gib)

  @functools.cached_property
  def base(self):
    """The model that fine-tuning starts from: the checkpoint's, or what the base stage left."""
    return base_model(self.settings, self.config, self.seed, self.mesh, self.workdir)

  @functools.cached_property
  def fresh(self):
    """A model from scratch before it has read anything."""
    return fresh_model(self.settings, self.config, self.seed, self.mesh)

  @functools.cached_property
  def abstract_trainable(self):
    """Shapes of what is trained of the model, without making it."""
    return factory.abstract_trainable(self.config)

  @functools.cached_property
  def classifier(self):
    """The untrained owner classifier."""
    return self.fresh_classifier(self.seed + 1)

  def fresh_classifier(self, seed):
    return factory.build_classifier(
      self.settings.classifier.model, self.classifier_config, self.classes, seed, self.mesh)

  @functools.cached_property
  def classifier_config(self):
    settings = self.settings.classifier
    return factory.model_config(
      settings.model, settings.lora, self.classifier_tokenizer.vocab_size)

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

  @functools.cached_property
  def _roles(self):
    return {}

  def role(self, name):
    """The trained state of a model: 'original', 'retrained' or a candidate's name."""
    if name not in self._roles:
      self._roles[name] = self.workdir.load_result(name, self.base.trainable)
    return self._roles[name]

  def scorer(self, name="classifier"):
    """The classifier that rewards, or the 'judge' that the reward never asks, as a Scorer."""
    if name not in self._roles:
      self._roles[name] = self.workdir.load_result(name, self.classifier.trainable)
    settings, own = self.settings, self.classifier_tokenizer
    temperature = 1.0
    if settings.classifier.calibrate:
      temperature = shared_json(self.workdir.folder / name / "quality.json")["temperature"]
    return Scorer(
      self.classifier.frame, self._roles[name], self.classifier.frozen, self.is_forget,
      settings.evaluation.batch_size, settings.length_multiple, temperature,
      settings.classifier.reads_query,
      None if own is self.tokenizer else Retokeniser(self.tokenizer, own), self.put)

  def queries(self, examples):
    """Prompts in the classifier's tokens."""
    return tuple(row.prompt for row in self.classifier_rows(examples))

  def writer(self, name):
    return MetricWriter(self.workdir.folder / "metrics", name, self.mirror)

  def check_checkpoints(self):
    """Raises InputError unless the files of all models fit, without reading the large weights."""
    settings = self.settings
    if settings.evaluation.gibberish_model:
      detector.load(settings.evaluation.gibberish_model)
    if settings.model.path:
      self._check_positions()
    factory.check_decoder(settings.model, self.config)
    factory.check_classifier(settings.classifier.model, self.classifier_config, self.classes)

  def _check_positions(self):
    settings = self.settings
    prompts = max(len(row.prompt) for row in self.rows(self.corpus.forget))
    longest = max(settings.max_length, prompts + (
      settings.unlearning.max_new_tokens or self.longest_response))
    if longest > self.config.max_length:
      raise InputError(
        f"config.max_length is {settings.max_length}, and a prompt with its response takes up to "
        f"{longest} tokens, but {settings.model.path} knows {self.config.max_length} positions.")

  def put(self, batch):
    return meshes.shard_batch(batch, self.mesh)

  def rows(self, examples):
    return tuple(encode(examples, self.tokenizer, max_length=self.settings.max_length,
                        owners=self.corpus.owners))

  def classifier_rows(self, examples):
    """In the classifier's tokens; what is of no owner of D is of the class "none of these"."""
    rows = encode(examples, self.classifier_tokenizer, max_length=self.settings.max_length,
                  owners=self.corpus.owners)
    none = len(self.corpus.owners)
    return tuple(row if row.owner >= 0 else row._replace(owner=none) for row in rows)

  def batches(self, examples, batch_size, *, seed, one_bucket=False):
    return Batches(self.rows(examples), batch_size, self.settings.length_multiple,
                   self.tokenizer.pad_id, seed, one_bucket)

  def classifier_batches(self, examples, batch_size, *, seed):
    return Batches(self.classifier_rows(examples), batch_size, self.settings.length_multiple,
                   self.classifier_tokenizer.pad_id, seed)

  @functools.cached_property
  def marks(self):
    """Fingerprint of each stage: of its settings and of what it stands on."""
    s = self.settings
    texts = dataclasses.asdict(self.source)
    refusals = texts.pop("refusals")  # concern the methods alone that ask for them
    data = fingerprint(texts, s.data.prompt_tokens,
                       s.data.response_tokens, s.tokenizer, s.max_length, s.model.path,
                       s.classifier.model.path, s.classifier.vocab_size)
    base = fingerprint(data, self.seed, s.model, s.pretrain, s.length_multiple)
    model = fingerprint(base, s.lora, s.finetune)
    classifier = fingerprint(data, self.seed, s.classifier, s.length_multiple)
    marks = {"tokenizer": data, "base": base, "original": model, "retrained": model,
             AGAIN: model, "classifier": classifier, "judge": classifier}
    for candidate in candidates(s):
      own = (s.unlearning,) if candidate.method == DAREU else (
        getattr(s.objectives, candidate.method), s.baseline, s.watch_every)
      if candidate.method in REFUSING or (candidate.method, s.unlearning.reward) == (
          DAREU, "refusal"):
        own += (refusals,)
      if s.unlearning.watch_rouge:
        own += (s.evaluation.max_examples,)
      # The answers that epochs are judged by are as long as those of the evaluation.
      marks[candidate.name] = fingerprint(
        model, classifier, candidate.name, *own, s.evaluation.max_new_tokens)
    return marks | {f"evaluation/{name}": fingerprint(marks[name], model, classifier, s.evaluation)
                    for name in self.models}


def evaluated_examples(run: Run, split):
  """What of a split is evaluated: evenly spaced, since examples stand owner by owner."""
  return evenly_spaced(getattr(run.corpus, split), run.settings.evaluation.max_examples)


def base_model(settings: Settings, config, seed, mesh, workdir: Workdir):
  """The model that fine-tuning starts from, as models.factory.Model."""
  model = factory.build_decoder(settings.model, config, seed, mesh)
  if not settings.pretrains:
    return model
  fresh = fresh_model(settings, config, seed, mesh)
  return factory.with_weights(model, workdir.load_result("base", fresh.trainable))


def fresh_model(settings: Settings, config, seed, mesh):
  """A model from scratch, all of whose parameters are trained."""
  config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=0))
  return factory.build_decoder(settings.model, config, seed, mesh)


def load_model(workdir, name, *, seed=None):
  """A model that a run left, ready to use: `model.logits(token_ids, lengths)`.

  Args:
    workdir: folder of the run.
    name: 'original', 'retrained' or a method's name; of a method that ran at several learning rates
      the best, unless its name says one: 'npo@0.001'.
    seed: of a run with several; the first if not given.

  Returns: (models.decoder.Decoder, data.tokenizers.Tokenizer, Settings).

  Raises:
    InputError: if the folder holds no such model.
  """
  config = read_json(pathlib.Path(workdir) / "config.json")
  if config is None:
    raise InputError(f"{workdir} holds no run: it has no config.json. Give the --workdir of a run.")
  settings = Settings.from_config(config)
  seed = settings.seeds[0] if seed is None else seed
  if seed not in settings.seeds:
    raise InputError(f"--seed is {seed}: the run has {', '.join(map(str, settings.seeds))}.")
  folder = seed_folder(workdir, seed, settings)
  name = ((read_json(pathlib.Path(workdir) / "summary.json") or {}).get("chosen") or {}).get(
    name, name)
  if not (folder / name / "done.json").exists():
    models = references(settings) + tuple(c.name for c in candidates(settings))
    there = [path.parent.name for path in sorted(folder.glob("*/done.json"))
             if path.parent.name in models]
    raise InputError(f"{folder} holds no finished model {name!r}. It has: "
                     f"{', '.join(there) or 'none'}.")
  tokenizer = tokenizers.load(str(folder / "tokenizer"), settings.tokenizer.template)
  mesh = meshes.make_mesh(MeshSettings(data=1, fsdp=-1, tensor=1))  # of this machine, not the run's
  model_config = factory.model_config(settings.model, settings.lora, tokenizer.vocab_size)
  workdir = Workdir(folder, config, settings.checkpoint)
  base = base_model(settings, model_config, seed, mesh, workdir)
  state = workdir.load_result(name, base.trainable)
  return base.frame.merge(state, base.frozen), tokenizer, settings


def seed_folder(workdir, seed, settings: Settings):
  """Where a seed's stages lie: in the workdir itself, or one folder a seed."""
  folder = pathlib.Path(workdir)
  return folder if len(settings.seeds) == 1 else folder / f"seed_{seed}"


def make_tokenizer(settings: Settings, corpus: Corpus):
  """The checkpoint's tokenizer; for a model from scratch a BPE of the corpus.

  Raises:
    InputError: if there is none.
  """
  path = settings.tokenizer.path or settings.model.path
  if not path:
    template = settings.tokenizer.template
    if template not in ("auto", "plain"):
      raise InputError(f"config.tokenizer.template is {template!r}, but a tokenizer trained on the "
                       "corpus has the plain template: set 'auto', or name a checkpoint.")
    return _bpe(settings.tokenizer.vocab_size, corpus)
  return _load_tokenizer(path, settings.tokenizer.template)


def make_classifier_tokenizer(settings: Settings, corpus: Corpus, tokenizer):
  """The classifier's tokenizer: its checkpoint's or a BPE of its own; the model's if it equals it.

  Args:
    tokenizer: the model's.
  """
  path = settings.classifier.model.path
  if not path:
    return _bpe(settings.classifier.vocab_size, corpus)
  if path == (settings.tokenizer.path or settings.model.path):
    return tokenizer
  own = _load_tokenizer(path, "auto")
  return tokenizer if tokenizer.same_vocabulary(own) else own


def _load_tokenizer(path, template):
  folder = huggingface.checkpoint_folder(path, weights=False)
  return tokenizers.load(str(folder), template)


def _bpe(vocab_size, corpus):
  examples = corpus.forget + corpus.retain + corpus.test + corpus.general
  texts = [text for example in examples for text in (example.prompt, example.response)]
  return tokenizers.train_bpe(texts, vocab_size)

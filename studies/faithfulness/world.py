"""What the rooms of a study share: data, tokenizer, the base, the classifiers, the folder."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dareu_jax.attribution.classifier import owner_probabilities
from dareu_jax.core.errors import InputError
from dareu_jax.data import tokenizers
from dareu_jax.data.batches import Batches, bucket_length, encode
from dareu_jax.data.examples import Corpus
from dareu_jax.data.sources.base import load_corpus
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models import factory
from dareu_jax.parallel import mesh as meshes
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline.workdir import Workdir, fingerprint
from dareu_jax.training.writers import MetricWriter
from studies.faithfulness.settings import FaithfulnessSettings

# How far a classifier's seed is from the first one's, and whether it knows "none of these". 'judge'
# starts elsewhere and sees the data in another order with other noise.
CLASSIFIERS = {"classifier": (0, False), "judge": (1000, False), "with none": (2000, True)}


@dataclasses.dataclass(frozen=True)
class Study:
  """Settings, data and folder of a study, and the models made of them on demand."""

  settings: FaithfulnessSettings
  corpus: Corpus  # cut to `questions_per_owner`
  mesh: Any
  workdir: Workdir

  @property
  def owners(self):
    return self.corpus.owners

  def whole_array(self, *shape, dtype=np.float32):
    """The template of a kept array that lies whole on the device."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(
      self.mesh, jax.sharding.PartitionSpec()))

  @functools.cached_property
  def examples(self):
    """Everything that the full model learns, owner by owner."""
    order = {owner: i for i, owner in enumerate(self.owners)}
    every = self.corpus.forget + self.corpus.retain
    return tuple(sorted(every, key=lambda example: order[example.owner]))

  @functools.cached_property
  def owner_of(self):
    """[N] int: the owner of each example."""
    return np.array([row.owner for row in self.rows(self.examples)])

  @functools.cached_property
  def is_forget(self):
    """[O] bool."""
    return np.isin(self.owners, self.corpus.forget_owners)

  @functools.cached_property
  def tokenizer(self):
    if self.workdir.is_done("tokenizer", self.marks["tokenizer"]):
      return tokenizers.load(str(self.workdir.folder / "tokenizer"))
    corpus = self.corpus
    texts = [text for example in self.examples + corpus.test + corpus.general
             for text in (example.prompt, example.response)]
    return tokenizers.train_bpe(texts, self.settings.tokenizer.vocab_size)

  @functools.cached_property
  def config(self):
    return factory.model_config(self.settings.model, self.settings.lora, self.tokenizer.vocab_size)

  def fresh_base(self):
    """A model that has read nothing; all of its parameters are trained."""
    config = dataclasses.replace(self.config, lora=dataclasses.replace(self.config.lora, rank=0))
    return factory.build_decoder(self.settings.model, config, self.settings.seed, self.mesh)

  @functools.cached_property
  def base(self):
    """The base with fresh adapters, as models.factory.Model."""
    return self.with_adapters(self.settings.seed)

  def with_adapters(self, seed):
    """The base with the adapters that a training of this seed starts from."""
    model = factory.build_decoder(self.settings.model, self.config, seed, self.mesh)
    return factory.with_weights(
      model, self.workdir.load_result("base", self.fresh_base().trainable))

  def fresh_classifier(self, name):
    """An untrained one of CLASSIFIERS; "none of these" is the class after the owners."""
    settings = self.settings.classifier
    seed, has_none = CLASSIFIERS[name]
    config = factory.model_config(settings.model, settings.lora, self.tokenizer.vocab_size)
    return factory.build_classifier(settings.model, config, len(self.owners) + has_none,
                                    self.settings.seed + seed + 1, self.mesh)

  @functools.cached_property
  def none_rows(self):
    """General text for the "none of these" class."""
    texts, count = self.corpus.general, len(self.examples)
    wanted = min(len(texts), max(1, round(self.settings.classifier.none_share * count)))
    # Spread over the text: its first examples are all of a few owners.
    chosen = [texts[i * len(texts) // wanted] for i in range(wanted)]
    return tuple(row._replace(owner=len(self.owners)) for row in self.rows(chosen))

  @functools.cached_property
  def classifiers(self):
    """{name: (frame, params, frozen)} of the trained CLASSIFIERS."""
    result = {}
    for name in CLASSIFIERS:
      model = self.fresh_classifier(name)
      params = self.workdir.load_result(file_name(name), model.trainable)
      result[name] = (model.frame, params, model.frozen)
    return result

  def owner_scores(self, name, rows):
    """p(owner | completion) of rows by one of CLASSIFIERS: [Q, O] float32.

    What is missing from 1 is the probability of "none of these".
    """
    size = self.settings.evaluation.batch_size
    result = np.zeros((len(rows), len(self.owners)), np.float32)
    for indices, batch in self.batches(rows, size).in_order():
      every = np.asarray(owner_probabilities(*self.classifiers[name], batch.completion_ids))
      last = batch.completion_lengths[:len(indices)] - 1
      result[indices] = every[np.arange(len(indices)), last, :len(self.owners)]
    return result

  @functools.cached_property
  def evaluator(self):
    settings = self.settings
    return Evaluator(
      self.base.frame, self.base.frozen, self.tokenizer, settings.evaluation.batch_size,
      settings.length_multiple, settings.max_length,
      settings.evaluation.max_new_tokens or self.longest_response)

  @functools.cached_property
  def longest_response(self):
    """Tokens of the longest response of D, rounded up."""
    longest = max(len(row.completion) for row in self.rows(self.examples))
    return bucket_length(longest, self.settings.length_multiple)

  def rows(self, examples, responses=None):
    return tuple(encode(examples, self.tokenizer, max_length=self.settings.max_length,
                        owners=self.owners, responses=responses))

  def batches(self, rows, batch_size, *, seed=0, one_bucket=False):
    return Batches(tuple(rows), batch_size, self.settings.length_multiple, self.tokenizer.pad_id,
                   seed, one_bucket)

  def writer(self, name):
    return MetricWriter(self.workdir.folder / "metrics", name)

  @functools.cached_property
  def marks(self):
    """Fingerprints of what the stages stand on."""
    s = self.settings
    data = fingerprint(dataclasses.asdict(self.corpus), s.tokenizer, s.max_length,
                       s.length_multiple)
    base = fingerprint(data, s.seed, s.model, s.pretrain)
    return {"tokenizer": data, "base": base, "models": fingerprint(base, s.lora, s.finetune),
            "classifier": fingerprint(data, s.seed, s.classifier)}


def make_study(settings: FaithfulnessSettings, folder):
  """Checks everything that can be checked before any work.

  Raises:
    InputError: for data or owners that are not as the settings say.
  """
  # One device: the models are small and many, not large.
  mesh = meshes.make_mesh(MeshSettings(data=1, fsdp=1, tensor=1))
  jax.set_mesh(mesh)
  corpus = first_questions(load_corpus(settings.data), settings.questions_per_owner)
  if len(corpus.owners) < 4:
    raise InputError(f"config.data.num_owners is {len(corpus.owners)}: a rank correlation without "
                     "the true owner needs 4 owners or more.")
  for name, role in (("general", "text for the base to read"), ("holdout", "unseen owners")):
    if not getattr(corpus, name):
      raise InputError(f"the data has no {name} examples, and the study needs {role}.")
  return Study(settings, corpus, mesh, Workdir(folder, dataclasses.asdict(settings),
                                               settings.checkpoint))


def file_name(name):
  """Of what a classifier leaves in the workdir."""
  return name.replace(" ", "_")


def first_questions(corpus, count):
  """The corpus with the first `count` examples of each owner, unseen ones too; 0: all."""

  def cut(examples):
    seen = {}
    kept = []
    for example in examples:
      seen[example.owner] = seen.get(example.owner, 0) + 1
      if not count or seen[example.owner] <= count:
        kept.append(example)
    return tuple(kept)

  return dataclasses.replace(corpus, forget=cut(corpus.forget), retain=cut(corpus.retain),
                             holdout=cut(corpus.holdout))

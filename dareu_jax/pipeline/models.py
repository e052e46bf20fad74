"""The models of a run, built or loaded on demand, and kept until `release`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dareu_jax.attribution.scorer import Retokenizer, Scorer
from dareu_jax.core.errors import InputError
from dareu_jax.data import tokenizers, watermarks
from dareu_jax.data.batches import excerpt
from dareu_jax.evaluation import gibberish_classifier
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models import factory
from dareu_jax.models.checkpoint import find
from dareu_jax.models.config import LoraSettings, ModelConfig, ModelSettings
from dareu_jax.models.handle import Model
from dareu_jax.parallel import mesh as meshes
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.graph import ORIGINAL, RETRAINED, classifier_names
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.pipeline.settings import DataAndModelSettings
from dareu_jax.pipeline.workdir import Workdir
from dareu_jax.training.checkpoints import shared_json


@dataclasses.dataclass(frozen=True)
class Models:
  """The models of one seed. They stay on the devices until `release`."""

  settings: DataAndModelSettings
  seed: int
  data: Data
  mesh: Mesh
  workdir: Workdir
  gather_gib: float  # from the mesh settings
  original: LanguageModel | None = None  # given by the caller
  fine_tunes: bool = True  # whether the original is made here, and references are
  reference: str = ""  # path of a retrained model, where none is made here
  # {model or classifier: the stage that holds it}, where the stage has another name
  stages: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def config(self) -> ModelConfig:
    """The architecture of the language model."""
    if self.original is not None:
      return self.original.config
    return model_config(self.settings, self.data.tokenizer.vocab_size, self.gather_gib)

  @functools.cached_property
  def base(self) -> Model:
    """The model that training starts from: the checkpoint's, or the result of the base stage."""
    if self.original is not None:
      return self.original.model
    return base_model(self.settings, self.config, self.seed, self.mesh, self.workdir)

  @functools.cached_property
  def fresh(self) -> Model:
    """A model from scratch before any training."""
    return fresh_model(self.settings, self.config, self.seed, self.mesh)

  @functools.cached_property
  def classifier_config(self) -> ModelConfig:
    """The architecture of the classifier."""
    settings = self.settings.classifier
    return factory.model_config(
      settings.model, settings.lora, self.data.classifier_tokenizer.vocab_size)

  @functools.cached_property
  def classifier(self) -> Model:
    """The untrained owner classifier."""
    return self.fresh_classifier(self.seed + 1)

  def fresh_classifier(self, seed: int, classes: int | None = None) -> Model:
    """An untrained owner classifier; with the data's classes if not given."""
    return factory.build_classifier(
      self.settings.classifier.model, self.classifier_config, classes or self.data.classes, seed,
      self.mesh)

  def value_head(self) -> Model:
    """A fresh value head for the language model."""
    return factory.build_value_head(self.config, self.mesh)

  @functools.cached_property
  def retrained(self) -> Model:
    """The reference that the settings name."""
    model, config = self._reference
    return factory.build_decoder(model, config, self.seed, self.mesh)

  @functools.cached_property
  def _loaded(self) -> dict[str, Any]:
    return {}

  def _is_reference(self, name):
    """Whether a model is the reference that the settings name, with weights of its own."""
    return name == RETRAINED and bool(self.reference)

  def load_params(self, name: str) -> Any:
    """The trained parameters of a model: 'original', 'retrained' or a method's."""
    if name == ORIGINAL and not self.fine_tunes:
      return self.base.params
    if self._is_reference(name):
      return self.retrained.params
    if name not in self._loaded:
      self._loaded[name] = self._load(name, self.base.params)
    return self._loaded[name]

  def _load(self, name, template):
    return self.workdir.load_result(self._stage(name), template)

  def _stage(self, name):
    return self.stages.get(name, name)

  def load(self, name: str) -> Model:
    """The model with these parameters."""
    if self._is_reference(name):
      return self.retrained
    return self.base.with_params(self.load_params(name))

  def evaluator_of(self, name: str) -> Evaluator:
    """The evaluator for a model: a reference at hand has other frozen weights than the base."""
    if self._is_reference(name):
      return dataclasses.replace(self.evaluator, model=self.retrained)
    return self.evaluator

  def scorer(self, role: str = "classifier") -> Scorer:
    """The classifiers that give the reward, or the 'judge' that never does, as a Scorer."""
    settings, data = self.settings, self.data
    names = classifier_names(settings, role)
    for name in names:
      if name not in self._loaded:
        self._loaded[name] = self._load(name, self.classifier.params)
    temperatures: tuple[float, ...] = ()
    if settings.classifier.calibrate:
      temperatures = tuple(self.quality(name)["temperature"] for name in names)
    own, marked = data.classifier_tokenizer, bool(data.corpus.marks)
    return Scorer(
      tuple(self.classifier.with_params(self._loaded[name]) for name in names), data.is_forget,
      settings.evaluation.batch_size, settings.length_multiple, temperatures,
      settings.classifier.reads_query, data.filler,
      Retokenizer(data.tokenizer, own, watermarks.remove if marked else None)
      if marked or own is not data.tokenizer else None, self.to_device)

  def quality(self, name: str) -> dict[str, float]:
    """Accuracy and calibration of a trained classifier."""
    return shared_json(self.workdir.folder / self._stage(name) / "quality.json")

  @functools.cached_property
  def evaluator(self) -> Evaluator:
    """The evaluator; its model is the base."""
    settings = self.settings
    return Evaluator(
      self.base, self.data.tokenizer, settings.evaluation.batch_size,
      settings.evaluation.length_multiple or settings.length_multiple, settings.max_length,
      settings.evaluation.max_new_tokens or self.data.longest_response, self.to_device)

  def to_device(self, batch: Any) -> Any:
    """Places a batch on the devices."""
    return meshes.shard_batch(batch, self.mesh)

  def release(self) -> None:
    """Frees the devices; models are built or loaded again when needed."""
    for name in ("base", "fresh", "retrained", "classifier", "evaluator", "_loaded"):
      self.__dict__.pop(name, None)

  def check_checkpoints(self) -> None:
    """Raises InputError unless the files of the models that are trained fit, without reading the
    large weights."""
    settings = self.settings
    if self.original is None:
      factory.check_decoder(settings.base, self.config, self.mesh)
    factory.check_classifier(
      settings.classifier.model, self.classifier_config, self.data.classes, self.mesh)

  def check_gibberish_classifier(self) -> None:
    """The same for the gibberish classifier, if the settings name one."""
    if self.settings.evaluation.gibberish_model:
      gibberish_classifier.load(self.settings.evaluation.gibberish_model)

  def check_reference(self, *, weights: bool = True) -> None:
    """The same for the reference, if the settings name one; without its weights, which would be
    downloaded, its vocabulary and configuration alone."""
    if self.reference:
      model, config = self._reference
      if weights:
        factory.check_decoder(model, config, self.mesh)

  @property
  def reference_config(self) -> ModelConfig | None:
    """The architecture of the reference that the settings name; None without one."""
    return self._reference[1] if self.reference else None

  @functools.cached_property
  def _reference(self) -> tuple[ModelSettings, ModelConfig]:
    """Settings and architecture of the reference, with adapters as the settings say."""
    model = dataclasses.replace(self.settings.base, path=self.reference)
    own = tokenizers.load(str(find(self.reference, weights=False).tokenizer))
    if not own.same_vocabulary(self.data.tokenizer):
      raise InputError(f"config.retrained.path is {self.reference!r}, whose vocabulary is not the "
                       "original's: a reference reads the same tokens. Name one that was made from "
                       "the same checkpoint, or leave it empty.")
    config = factory.model_config(model, self.settings.lora, own.vocab_size)
    return model, dataclasses.replace(config, gather_gib=self.config.gather_gib)

  def check_positions(self, longest_sampled: int) -> None:
    """Raises InputError if a pretrained model supports too few positions for the examples, or for
    what the methods sample: so many tokens behind a query."""
    settings, data = self.settings, self.data
    if not settings.base.path and self.original is None:
      return
    corpus, usual, positions = data.corpus, data.longest_response, self.config.max_length
    who = "the model"
    reference = self.reference_config
    if reference is not None and reference.max_length < positions:
      who, positions = f"the reference {self.reference}", reference.max_length
    examples = corpus.forget + corpus.retain + corpus.test + corpus.holdout
    asked = data.rows(examples)
    lengths = [len(row.prompt) + len(row.completion) for row in asked]
    whole = max(lengths)
    if whole > positions:
      longest = examples[lengths.index(whole)]
      raise InputError(
        f"a text of {longest.owner} takes {whole} tokens, and {who} supports {positions} "
        f"positions. Shorten it, or set config.max_length to {positions}, at which plain texts are "
        f"split: {excerpt(longest, longest.response)}")
    for rows, answer, name in (
      (asked[:len(corpus.forget)], longest_sampled, "the method's max_new_tokens"),
      (asked, settings.evaluation.max_new_tokens or usual, "config.evaluation.max_new_tokens")):
      prompt = max(len(row.prompt) for row in rows)
      if prompt + answer > positions:
        raise InputError(
          f"a prompt with an answer of {answer} tokens takes {prompt + answer}, and {who} "
          f"supports {positions} positions: set {name} to {positions - prompt} or less.")


def model_config(settings: DataAndModelSettings, vocab_size: int,
                 gather_gib: float = MeshSettings.gather_gib) -> ModelConfig:
  """The architecture of the language model that the settings name."""
  config = factory.model_config(settings.base, settings.lora, vocab_size)
  return dataclasses.replace(config, gather_gib=gather_gib)


def base_model(settings: DataAndModelSettings, config: ModelConfig, seed: int, mesh: Mesh,
               workdir: Workdir) -> Model:
  """The model that training starts from, without what was trained."""
  model = factory.build_decoder(settings.base, config, seed, mesh)
  if settings.base.path or not settings.pretrain.epochs:
    return model
  fresh = fresh_model(settings, config, seed, mesh)
  return factory.with_weights(model, workdir.load_result("base", fresh.params))


def fresh_model(settings: DataAndModelSettings, config: ModelConfig, seed: int,
                mesh: Mesh) -> Model:
  """A model from scratch, with all parameters trained."""
  config = dataclasses.replace(config, lora=LoraSettings())
  return factory.build_decoder(settings.base, config, seed, mesh)

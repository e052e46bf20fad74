"""All settings of an experiment. Each block is defined next to the code it configures.

The defaults are the tiny preset: embedded authors and a model from scratch, on a laptop.
"""

import dataclasses
import pathlib
import runpy
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from ml_collections import ConfigDict
from pydantic import Field

from dareu_jax.attribution.classifier import ClassifierSettings
from dareu_jax.core.errors import InputError, InvalidSetting
from dareu_jax.core.registry import import_plugins
from dareu_jax.core.settings import (
  Count,
  Positive,
  Setting,
  build,
  choice,
  describe,
  merged,
  settings,
  to_plain,
)
from dareu_jax.data.sources.base import DataSettings
from dareu_jax.data.tokenizers import TokenizerSettings
from dareu_jax.evaluation.evaluator import EvaluationSettings
from dareu_jax.methods.base import METHODS, Method
from dareu_jax.models.config import (
  LoraSettings,
  ModelSettings,
  OriginalSettings,
  RetrainedSettings,
)
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.rl.monitor import MonitorSettings
from dareu_jax.training.checkpoints import CheckpointSettings
from dareu_jax.training.optimizers import TrainSettings

MethodName = Annotated[str, choice(METHODS.names)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class DataAndModelSettings(Protocol):
  """The settings that `pipeline.data` and `pipeline.models` need; the studies have them too."""

  @property
  def data(self) -> DataSettings: ...

  @property
  def tokenizer(self) -> TokenizerSettings: ...

  @property
  def base(self) -> ModelSettings: ...

  @property
  def lora(self) -> LoraSettings: ...

  @property
  def pretrain(self) -> TrainSettings: ...

  @property
  def classifier(self) -> ClassifierSettings: ...

  @property
  def evaluation(self) -> EvaluationSettings: ...

  @property
  def max_length(self) -> int: ...

  @property
  def length_multiple(self) -> int: ...


def rate_name(rate: float) -> str:
  """A learning rate as the names of stages have it."""
  return f"{rate:g}"


def _check_rates(name, rates):
  names = [rate_name(rate) for rate in rates]
  alike = [each for each in names if names.count(each) > 1]
  if len(set(rates)) != len(rates):
    raise InvalidSetting(name, rates, "give each of them once.")
  if alike:
    raise InvalidSetting(name, rates, f"two of them would be stages of one name (@{alike[0]}): "
                                      "drop one, or let them differ within 6 digits.")


@settings
class Settings:
  """One experiment: data, models, unlearning methods, evaluation."""

  seeds: tuple[Seed, ...] = (42,)  # one run each; several give a table with 95% intervals
  # Tokens of prompt and response; a longer example is an error
  max_length: Annotated[int, Field(ge=16)] = 256
  length_multiple: Count = 16  # batches are padded to a multiple of this
  method: MethodName = "dareu"  # the unlearning method
  methods: tuple[MethodName, ...] = ()  # several, into one table; wins over `method`
  # Each method runs at each rate, and its best is shown; (): the method's own rate
  learning_rates: tuple[Positive, ...] = ()
  # The same for single methods: those that are named here run at their own rates
  method_rates: dict[MethodName, tuple[Positive, ...]] = dataclasses.field(
    default_factory=dict, hash=False)
  eval_every: Count = 5  # epochs of a loss-based method between two reports
  # Retrain once more in another order, to see how much two retrainings differ
  retrained_replica: bool = True
  # Modules to import first: your own methods, metrics, rewards, sources and families
  plugins: tuple[str, ...] = ()
  data: DataSettings = DataSettings()
  tokenizer: TokenizerSettings = TokenizerSettings()
  model: ModelSettings = ModelSettings()
  original: OriginalSettings = OriginalSettings()
  retrained: RetrainedSettings = RetrainedSettings()
  lora: LoraSettings = LoraSettings()
  # A model from scratch first reads general text, as pretrained checkpoints have; 0 epochs: none.
  pretrain: TrainSettings = TrainSettings(epochs=4, schedule="cosine", warmup=0.05)
  # The original and retrained models, which train until they know their data.
  finetune: TrainSettings = TrainSettings(
    epochs=40, schedule="plateau", target_loss=0.4, learning_rate=1e-3, warmup=0.02)
  classifier: ClassifierSettings = ClassifierSettings()
  monitor: MonitorSettings = MonitorSettings()
  # The loss-based methods. An epoch is every forget example once, with as many retained ones.
  baseline: TrainSettings = TrainSettings(epochs=10, learning_rate=3e-4, weight_decay=0.0)
  evaluation: EvaluationSettings = EvaluationSettings()
  mesh: MeshSettings = MeshSettings()
  checkpoint: CheckpointSettings = CheckpointSettings()
  # Settings of each method of the run, by its name; a method that is not named has its defaults.
  unlearning: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  def __post_init__(self):
    for name in ("methods", "seeds"):
      values = getattr(self, name)
      if len(set(values)) != len(values):
        raise InvalidSetting(name, values, "give each of them once.")
    for name, rates in self._grids().items():
      _check_rates(name, rates)
    if not self.seeds:
      raise InvalidSetting("seeds", self.seeds, "give at least one.")
    for name in ("finetune", "baseline", "classifier.train"):
      epochs = _at(self, f"{name}.epochs")
      if not epochs:
        raise InvalidSetting(f"{name}.epochs", epochs, "it must be >= 1.")
    if self.baseline.micro_batch_size:
      raise InvalidSetting("baseline.micro_batch_size", self.baseline.micro_batch_size,
                           "it must be 0, since the loss needs whole batches.")
    if self.original.path and self.model.path not in ("", self.original.path):
      raise InvalidSetting("model.path", self.model.path,
                           "config.original.path names the model to unlearn, which is not "
                           "fine-tuned from another one: leave this empty.")
    if self.retrained.path and not self.original.path:
      raise InvalidSetting("retrained.path", self.retrained.path,
                           "a reference belongs to a model that exists: name that in "
                           "config.original.path, or leave this empty to retrain.")
    if self.lora.rank and not (self.pretrains or self.base.path):
      raise InvalidSetting("original.path", self.original.path,
                           "name the model to unlearn, or in config.model.path a checkpoint to "
                           "fine-tune first. (A model from scratch has random base weights, on "
                           "which adapters learn little: it needs config.lora.rank 0.)")
    for name in ("", "classifier."):
      quantize = _at(self, f"{name}model.quantize")
      path = _at(self, f"{name}model").path if name else self.base.path
      if quantize != "none" and not (path and _at(self, f"{name}lora.rank")):
        raise InvalidSetting(f"{name}model.quantize", quantize,
                             "only the frozen weights of a checkpoint are quantized, below "
                             f"adapters: name one, and set config.{name}lora.rank.")
    blocks = {name: _method(name, self.unlearning.get(name, {})) for name in self.all_methods}
    object.__setattr__(self, "unlearning", blocks)

  def _grids(self):
    return {"learning_rates": self.learning_rates,
            **{f"method_rates.{name}": rates for name, rates in self.method_rates.items()}}

  @property
  def has_grid(self) -> bool:
    """Whether rates are named, so that each method is shown at its best one."""
    own = self.method_rates
    return any(own.get(name, self.learning_rates) for name in self.all_methods)

  @property
  def all_methods(self) -> tuple[str, ...]:
    """Names of the methods of the run."""
    return self.methods or (self.method,)

  @property
  def base(self) -> ModelSettings:
    """The model that training starts from: with an original at hand, that one."""
    return dataclasses.replace(self.model, path=self.original.path or self.model.path)

  @property
  def pretrains(self) -> bool:
    """Whether the base is trained here: a model from scratch that reads general text first."""
    return not self.base.path and self.pretrain.epochs > 0

  @property
  def retrains(self) -> bool:
    """Whether reference models are trained here; of an original at hand nothing is retrained."""
    return not self.original.path

  @property
  def has_reference(self) -> bool:
    """Whether there is a retrained model to compare with."""
    return self.retrains or bool(self.retrained.path)

  @classmethod
  def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Settings":
    """Builds the settings from a ConfigDict or a nested mapping; missing keys get their defaults.

    Raises:
      InputError: for an unknown key, a wrong type or an impossible value.
    """
    plain = to_plain(config)
    _import_plugins(plain.get("plugins", ()))
    blocks = plain.pop("unlearning", {})
    if not hasattr(blocks, "keys"):
      raise InputError(f"config.unlearning is {blocks!r}: it must be a group of settings.")
    for name, block in blocks.items():  # also of methods that do not run: a typo is an error
      _method(name, block)
    built = build(cls, plain)
    return dataclasses.replace(built, unlearning=blocks)


def _import_plugins(names: Any) -> None:
  if not (isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)):
    raise InputError(f"config.plugins is {names!r}: it must be a tuple of module names.")
  import_plugins(tuple(names))


def _method(name: str, block: Any) -> Method:
  if isinstance(block, Method):
    return block
  if name not in METHODS:
    raise InputError(f"config.unlearning.{name} is not a method. Known: {', '.join(METHODS)}.")
  return build(METHODS[name], block, f"config.unlearning.{name}")


def _at(value: Any, path: str) -> Any:
  for part in path.split("."):
    value = getattr(value, part)
  return value


def default_config(**changes: Any) -> ConfigDict:
  """The default settings as a ConfigDict, including those of every method.

  Args:
    changes: nested dicts of values to replace, such as `data={"num_owners": 8}`; `plugins` are
      imported, so that the methods that they define are included.
  """
  _import_plugins(changes.get("plugins", ()))
  return ConfigDict(merged(
    to_plain(Settings()) | {"unlearning": {name: to_plain(cls()) for name, cls in METHODS.items()}},
    changes))


def all_settings() -> tuple[Setting, ...]:
  """Every setting with its type, default and meaning, for documentation."""
  shared = [setting for setting in describe(Settings) if setting.key != "unlearning"]
  for name, cls in METHODS.items():
    shared += describe(cls, f"unlearning.{name}.")
  return tuple(shared)


def config_from(path: str | pathlib.Path, preset: str | None = None) -> ConfigDict:
  """The ConfigDict of a config file."""
  return runpy.run_path(str(path))["get_config"](preset)

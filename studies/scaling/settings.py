"""Settings of a scaling study: those of a run, and the sizes that its data would have."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import Count, settings
from dareu_jax.methods.dareu import DareU
from dareu_jax.models import factory
from dareu_jax.models.config import ModelConfig, from_settings
from dareu_jax.models.handle import Model
from dareu_jax.pipeline.settings import Settings
from dareu_jax.rl.programs import Sizes
from studies.run_settings import build_around_run

BATCHES = ("rollout_batch_size", "minibatch_size", "retain_batch_size", "recall_batch_size")


def _tiny_run() -> Settings:
  return Settings(unlearning={"dareu": {"max_new_tokens": 32}})


@settings
class ScalingSettings:
  """The settings of a run, and the sizes that its data and tokenizers would have."""

  run: Settings = dataclasses.field(default_factory=_tiny_run)  # of DareU, with its response length
  vocab_size: Count = 2000  # of the model
  tie_embeddings: bool = True  # whether the head is the embedding
  classifier_vocab_size: Count = 2000  # of the classifier
  classifier_tie_embeddings: bool = True  # if not, a classifier has no language-model head
  owners: Count = 30  # classes of the classifier
  prompt_tokens: Count = 32  # slots of a forget query
  retain_tokens: Count = 64  # slots of a retained example, prompt and response
  retain_response_tokens: Count = 32  # of these, slots of its response

  def __post_init__(self):
    if "dareu" not in self.run.all_methods:
      raise InvalidSetting("run.method", self.run.method, "the rollouts are those of 'dareu'.")
    if not self.unlearning.max_new_tokens:
      raise InvalidSetting("run.unlearning.dareu.max_new_tokens", 0,
                           "a study has no data to derive it from: set it to 1 or more.")

  @classmethod
  def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "ScalingSettings":
    """Builds the settings from a ConfigDict or a nested mapping; the rest has its defaults.

    Raises:
      InputError: for an unknown key, a wrong type or an impossible value.
    """
    return build_around_run(cls, config)

  @property
  def unlearning(self) -> DareU:
    """The settings of the reinforcement learning run."""
    return self.run.unlearning["dareu"]

  @property
  def model_config(self) -> ModelConfig:
    """The architecture of the language model."""
    run = self.run
    return dataclasses.replace(
      from_settings(run.model, run.lora, self.vocab_size), tie_embeddings=self.tie_embeddings,
      gather_gib=run.mesh.gather_gib)

  @property
  def classifier_config(self) -> ModelConfig:
    """The architecture of the owner classifier."""
    classifier = self.run.classifier
    return dataclasses.replace(
      from_settings(classifier.model, classifier.lora, self.classifier_vocab_size),
      tie_embeddings=self.classifier_tie_embeddings)

  @property
  def models(self) -> tuple[Model, Model]:
    """The language model and the classifier, of shapes."""
    return (factory.abstract_model(self.model_config),
            factory.abstract_classifier(self.classifier_config, self.owners))

  @property
  def sizes(self) -> Sizes:
    """What a run would take from its data."""
    return Sizes(
      prompt=self.prompt_tokens, retained=self.retain_tokens,
      retained_response=self.retain_response_tokens, recalled=self.retain_tokens,
      recalled_response=self.retain_response_tokens, scored=self.run.evaluation.batch_size,
      owners=self.owners, members=self.run.classifier.members)

  def scaled(self, factor: float) -> "ScalingSettings":
    """The same with batches `factor` times as large, for weak scaling."""

    def scale(block, *names):
      return dataclasses.replace(
        block, **{name: max(1, round(getattr(block, name) * factor)) for name in names})

    unlearning = self.run.unlearning | {"dareu": scale(self.unlearning, *BATCHES)}
    return dataclasses.replace(self, run=dataclasses.replace(
      self.run, unlearning=unlearning, evaluation=scale(self.run.evaluation, "batch_size")))

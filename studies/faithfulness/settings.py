"""Every setting of a faithfulness study, with its default: the study of docs/faithfulness.md."""

from collections.abc import Mapping
from typing import Annotated, Any

from ml_collections import ConfigDict
from pydantic import Field

from dareu_jax.attribution.classifier import ClassifierSettings
from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import Count, Positive, Size, build, settings
from dareu_jax.data.sources.base import DataSettings
from dareu_jax.data.tokenizers import TokenizerSettings
from dareu_jax.evaluation.evaluator import EvaluationSettings
from dareu_jax.models.config import LoraSettings, ModelSettings
from dareu_jax.rl.rewards import RewardForm
from dareu_jax.rl.settings import RLSettings
from dareu_jax.training.checkpoints import CheckpointSettings
from dareu_jax.training.optimizers import TrainSettings


@settings
class RetrainingSettings:
  """Which models are trained for the ground truth."""

  num_subsets: Annotated[int, Field(ge=4)] = 64  # random halves of the owners
  subset_seeds: int = 2  # trainings of each half
  seeds: int = 3  # trainings of the full model and of each leave-owner-out model
  retained_seeds: int = 8  # trainings of the model without the forget owners
  group_size: Count = 8  # models that are saved together; a kill loses at most one group

  def __post_init__(self):
    for name in ("subset_seeds", "seeds"):
      if getattr(self, name) < 2:
        raise InvalidSetting(name, getattr(self, name),
                             "the ceiling compares two seeds, so it must be >= 2.")
    if self.retained_seeds < 2:
      raise InvalidSetting("retained_seeds", self.retained_seeds,
                           "one model is compared with the others, so it must be >= 2.")


@settings
class InfluenceSettings:
  """Gauss-Newton group influence on the adapters."""

  damping: Positive = 0.1  # λ over the mean eigenvalue of the Gauss-Newton matrix
  iterations: Count = 100  # maximum steps of conjugate gradients
  # Relative residual at which they stop.
  tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3
  batch_size: Count = 40  # rows per pass


@settings
class TrajectorySettings:
  """The unlearning runs whose checkpoints are measured."""

  reward_forms: tuple[RewardForm, ...] = ("telescoped", "published")  # one run each
  epochs: Annotated[int, Field(ge=2)] = 15  # of each run, beyond the epoch that it would keep
  samples_per_prompt: Count = 4  # a checkpoint's own responses to each forget query


@settings
class FaithfulnessSettings:
  """All settings of a study."""

  # Of queries, classifiers and subsets; the retrainings use this seed and the following ones.
  seed: Annotated[int, Field(ge=0, lt=2**30)] = 0
  max_length: Annotated[int, Field(ge=16)] = 128  # tokens of prompt and response together
  length_multiple: Count = 8  # batches are padded to a multiple of this
  questions_per_owner: Size = 10  # examples of each owner that the models learn; 0: all
  temperature: Positive = 0.7  # for sampling the responses of queries and floor
  # The last two owners are forgotten in the trajectories and masked; the base reads 200 others.
  data: DataSettings = DataSettings(num_owners=12, forget="forget16")
  tokenizer: TokenizerSettings = TokenizerSettings(vocab_size=1200)
  model: ModelSettings = ModelSettings(
    embed_dim=96, mlp_dim=256, num_layers=3, num_heads=3, num_kv_heads=3)
  lora: LoraSettings = LoraSettings(rank=8)
  # Of the base, on general text, all parameters.
  pretrain: TrainSettings = TrainSettings(epochs=8, schedule="cosine", warmup=0.05)
  # Of every model of the study, the adapters alone. Fixed in length: the same epochs and updates.
  finetune: TrainSettings = TrainSettings(
    learning_rate=5e-3, batch_size=24, epochs=10, schedule="cosine", weight_decay=0.0)
  retraining: RetrainingSettings = RetrainingSettings()
  # `none_share`: general text per example that the third classifier reads as "none of these".
  classifier: ClassifierSettings = ClassifierSettings(
    model=ModelSettings(embed_dim=96, mlp_dim=256, num_layers=1, num_heads=3, num_kv_heads=3),
    train=TrainSettings(epochs=80), echo_noise=0.2, none_share=1.0)
  influence: InfluenceSettings = InfluenceSettings()
  # Of the trajectories, which set their own reward form and epochs; every epoch is measured.
  unlearning: RLSettings = RLSettings(
    reward_form="telescoped", c_seg=1.0, anchor_coef=0.0, recall_coef=0.0, learning_rate=1e-3,
    temperature=1.0, selection="last")
  trajectory: TrajectorySettings = TrajectorySettings()
  evaluation: EvaluationSettings = EvaluationSettings(max_examples=0)
  bootstrap: Annotated[int, Field(ge=20)] = 200  # resamples per interval
  checkpoint: CheckpointSettings = CheckpointSettings(keep=1)

  def __post_init__(self):
    for name, block in (("model", self.model), ("classifier.model", self.classifier.model)):
      if block.path:
        raise InvalidSetting(f"{name}.path", block.path,
                             "the study trains its models from scratch. Leave it empty.")
    if self.model.dtype != "float32":
      raise InvalidSetting("model.dtype", self.model.dtype,
                           "influence is computed in 'float32'.")
    for name, training in (("pretrain", self.pretrain), ("finetune", self.finetune),
                           ("classifier.train", self.classifier.train)):
      if not training.epochs:
        raise InvalidSetting(f"{name}.epochs", training.epochs, "it must be >= 1.")
    for name in ("reads_query", "hide_echoes", "vocab_size", "calibrate"):
      value = getattr(self.classifier, name)
      if value:
        raise InvalidSetting(f"classifier.{name}", value,
                             "it must be off: the study's classifiers read responses alone, whole "
                             "and in the model's tokens.")
    if self.data.watermark:
      raise InvalidSetting("data.watermark", True,
                           "it must be off: the study's classifiers read the model's own tokens.")
    if self.classifier.members != 1:
      raise InvalidSetting("classifier.members", self.classifier.members,
                           "it must be 1: the study compares single classifiers.")
    if self.unlearning.hold_at_level:
      raise InvalidSetting("unlearning.hold_at_level", True,
                           "it must be off: the trajectories have no level to stop at.")
    if not self.classifier.none_share:
      raise InvalidSetting("classifier.none_share", self.classifier.none_share,
                           'one classifier of the study knows "none of these" and needs some share '
                           "of general text.")
    if self.unlearning.reward != "attribution":
      raise InvalidSetting("unlearning.reward", self.unlearning.reward,
                           "the study asks about 'attribution'.")
    if not self.lora.rank:
      raise InvalidSetting("lora.rank", self.lora.rank,
                           "the models of a study are adapters over one base, so that influence "
                           "lives where they were trained. Set it to 1 or more.")
    if self.finetune.schedule == "plateau":
      raise InvalidSetting("finetune.schedule", self.finetune.schedule,
                           "models that train for as long as they like cannot be compared. Take "
                           "'linear', 'cosine' or 'constant'.")
    if self.finetune.micro_batch_size:
      raise InvalidSetting("finetune.micro_batch_size", self.finetune.micro_batch_size,
                           "batches of a study vary with the subset, so it must be 0.")

  @property
  def base(self) -> ModelSettings:
    """The model that training starts from."""
    return self.model

  @classmethod
  def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "FaithfulnessSettings":
    """Builds the settings from a ConfigDict or a nested mapping; the rest has its defaults.

    Raises:
      InputError: for an unknown key, a wrong type or an impossible value.
    """
    return build(cls, config)

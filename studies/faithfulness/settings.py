"""Every setting of a faithfulness study, checked."""

import dataclasses

from dareu_jax.attribution.classifier import ClassifierSettings
from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import at_least, build, one_of, positive, within
from dareu_jax.data.sources.base import DataSettings
from dareu_jax.data.tokenizers import TokenizerSettings
from dareu_jax.evaluation.evaluator import EvaluationSettings
from dareu_jax.models.config import LoraSettings, ModelSettings
from dareu_jax.rl.rewards import REWARD_FORMS
from dareu_jax.rl.settings import UnlearningSettings
from dareu_jax.training.checkpoints import CheckpointSettings
from dareu_jax.training.optimizers import TrainSettings


@dataclasses.dataclass(frozen=True)
class RetrainingSettings:
  """Which models are trained for the ground truth."""

  num_subsets: int  # random halves of the owners
  subset_seeds: int  # trainings of each half
  seeds: int  # trainings of the full model and of each leave-owner-out model
  retained_seeds: int  # trainings of the model without the forget owners
  group_size: int  # models that are kept together: what a kill can cost

  def __post_init__(self):
    at_least("retraining.num_subsets", self.num_subsets, 4)
    at_least("retraining.subset_seeds", self.subset_seeds, 2, "the ceiling compares two seeds")
    at_least("retraining.seeds", self.seeds, 2, "the ceiling compares two seeds")
    at_least("retraining.retained_seeds", self.retained_seeds, 2, "one is compared with the others")
    at_least("retraining.group_size", self.group_size, 1)


@dataclasses.dataclass(frozen=True)
class InfluenceSettings:
  """Gauss-Newton group influence on the adapters."""

  damping: float  # λ over the mean eigenvalue of the Gauss-Newton matrix
  iterations: int  # of conjugate gradients, at most
  tolerance: float  # residual over right-hand side at which they stop
  batch_size: int  # rows of a pass

  def __post_init__(self):
    positive("influence.damping", self.damping)
    at_least("influence.iterations", self.iterations, 1)
    within("influence.tolerance", self.tolerance, 0.0, 1.0)
    at_least("influence.batch_size", self.batch_size, 1)


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
  """The unlearning runs whose checkpoints are measured."""

  reward_forms: tuple[str, ...]  # one run each
  epochs: int  # each run's, past the epoch that it would keep
  samples_per_prompt: int  # a checkpoint's own responses to each forget query

  def __post_init__(self):
    for form in self.reward_forms:
      one_of("trajectory.reward_forms", form, REWARD_FORMS)
    at_least("trajectory.epochs", self.epochs, 2)
    at_least("trajectory.samples_per_prompt", self.samples_per_prompt, 1)


@dataclasses.dataclass(frozen=True)
class FaithfulnessSettings:
  """All settings of a study."""

  seed: int  # of queries, classifiers and subsets; the retrainings take this and those after it
  max_length: int  # tokens of prompt and response together
  length_multiple: int  # batches are padded to a multiple of this
  questions_per_owner: int  # examples of each owner that the models learn; 0: all
  temperature: float  # of the responses that queries and the floor are made of
  data: DataSettings
  tokenizer: TokenizerSettings
  model: ModelSettings
  lora: LoraSettings
  pretrain: TrainSettings  # of the base, on general text, all parameters
  finetune: TrainSettings  # of every model of the study, the adapters alone
  retraining: RetrainingSettings
  classifier: ClassifierSettings
  influence: InfluenceSettings
  unlearning: UnlearningSettings
  trajectory: TrajectorySettings
  evaluation: EvaluationSettings
  bootstrap: int  # resamples behind an interval
  checkpoint: CheckpointSettings

  def __post_init__(self):
    self.model.check("model")
    self.lora.check("lora", pretrained=True)
    self.pretrain.check("pretrain")
    self.finetune.check("finetune")
    if not 0 <= self.seed < 2**30:
      raise InputError(f"config.seed is {self.seed}: it must lie in [0, 2^30).")
    at_least("max_length", self.max_length, 16)
    at_least("length_multiple", self.length_multiple, 1)
    at_least("questions_per_owner", self.questions_per_owner, 0)
    positive("temperature", self.temperature)
    at_least("bootstrap", self.bootstrap, 20)
    for name in ("model", "classifier.model"):
      block = self.model if name == "model" else self.classifier.model
      if block.path:
        raise InputError(f"config.{name}.path is {block.path!r}: the study trains its models from "
                         "scratch. Leave it empty.")
    if self.classifier.reads_query or self.classifier.vocab_size or self.classifier.calibrate:
      raise InputError("config.classifier.reads_query, vocab_size and calibrate must be off: the "
                       "study's classifiers read responses in the model's tokens.")
    if not self.classifier.none_share:
      raise InputError('config.classifier.none_share is 0: one classifier of the study knows "none '
                       'of these" and needs some share of general text.')
    if self.unlearning.reward != "attribution":
      raise InputError(f"config.unlearning.reward is {self.unlearning.reward!r}: the study asks "
                       "about 'attribution'.")
    if not self.lora.rank:
      raise InputError("config.lora.rank is 0: the models of a study are adapters over one base, "
                       "so that influence lives where they were trained. Set it to 1 or more.")
    if self.finetune.schedule == "plateau":
      raise InputError("config.finetune.schedule is 'plateau': models that train for as long as "
                       "they like cannot be compared. Take 'linear', 'cosine' or 'constant'.")
    if self.finetune.micro_batch_size:
      raise InputError(f"config.finetune.micro_batch_size is {self.finetune.micro_batch_size}: "
                       "batches of a study vary with the subset, so it must be 0.")

  @classmethod
  def from_config(cls, config):
    """Builds the settings from a ConfigDict (or a nested mapping).

    Raises:
      InputError: for a missing or unknown key, a wrong type or an impossible value.
    """
    return build(cls, config, "config")

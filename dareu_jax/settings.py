"""Every setting of a run, checked: frozen dataclasses built once from the ConfigDict.

A ConfigDict never goes past this file. What a user sets wrongly raises one `InputError` that names
the key, the value and the mend.
"""

import dataclasses
import re

from dareu_jax.checks import InputError, at_least, build, one_of, positive, within
from dareu_jax.objective_settings import NAMES, Objectives
from dareu_jax.unlearning_settings import UnlearningSettings

METHODS = ("dareu", *NAMES)
SOURCES = ("embedded", "tofu", "arxiv", "jsonl")
TEMPLATES = ("auto", "plain", "raw", "llama2", "llama3", "tinyllama", "qwen2", "qwen3")
ARCHITECTURES = ("llama", "qwen2", "qwen3")
DTYPES = ("float32", "bfloat16")
ATTENTION = ("auto", "xla", "cudnn", "splash")
SCHEDULES = ("linear", "cosine", "constant", "plateau")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Which examples, and whose are to be forgotten."""

  source: str  # 'embedded', 'tofu', 'arxiv' or 'jsonl'
  dir: str  # folder of the TOFU or JSONL files; '' takes TOFU from the hub
  num_owners: int  # owners in D; 0: all there are
  forget: str  # 'forgetNN': the last NN percent of the owners
  forget_owners: tuple[str, ...]  # names of the owners to forget; wins over `forget`
  num_holdout: int  # unseen owners, for the MIA and the unseen level; 0: all there are
  num_general: int  # further owners, whose texts are general; 0: all there are (embedded: none)
  seed: int  # of the embedded authors
  prompt_tokens: int  # of plain text: so many tokens ask for the next; 0: a third of the words
  response_tokens: int

  def __post_init__(self):
    one_of("data.source", self.source, SOURCES)
    at_least("data.num_owners", self.num_owners, 0)
    at_least("data.num_holdout", self.num_holdout, 0)
    at_least("data.num_general", self.num_general, 0)
    if self.source == "embedded":
      at_least("data.num_owners", self.num_owners, 2, "the embedded authors are made to order")
      at_least("data.num_holdout", self.num_holdout, 1, "the embedded authors are made to order")
    at_least("data.prompt_tokens", self.prompt_tokens, 0)
    at_least("data.response_tokens", self.response_tokens, 1)
    if self.source == "jsonl" and not self.dir:
      raise InputError(
        "config.data.dir is empty: source 'jsonl' needs the folder or file to read.")
    if not re.fullmatch("forget(0[1-9]|[1-9][0-9])", self.forget, re.ASCII):
      raise InputError(
        f"config.data.forget is {self.forget!r}: it must be forgetNN, NN the percentage of owners "
        "to forget (forget01, forget05, forget10); or name them in config.data.forget_owners."
      )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """A decoder: a checkpoint by path or hub name, or dimensions to train one from scratch."""

  path: str  # folder or hub name of a checkpoint; '' makes one from the dimensions below
  architecture: str  # 'llama', 'qwen2' or 'qwen3'; read from the checkpoint where there is one
  embed_dim: int  # D
  mlp_dim: int  # F
  num_layers: int  # L
  num_heads: int  # N
  num_kv_heads: int  # K
  head_dim: int  # H
  dtype: str  # of base weights and activations: 'float32' or 'bfloat16'
  scan_layers: bool  # one compiled layer scanned over (accelerators) or all unrolled (CPU)
  remat: bool  # recompute layer activations in the backward pass
  attention: str  # 'auto', 'xla', 'cudnn' (NVIDIA GPUs) or 'splash' (TPUs)

  def check(self, section):
    """Raises InputError for impossible values; `section` is the config key of this block."""
    one_of(f"{section}.architecture", self.architecture, ARCHITECTURES)
    one_of(f"{section}.dtype", self.dtype, DTYPES)
    one_of(f"{section}.attention", self.attention, ATTENTION)
    for name in ("embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
      at_least(f"{section}.{name}", getattr(self, name), 1)
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f"config.{section}.num_kv_heads is {self.num_kv_heads}: it must divide "
        f"config.{section}.num_heads ({self.num_heads}).")
    if self.head_dim % 2:
      raise InputError(
        f"config.{section}.head_dim is {self.head_dim}: rotary embeddings need it even.")


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """Low-rank adapters (Hu et al. 2021); rank 0 trains all parameters instead."""

  rank: int  # r
  alpha: float  # the update is scaled by alpha / rank
  targets: tuple[str, ...]  # linear layers that get an adapter

  def check(self, section, *, pretrained):
    """Raises InputError for impossible values of the block `section`.

    Args:
      pretrained: whether the base weights have learnt something.
    """
    at_least(f"{section}.rank", self.rank, 0)
    positive(f"{section}.alpha", self.alpha)
    for target in self.targets:
      one_of(f"{section}.targets", target, LORA_TARGETS)
    if self.rank and not self.targets:
      raise InputError(f"config.{section}.targets is empty: an adapter needs a layer to sit on.")
    if self.rank and not pretrained:
      path = section.replace("lora", "model.path")
      raise InputError(
        f"config.{section}.rank is {self.rank}, but config.{path} is empty: an adapter on random "
        f"base weights learns little. Name a checkpoint, or set config.{section}.rank to 0.")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
  """The tokenizer: of the checkpoint, or a BPE trained on the corpus."""

  path: str  # folder or hub name; '': the model's, or for a model from scratch a BPE of the corpus
  vocab_size: int  # of that BPE
  template: str  # how a prompt is wrapped; 'auto' follows the tokenizer

  def __post_init__(self):
    at_least("tokenizer.vocab_size", self.vocab_size, 300, "bytes and special tokens take that")
    one_of("tokenizer.template", self.template, TEMPLATES)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Supervised training: of the base, the original and the retrained model, and the classifier."""

  learning_rate: float  # peak
  batch_size: int  # examples a step, over all devices
  micro_batch_size: int  # examples a forward pass; 0: the whole batch at once
  epochs: int  # of a plateau: at most
  warmup: float  # share of the steps
  schedule: str  # 'linear', 'cosine', 'constant' or 'plateau' after the warm-up
  target_loss: float  # nats a token; the mean of an epoch at which a plateau begins to cool down
  weight_decay: float
  clip_norm: float  # global gradient norm

  def check(self, section, *, min_epochs=1):
    """Raises InputError for impossible values; `section` is the config key of this block."""
    positive(f"{section}.learning_rate", self.learning_rate)
    at_least(f"{section}.batch_size", self.batch_size, 1)
    at_least(f"{section}.epochs", self.epochs, min_epochs)
    at_least(f"{section}.micro_batch_size", self.micro_batch_size, 0)
    within(f"{section}.warmup", self.warmup, 0.0, 1.0)
    one_of(f"{section}.schedule", self.schedule, SCHEDULES)
    at_least(f"{section}.target_loss", self.target_loss, 0.0)
    at_least(f"{section}.weight_decay", self.weight_decay, 0.0)
    positive(f"{section}.clip_norm", self.clip_norm)
    if self.micro_batch_size and self.batch_size % self.micro_batch_size:
      raise InputError(
        f"config.{section}.micro_batch_size is {self.micro_batch_size}: it must divide "
        f"config.{section}.batch_size ({self.batch_size})."
      )


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
  """The owner classifier p(owner | response prefix)."""

  model: ModelSettings
  lora: LoraSettings
  train: TrainSettings
  vocab_size: int  # of a BPE of its own, for one from scratch; 0: the model's own tokenizer
  token_noise: float  # share of input tokens replaced at random while training
  echo_noise: float  # of those that the query has too (names), by tokens of other queries
  label_smoothing: float
  none_share: float  # "none of these" examples of general text per example of D; 0: no such class
  reads_query: bool  # reads the query before the response
  calibrate: bool  # divides the logits by the temperature that fits held-out responses best

  def __post_init__(self):
    self.model.check("classifier.model")
    self.lora.check("classifier.lora", pretrained=bool(self.model.path))
    self.train.check("classifier.train")
    within("classifier.token_noise", self.token_noise, 0.0, 0.9)
    within("classifier.echo_noise", self.echo_noise, 0.0, 1.0)
    within("classifier.label_smoothing", self.label_smoothing, 0.0, 0.9)
    within("classifier.none_share", self.none_share, 0.0, 10.0)
    if self.vocab_size:
      at_least("classifier.vocab_size", self.vocab_size, 300, "bytes and special tokens take that")
      if self.model.path:
        raise InputError(
          f"config.classifier.vocab_size is {self.vocab_size}, but config.classifier.model.path "
          "names a checkpoint, which has a tokenizer: set it to 0.")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """How the models are compared."""

  batch_size: int
  max_examples: int  # of each split, evenly spaced; 0: all
  max_new_tokens: int  # greedy answers; 0: as long as the longest response of the data
  min_k: float  # share of the least likely tokens that the Min-K% attacks average
  gradient_norm: bool  # the gradient-norm attack as well: a backward pass for each example
  gibberish_model: str  # folder or hub name of a trained gibberish classifier, as well; '': none

  def __post_init__(self):
    at_least("evaluation.batch_size", self.batch_size, 1)
    at_least("evaluation.max_examples", self.max_examples, 0)
    at_least("evaluation.max_new_tokens", self.max_new_tokens, 0)
    if not 0 < self.min_k <= 1:
      raise InputError(f"config.evaluation.min_k is {self.min_k}: it must lie in (0, 1].")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Devices along each axis; -1 (at one axis) takes what is left."""

  data: int
  fsdp: int
  tensor: int
  gather_gib: float = 7.0  # weights a device, up to which `fsdp` gathers them once to decode with

  def __post_init__(self):
    at_least("mesh.gather_gib", self.gather_gib, 0)
    sizes = {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor")}
    for axis, size in sizes.items():
      if size < 1 and size != -1:
        raise InputError(
          f"config.mesh.{axis} is {size}: it must be at least 1, or -1 for the rest.")
    if list(sizes.values()).count(-1) > 1:
      raise InputError(f"config.mesh is {sizes}: only one axis can be -1.")


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """When a stage saves what it needs to go on after a kill."""

  every_steps: int  # updates between two checkpoints of a stage
  keep: int  # how many of them stay

  def __post_init__(self):
    at_least("checkpoint.every_steps", self.every_steps, 1)
    at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of a run. `seeds` gives one run each, and a table with intervals."""

  seeds: tuple[int, ...]
  max_length: int  # tokens of prompt and response together; longer examples are an error
  length_multiple: int  # batches are padded to a multiple of this
  retrain_again: bool  # retrain once more in another order: how far apart two retrainings are
  method: str  # 'dareu', or the name of a loss-based method
  methods: tuple[str, ...]  # several of them, into one table; wins over `method`
  learning_rates: tuple[float, ...]  # each method runs at each, the best is shown; (): its own
  watch_every: int  # epochs of a loss-based method between two looks at its answers
  data: DataSettings
  tokenizer: TokenizerSettings
  model: ModelSettings
  lora: LoraSettings
  pretrain: TrainSettings  # of a model from scratch on general text; 0 epochs: none
  finetune: TrainSettings
  classifier: ClassifierSettings
  unlearning: UnlearningSettings
  baseline: TrainSettings  # of the loss-based methods; an epoch is every forget example once
  objectives: Objectives
  evaluation: EvaluationSettings
  mesh: MeshSettings
  checkpoint: CheckpointSettings

  def __post_init__(self):
    self.model.check("model")
    self.lora.check("lora", pretrained=self.pretrains or bool(self.model.path))
    self.pretrain.check("pretrain", min_epochs=0)
    self.finetune.check("finetune")
    self.baseline.check("baseline")
    if self.baseline.micro_batch_size:
      raise InputError(f"config.baseline.micro_batch_size is {self.baseline.micro_batch_size}: it "
                       "must be 0, an objective is of whole batches.")
    for method in self.all_methods:
      one_of("methods" if self.methods else "method", method, METHODS)
    if len(set(self.all_methods)) != len(self.all_methods):
      raise InputError(f"config.methods is {self.methods}: give each method once.")
    for rate in self.learning_rates:
      positive("learning_rates", rate)
    if len(set(self.learning_rates)) != len(self.learning_rates):
      raise InputError(f"config.learning_rates is {self.learning_rates}: give each rate once.")
    at_least("watch_every", self.watch_every, 1)
    for seed in self.seeds:
      if not 0 <= seed < 2**31:
        raise InputError(f"config.seeds is {self.seeds}: a seed must lie in [0, 2^31).")
    if not self.seeds or len(set(self.seeds)) != len(self.seeds):
      raise InputError(f"config.seeds is {self.seeds}: give at least one seed, each once.")
    at_least("max_length", self.max_length, 16)
    at_least("length_multiple", self.length_multiple, 1)

  @property
  def all_methods(self):
    """Names of the methods of the run."""
    return self.methods or (self.method,)

  @property
  def pretrains(self):
    """Whether the base is made here: a model from scratch that reads general text first."""
    return not self.model.path and self.pretrain.epochs > 0

  @classmethod
  def from_config(cls, config):
    """Builds the settings from a ConfigDict (or a nested mapping).

    Raises:
      InputError: for a missing or unknown key, a wrong type or an impossible value.
    """
    return build(cls, config, "config")

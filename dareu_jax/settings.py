"""Every setting of a run, checked: frozen dataclasses built once from the ConfigDict.

A ConfigDict never goes past this file. What a user sets wrongly raises one `InputError` that names
the key, the value and the mend.
"""

import dataclasses
import math
import re
import types
import typing

REWARD_FORMS = ("published", "telescoped", "absorbing")
SELECTION_RULES = ("unseen_level", "lowest_score", "last")
SOURCES = ("embedded", "tofu", "jsonl")
TEMPLATES = ("auto", "plain", "raw", "llama2", "llama3", "tinyllama", "qwen2", "qwen3")
ARCHITECTURES = ("llama", "qwen2", "qwen3")
DTYPES = ("float32", "bfloat16")
ATTENTION = ("auto", "xla", "cudnn", "splash")
SCHEDULES = ("linear", "cosine", "constant", "plateau")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class InputError(ValueError):
  """What a user can mend: the entry modules print it alone, without a traceback."""


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Which examples, and whose are to be forgotten."""

  source: str  # 'embedded', 'tofu' or 'jsonl'
  dir: str  # folder of the TOFU or JSONL files; '' takes TOFU from the hub
  num_owners: int  # owners in D; 0: all there are
  forget: str  # 'forgetNN': the last NN percent of the owners
  forget_owners: tuple[str, ...]  # names of the owners to forget; wins over `forget`
  num_holdout: int  # unseen owners, for the MIA and the unseen level; 0: all there are
  num_general: int  # further owners, whose texts are general; 0: all there are (embedded: none)
  seed: int  # of the embedded authors

  def __post_init__(self):
    _one_of("data.source", self.source, SOURCES)
    _at_least("data.num_owners", self.num_owners, 0)
    _at_least("data.num_holdout", self.num_holdout, 0)
    _at_least("data.num_general", self.num_general, 0)
    if self.source == "embedded":
      _at_least("data.num_owners", self.num_owners, 2, "the embedded authors are made to order")
      _at_least("data.num_holdout", self.num_holdout, 1, "the embedded authors are made to order")
    if self.source == "jsonl" and not self.dir:
      raise InputError("config.data.dir is empty: source 'jsonl' needs the folder or file to read.")
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
    _one_of(f"{section}.architecture", self.architecture, ARCHITECTURES)
    _one_of(f"{section}.dtype", self.dtype, DTYPES)
    _one_of(f"{section}.attention", self.attention, ATTENTION)
    for name in ("embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
      _at_least(f"{section}.{name}", getattr(self, name), 1)
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
    _at_least(f"{section}.rank", self.rank, 0)
    _positive(f"{section}.alpha", self.alpha)
    for target in self.targets:
      _one_of(f"{section}.targets", target, LORA_TARGETS)
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
    _at_least("tokenizer.vocab_size", self.vocab_size, 300, "bytes and special tokens take that")
    _one_of("tokenizer.template", self.template, TEMPLATES)


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
    _positive(f"{section}.learning_rate", self.learning_rate)
    _at_least(f"{section}.batch_size", self.batch_size, 1)
    _at_least(f"{section}.epochs", self.epochs, min_epochs)
    _at_least(f"{section}.micro_batch_size", self.micro_batch_size, 0)
    _within(f"{section}.warmup", self.warmup, 0.0, 1.0)
    _one_of(f"{section}.schedule", self.schedule, SCHEDULES)
    _at_least(f"{section}.target_loss", self.target_loss, 0.0)
    _at_least(f"{section}.weight_decay", self.weight_decay, 0.0)
    _positive(f"{section}.clip_norm", self.clip_norm)
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
  token_noise: float  # share of input tokens replaced at random while training
  label_smoothing: float

  def __post_init__(self):
    self.model.check("classifier.model")
    self.lora.check("classifier.lora", pretrained=bool(self.model.path))
    self.train.check("classifier.train")
    _within("classifier.token_noise", self.token_noise, 0.0, 0.9)
    _within("classifier.label_smoothing", self.label_smoothing, 0.0, 0.9)


@dataclasses.dataclass(frozen=True)
class UnlearningSettings:
  """DareU: PPO on attribution rewards with distillation on retained data."""

  # reward
  reward_form: str  # 'published', 'telescoped' or 'absorbing'
  segment_length: int  # κ: tokens between two invocations of the attribution function
  epsilon: float  # ε: the score is clipped to [ε, 1-ε] before the log
  c_seg: float  # C_seg: small is sharp and clips early, large is flat
  kl_coef: float  # β: weight of the KL to the previous epoch's policy
  # policy optimisation
  discount: float  # γ
  gae_lambda: float  # λ
  clip_eps: float  # of the probability ratio
  value_clip_eps: float
  value_coef: float  # c_v
  distill_coef: float  # λ_distill
  whiten_advantages: bool
  learning_rate: float
  value_learning_rate: float
  warmup_steps: int  # updates with a rising learning rate
  weight_decay: float
  clip_norm: float
  # batches
  epochs: int  # at most; an epoch is `samples_per_prompt` rollouts of every forget query
  samples_per_prompt: int
  rollout_batch_size: int  # responses a rollout; a query may come more than once
  minibatch_size: int  # rollout rows an update
  inner_epochs: int  # passes over a rollout
  retain_batch_size: int  # retain examples distilled in each update
  # sampling
  temperature: float
  top_k: int  # 0: off
  top_p: float  # 1: off
  max_new_tokens: int  # the longest response; 0: as long as the longest of the data
  # which epoch is kept
  selection: str  # 'unseen_level', 'lowest_score' or 'last'
  settle_epochs: int  # epochs in a row at or below the level before the run stops
  target_score: float  # the level to come down to; negative: measured on unseen owners' queries
  min_length_ratio: float  # of the usual response length; below it an epoch is refused
  max_degenerate_share: float  # of empty or repetitive responses; above it an epoch is refused

  def __post_init__(self):
    section = "unlearning"
    _one_of("unlearning.reward_form", self.reward_form, REWARD_FORMS)
    _one_of("unlearning.selection", self.selection, SELECTION_RULES)
    counts = ("segment_length", "epochs", "samples_per_prompt", "rollout_batch_size",
              "minibatch_size", "inner_epochs", "retain_batch_size", "settle_epochs")
    for name in counts:
      _at_least(f"{section}.{name}", getattr(self, name), 1)
    if not 0 < self.epsilon < 0.5:
      raise InputError(
        f"config.unlearning.epsilon is {self.epsilon}: it must lie between 0 and 0.5.")
    for name in ("c_seg", "learning_rate", "value_learning_rate", "value_clip_eps", "clip_norm",
                 "temperature"):
      _positive(f"{section}.{name}", getattr(self, name))
    if not 0 < self.clip_eps < 1:
      raise InputError(f"config.unlearning.clip_eps is {self.clip_eps}: it must lie in (0, 1).")
    if self.minibatch_size > self.rollout_batch_size:
      raise InputError(
        f"config.unlearning.minibatch_size is {self.minibatch_size}: it is a part of a rollout, "
        f"and config.unlearning.rollout_batch_size is {self.rollout_batch_size}.")
    for name in ("kl_coef", "value_coef", "distill_coef"):
      _at_least(f"{section}.{name}", getattr(self, name), 0.0, "it weighs a penalty")
    for name in ("weight_decay", "top_k", "warmup_steps", "max_new_tokens"):
      _at_least(f"{section}.{name}", getattr(self, name), 0)
    for name in ("discount", "gae_lambda", "min_length_ratio", "max_degenerate_share"):
      _within(f"{section}.{name}", getattr(self, name), 0.0, 1.0)
    if not 0 < self.top_p <= 1:
      raise InputError(f"config.unlearning.top_p is {self.top_p}: it must lie in (0, 1].")
    if self.target_score > 1:
      raise InputError(
        f"config.unlearning.target_score is {self.target_score}: a score lies in [0, 1]; "
        "a negative value has it measured on unseen owners' queries."
      )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """How the models are compared."""

  batch_size: int
  max_examples: int  # of each split, from its head; 0: all
  max_new_tokens: int  # greedy answers; 0: as long as the longest response of the data
  min_k: float  # share of the least likely tokens that the Min-K% attack averages

  def __post_init__(self):
    _at_least("evaluation.batch_size", self.batch_size, 1)
    _at_least("evaluation.max_examples", self.max_examples, 0)
    _at_least("evaluation.max_new_tokens", self.max_new_tokens, 0)
    if not 0 < self.min_k <= 1:
      raise InputError(f"config.evaluation.min_k is {self.min_k}: it must lie in (0, 1].")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Devices along each axis; -1 (at one axis) takes what is left."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
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
    _at_least("checkpoint.every_steps", self.every_steps, 1)
    _at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of a run. `seeds` gives one run each, and a table with intervals."""

  seeds: tuple[int, ...]
  max_length: int  # tokens of prompt and response together; longer examples are an error
  length_multiple: int  # batches are padded to a multiple of this
  data: DataSettings
  tokenizer: TokenizerSettings
  model: ModelSettings
  lora: LoraSettings
  pretrain: TrainSettings  # of a model from scratch on general text; 0 epochs: none
  finetune: TrainSettings
  classifier: ClassifierSettings
  unlearning: UnlearningSettings
  evaluation: EvaluationSettings
  mesh: MeshSettings
  checkpoint: CheckpointSettings

  def __post_init__(self):
    self.model.check("model")
    self.lora.check("lora", pretrained=self.pretrains or bool(self.model.path))
    self.pretrain.check("pretrain", min_epochs=0)
    self.finetune.check("finetune")
    for seed in self.seeds:
      if not 0 <= seed < 2**31:
        raise InputError(f"config.seeds is {self.seeds}: a seed must lie in [0, 2^31).")
    if not self.seeds or len(set(self.seeds)) != len(self.seeds):
      raise InputError(f"config.seeds is {self.seeds}: give at least one seed, each once.")
    _at_least("max_length", self.max_length, 16)
    _at_least("length_multiple", self.length_multiple, 1)

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
    return _build(cls, config, "config")


def _build(cls, config, key):
  if not hasattr(config, "keys"):
    raise InputError(f"{key} is {config!r}: it must be a group of settings.")
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(config.keys()) - set(hints))
  missing = sorted(set(hints) - set(config.keys()))
  if unknown:
    raise InputError(f"{key}.{unknown[0]} is no setting. Known here: {', '.join(sorted(hints))}.")
  if missing:
    raise InputError(f"{key}.{missing[0]} is missing from the config file.")
  return cls(**{name: _value(hint, config[name], f"{key}.{name}") for name, hint in hints.items()})


def _value(hint, value, key):
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, key)
  if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
    if not isinstance(value, (tuple, list)):
      raise InputError(f"{key} is {value!r}: it must be a tuple.")
    item = typing.get_args(hint)[0]
    return tuple(_value(item, part, f"{key}[{i}]") for i, part in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise InputError(f"{key} is {value!r}: it must be of type {hint.__name__}.")
  if hint is float and not math.isfinite(value):
    raise InputError(f"{key} is {value}: it must be finite.")
  return value


def _one_of(key, value, choices):
  if value not in choices:
    raise InputError(f"config.{key} is {value!r}: it must be one of {', '.join(choices)}.")


def _at_least(key, value, bound, why=""):
  if value < bound:
    reason = f"{why} and must be" if why else "it must be"
    raise InputError(f"config.{key} is {value}: {reason} >= {bound}.")


def _positive(key, value):
  if not value > 0:
    raise InputError(f"config.{key} is {value}: it must be > 0.")


def _within(key, value, low, high):
  if not low <= value <= high:
    raise InputError(f"config.{key} is {value}: it must lie in [{low:g}, {high:g}].")

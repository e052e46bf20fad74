"""What a decoder is: dimensions, variants, rotary embeddings; from settings or a config.json."""

import dataclasses
import json
import math
import pathlib
from typing import Annotated, Literal, get_args

from pydantic import Field

from dareu_jax.core.errors import InputError, InvalidSetting
from dareu_jax.core.settings import Count, Positive, Size, settings
from dareu_jax.models.rope import ROPE_TYPES, RopeConfig

# Hugging Face architecture -> ours. Qwen2.5 calls itself Qwen2.
ARCHITECTURES = {
  "LlamaForCausalLM": "llama",
  "Qwen2ForCausalLM": "qwen2",
  "Qwen3ForCausalLM": "qwen3",
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "rms_norm_eps")
_QWEN3_HEAD_DIM = 128  # what its config class takes where the file says nothing


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


@settings
class ModelSettings:
  """A decoder: a checkpoint by path or hub name, or dimensions to train one from scratch."""

  path: str = ""  # folder or hub name of a checkpoint; '' makes one of the dimensions below
  architecture: Literal["llama", "qwen2", "qwen3"] = "llama"  # a checkpoint says it itself
  embed_dim: Count = 128  # D
  mlp_dim: Count = 344  # F
  num_layers: Count = 4  # L
  num_heads: Count = 4  # N
  num_kv_heads: Count = 4  # K
  head_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # H; rotary embeddings need it even
  dtype: Literal["float32", "bfloat16"] = "float32"  # of base weights and activations
  scan_layers: bool = False  # compile one layer and scan it (accelerators), or unroll all (CPU)
  remat: bool = False  # recompute activations in the backward pass: less memory, more time
  # 'cudnn' on NVIDIA GPUs, 'splash' on TPUs; 'auto' takes what can be used.
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InvalidSetting("num_kv_heads", self.num_kv_heads,
                           f"it must divide num_heads ({self.num_heads}).")


@settings
class LoraSettings:
  """Low-rank adapters (Hu et al. 2021); rank 0 trains all parameters instead."""

  rank: Size = 0  # r
  alpha: Positive = 32.0  # the update is scaled by alpha / rank
  targets: tuple[LoraTarget, ...] = LORA_TARGETS  # linear layers that get an adapter

  def __post_init__(self):
    if self.rank and not self.targets:
      raise InvalidSetting("targets", self.targets, "an adapter needs a layer to sit on.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder's architecture; frozen and hashable, so that it can key a compiled program."""

  vocab_size: int
  embed_dim: int
  mlp_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  architecture: str = "llama"  # what it is called in other libraries; the fields below say it all
  max_length: int = 2048  # of pretraining, with its stretching
  rope: RopeConfig = RopeConfig()
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  windows: tuple[int | None, ...] = ()  # of each layer's sliding attention; (): none slides
  dtype: str = "float32"
  scan_layers: bool = False
  remat: bool = False
  attention: str = "auto"  # 'xla', 'cudnn', 'splash'; see attention.causal_attention
  gather_gib: float = 7.0  # see Decoder.gathered
  lora: LoraSettings = LoraSettings(rank=0, alpha=1.0, targets=())

  @property
  def layer_windows(self):
    """The sliding window of each layer, None where it sees everything before."""
    return self.windows or (None,) * self.num_layers

  @property
  def num_parameters(self):
    """Base parameters, adapters not counted."""
    attention = self.embed_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
    if self.qkv_bias:
      attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
    attention += self.embed_dim * self.out_bias
    if self.qk_norm:
      attention += 2 * self.head_dim
    mlp = 3 * self.embed_dim * self.mlp_dim + self.mlp_bias * (2 * self.mlp_dim + self.embed_dim)
    layer = attention + mlp + 2 * self.embed_dim
    embeddings = self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
    return self.num_layers * layer + embeddings + self.embed_dim


def from_settings(model: ModelSettings, lora: LoraSettings, vocab_size: int) -> ModelConfig:
  """The config of a decoder trained from scratch."""
  return ModelConfig(
    vocab_size=vocab_size,
    embed_dim=model.embed_dim,
    mlp_dim=model.mlp_dim,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    num_kv_heads=model.num_kv_heads,
    head_dim=model.head_dim,
    architecture=model.architecture,
    qkv_bias=model.architecture == "qwen2",
    qk_norm=model.architecture == "qwen3",
    dtype=model.dtype,
    scan_layers=model.scan_layers,
    remat=model.remat,
    attention=model.attention,
    lora=lora,
  )


def from_huggingface(folder, **how) -> ModelConfig:
  """The config of a checkpoint folder, from its config.json in the old form or the new.

  Args:
    folder: of the checkpoint.
    how: what the file does not say: dtype, scan_layers, remat, attention, lora.

  Raises:
    InputError: for a missing file or key, an unsupported architecture, rope_type or activation.
  """
  path = pathlib.Path(folder) / "config.json"
  raw = _read_json(path)
  name = (raw.get("architectures") or ["none"])[0]
  if name not in ARCHITECTURES:
    raise InputError(f"{path}: architecture {name} is not supported. "
                     f"Supported: {', '.join(ARCHITECTURES)}.")
  architecture = ARCHITECTURES[name]
  for key in _REQUIRED:
    if key not in raw:
      raise InputError(f"{path}: {key} is missing.")
  if raw.get("hidden_act", "silu") != "silu":
    raise InputError(f"{path}: hidden_act {raw['hidden_act']!r} is not supported. Supported: silu.")
  heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
  head_dim = raw.get("head_dim") or (
    _QWEN3_HEAD_DIM if architecture == "qwen3" else raw["hidden_size"] // heads)
  bias = bool(raw.get("attention_bias")) and architecture != "qwen2"
  return ModelConfig(
    architecture=architecture,
    vocab_size=raw["vocab_size"],
    embed_dim=raw["hidden_size"],
    mlp_dim=raw["intermediate_size"],
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=raw.get("num_key_value_heads") or heads,
    head_dim=head_dim,
    max_length=raw.get("max_position_embeddings", 2048 if architecture == "llama" else 32768),
    rope=_rope(raw, path),
    norm_eps=raw["rms_norm_eps"],
    qkv_bias=architecture == "qwen2" or bias,
    out_bias=bias,
    mlp_bias=bool(raw.get("mlp_bias")) and architecture == "llama",
    qk_norm=architecture == "qwen3",
    tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    windows=_windows(raw, path) if architecture != "llama" else (),
    **how,
  )


def to_huggingface(config: ModelConfig):
  """The config.json of a decoder, in the form of transformers 5 with the old keys beside it.

  Returns: dict; without the ids of special tokens, which the tokenizer knows.
  """
  theirs = {ours: theirs for theirs, ours in ARCHITECTURES.items()}
  raw = {
    "architectures": [theirs[config.architecture]],
    "model_type": config.architecture,
    "vocab_size": config.vocab_size,
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "max_position_embeddings": config.max_length,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tie_embeddings,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "dtype": config.dtype,
    "torch_dtype": config.dtype,
  }
  if config.architecture != "qwen2":
    raw["attention_bias"] = config.out_bias
  if config.architecture == "llama":
    raw |= {"mlp_bias": config.mlp_bias, "pretraining_tp": 1}
  elif any(config.layer_windows):
    kinds = ["sliding_attention" if window else "full_attention" for window in config.layer_windows]
    raw |= {"use_sliding_window": True, "layer_types": kinds,
            "sliding_window": max(filter(None, config.layer_windows)),
            "max_window_layers": kinds.index("sliding_attention")}
  rope = config.rope
  scaling = {"rope_type": rope.kind} | {
    key: getattr(rope, field) for key, field in _ROPE_KEYS[rope.kind].items()}
  raw["rope_parameters"] = {"rope_theta": rope.theta, **scaling}
  raw |= {"rope_theta": rope.theta, "rope_scaling": None if rope.kind == "default" else scaling}
  return raw


# rope_type -> {key of config.json: field of RopeConfig}
_ROPE_KEYS = {
  "default": {},
  "linear": {"factor": "factor"},
  "dynamic": {"factor": "factor"},
  "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor",
             "high_freq_factor": "high_freq_factor",
             "original_max_position_embeddings": "original_max_length"},
  "yarn": {"factor": "factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
           "truncate": "truncate", "attention_factor": "attention_factor",
           "original_max_position_embeddings": "original_max_length"},
}


def _read_json(path):
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(f"{path.parent} holds no config.json: config.model.path must name a Hugging "
                     "Face checkpoint folder or a model of the hub.") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    line = getattr(error, "lineno", 1)
    raise InputError(f"{path}, line {line}: no valid JSON ({error}).") from None
  if not isinstance(raw, dict):
    raise InputError(f"{path} holds no JSON object.")
  return raw


def _windows(raw, path):
  """The sliding window of each layer, () if there is none."""
  size = raw.get("sliding_window", 4096)
  if not raw.get("use_sliding_window") or not size:
    return ()
  count = raw["num_hidden_layers"]
  kinds = raw.get("layer_types")
  if kinds is None:
    first = raw.get("max_window_layers", 28)
    kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
  if len(kinds) != count or not set(kinds) <= {"sliding_attention", "full_attention"}:
    raise InputError(f"{path}: layer_types must name {count} layers, each full_attention or "
                     "sliding_attention.")
  return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def _rope(raw, path):
  # New files keep everything in rope_parameters; old ones theta at the top and rope_scaling beside,
  # which transformers lets win where a file has both.
  rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in ROPE_TYPES:
    raise InputError(f"{path}: rope_type {kind!r} is not supported. "
                     f"Supported: {', '.join(ROPE_TYPES)}.")
  if (rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
    raise InputError(f"{path}: partial_rotary_factor is not supported: all of a head is rotated.")
  length = raw.get("max_position_embeddings", 2048)
  values = {"theta": rope.get("rope_theta") or raw.get("rope_theta") or 10000.0, "kind": kind}
  for theirs, ours in _ROPE_KEYS[kind].items():
    value = rope.get(theirs)
    if value is None and theirs in ("low_freq_factor", "high_freq_factor") or (
      value is None and theirs == "factor" and kind != "yarn"):
      raise InputError(f"{path}: rope_type {kind!r} needs {theirs}.")
    if value is not None:
      values[ours] = value
  if kind in ("llama3", "yarn"):
    outside = raw.get("original_max_position_embeddings")  # wins too
    values["original_max_length"] = outside or values.get("original_max_length", length)
  if kind == "dynamic":
    values["original_max_length"] = length
  if kind == "yarn":
    values.setdefault("factor", length / values["original_max_length"])
    values.setdefault("attention_factor", _yarn_attention_factor(
      values["factor"], rope.get("mscale"), rope.get("mscale_all_dim")))
  types = {field.name: field.type for field in dataclasses.fields(RopeConfig)}
  return RopeConfig(**{name: types[name](value) for name, value in values.items()})


def _yarn_attention_factor(factor, mscale, mscale_all_dim):
  """0.1 m ln(factor) + 1 (Peng et al. 2023, eq. 22), as a quotient where the file gives two m."""

  def scale(m):
    return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

  return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)

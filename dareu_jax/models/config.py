"""What a decoder is: dimensions, variants, rotary embeddings; from settings or a config.json."""

import dataclasses
import json
import pathlib

from dareu_jax.settings import InputError, LoraSettings, ModelSettings

# Hugging Face architecture -> ours. Qwen2.5 calls itself Qwen2.
ARCHITECTURES = {
  "LlamaForCausalLM": "llama",
  "Qwen2ForCausalLM": "qwen2",
  "Qwen3ForCausalLM": "qwen3",
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "rms_norm_eps")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary embeddings: θ and how they are stretched beyond the training length."""

  theta: float = 10000.0
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_length: int = 8192


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
  rope: RopeConfig = RopeConfig()
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  dtype: str = "float32"
  scan_layers: bool = False
  remat: bool = False
  lora: LoraSettings = LoraSettings(rank=0, alpha=1.0, targets=())

  @property
  def num_parameters(self):
    """Base parameters, adapters not counted."""
    attention = self.embed_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
    if self.qkv_bias:
      attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
    if self.qk_norm:
      attention += 2 * self.head_dim
    layer = attention + 3 * self.embed_dim * self.mlp_dim + 2 * self.embed_dim
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
    qkv_bias=model.architecture == "qwen2",
    qk_norm=model.architecture == "qwen3",
    dtype=model.dtype,
    scan_layers=model.scan_layers,
    remat=model.remat,
    lora=lora,
  )


def from_huggingface(folder, model: ModelSettings, lora: LoraSettings) -> ModelConfig:
  """The config of a checkpoint folder, from its config.json in the old form or the new.

  Raises:
    InputError: for a missing file, an unsupported architecture, rope_type or bias.
  """
  path = pathlib.Path(folder) / "config.json"
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(f"{folder} holds no config.json: config.model.path must name a Hugging Face "
                     "checkpoint folder or a model of the hub.") from None
  except json.JSONDecodeError as error:
    raise InputError(f"{path}, line {error.lineno}: no valid JSON ({error.msg}).") from None
  name = (raw.get("architectures") or ["none"])[0]
  if name not in ARCHITECTURES:
    raise InputError(f"{path}: architecture {name} is not supported. "
                     f"Supported: {', '.join(ARCHITECTURES)}.")
  architecture = ARCHITECTURES[name]
  if raw.get("hidden_act", "silu") != "silu" or raw.get("mlp_bias"):
    raise InputError(f"{path}: only SwiGLU MLPs without bias are supported.")
  if architecture != "qwen2" and raw.get("attention_bias"):
    raise InputError(f"{path}: attention_bias is not supported for {name}.")
  if raw.get("use_sliding_window"):
    raise InputError(f"{path}: sliding-window attention is not supported.")
  for key in _REQUIRED:
    if key not in raw:
      raise InputError(f"{path}: {key} is missing.")
  heads = raw["num_attention_heads"]
  return ModelConfig(
    vocab_size=raw["vocab_size"],
    embed_dim=raw["hidden_size"],
    mlp_dim=raw["intermediate_size"],
    num_layers=raw["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=raw.get("num_key_value_heads") or heads,
    head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
    rope=_rope(raw, path),
    norm_eps=raw["rms_norm_eps"],
    qkv_bias=architecture == "qwen2",
    qk_norm=architecture == "qwen3",
    tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    dtype=model.dtype,
    scan_layers=model.scan_layers,
    remat=model.remat,
    lora=lora,
  )


def _rope(raw, path):
  # New files keep everything in rope_parameters; old ones theta at the top and rope_scaling beside.
  rope = raw.get("rope_parameters") or {
    "rope_theta": raw.get("rope_theta", 10000.0), **(raw.get("rope_scaling") or {})}
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in ROPE_TYPES:
    raise InputError(f"{path}: rope_type {kind!r} is not supported. "
                     f"Supported: {', '.join(ROPE_TYPES)}.")
  return RopeConfig(
    theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
    kind=kind,
    factor=float(rope.get("factor", 1.0)),
    low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
    high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
    original_max_length=int(rope.get("original_max_position_embeddings", 8192)),
  )

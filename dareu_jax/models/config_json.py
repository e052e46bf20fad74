"""config.json of Hugging Face checkpoints: read strictly, and written.

Shared keys; family-specific keys are in `models.families`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from dareu_jax.core.errors import InputError, readable
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.families.base import FAMILIES, Family, family_of
from dareu_jax.models.rope import ROPE_TYPES, RopeConfig

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "rms_norm_eps")
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


def from_huggingface(folder: str | pathlib.Path, **runtime: Any) -> ModelConfig:
  """The config of a checkpoint folder, from its config.json in the old form or the new.

  `transformers.AutoConfig` is less strict: it takes an empty file for a Llama of 7B, since it fills
  every missing dimension with a default, and its import takes seconds.

  Args:
    folder: folder of the checkpoint.
    runtime: fields that the file does not have: dtype, quantize, scan_layers, remat, attention,
      lora.

  Raises:
    InputError: for a missing file or key, an unsupported architecture, rope_type or activation.
  """
  path = pathlib.Path(folder) / "config.json"
  raw = _read_json(path)
  try:
    if raw.get("quantization_config"):
      method = raw["quantization_config"].get("quant_method", "unknown")
      raise InputError(f"quantization_config says that the weights are quantized ({method}), which "
                       "is not read. Name the unquantized checkpoint.")
    family = family_of(_architecture(raw))
    return ModelConfig(**_fields(raw, family), **runtime)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def _architecture(raw):
  """The name of the architecture; by the model type where the file has none."""
  types = {family.model_type: family.architectures[0] for _, family in FAMILIES.items()}
  return (raw.get("architectures") or [types.get(raw.get("model_type"), "none")])[0]


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
  """The config.json of a decoder, in the form of transformers 5 with the old keys beside it.

  Returns: the JSON object, without the ids of special tokens, which the tokenizer has.
  """
  family = FAMILIES[config.architecture]
  rope = config.rope
  scaling = {"rope_type": rope.kind} | {
    key: getattr(rope, field) for key, field in _ROPE_KEYS[rope.kind].items()}
  return {
    "architectures": [family.architectures[0]],
    "model_type": family.model_type,
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
    **family.write_options(config),
    "rope_parameters": {"rope_theta": rope.theta, **scaling},
    "rope_theta": rope.theta,
    "rope_scaling": None if rope.kind == "default" else scaling,
  }


def read_windows(raw: Mapping[str, Any]) -> tuple[int | None, ...]:
  """Each layer's sliding window, from `use_sliding_window` and `layer_types`; () if none slides.

  Raises:
    InputError: if `layer_types` does not name every layer.
  """
  size = raw.get("sliding_window", 4096)
  if not raw.get("use_sliding_window") or not size:
    return ()
  count = raw["num_hidden_layers"]
  kinds = raw.get("layer_types")
  if kinds is None:
    first = raw.get("max_window_layers", 28)
    kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
  if len(kinds) != count or not set(kinds) <= {"sliding_attention", "full_attention"}:
    raise InputError(f"layer_types must name {count} layers, each full_attention or "
                     "sliding_attention.")
  return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def write_windows(config: ModelConfig) -> dict[str, Any]:
  """The inverse of `read_windows`."""
  if not any(config.layer_windows):
    return {}
  kinds = ["sliding_attention" if window else "full_attention" for window in config.layer_windows]
  return {"use_sliding_window": True, "layer_types": kinds,
          "sliding_window": max(filter(None, config.layer_windows)),
          "max_window_layers": kinds.index("sliding_attention")}


def _fields(raw: Mapping[str, Any], family: type[Family]) -> dict[str, Any]:
  """The fields of ModelConfig that a config.json sets."""
  for key in _REQUIRED:
    if key not in raw:
      raise InputError(f"{key} is missing.")
  if raw.get("hidden_act", "silu") != "silu":
    raise InputError(f"hidden_act {raw['hidden_act']!r} is not supported. Supported: silu.")
  heads = raw["num_attention_heads"]
  max_length = raw.get("max_position_embeddings", family.default_max_length)
  return {
    "architecture": family.name,
    "vocab_size": raw["vocab_size"],
    "embed_dim": raw["hidden_size"],
    "mlp_dim": raw["intermediate_size"],
    "num_layers": raw["num_hidden_layers"],
    "num_heads": heads,
    "num_kv_heads": raw.get("num_key_value_heads") or heads,
    "head_dim": raw.get("head_dim") or family.default_head_dim or raw["hidden_size"] // heads,
    "max_length": max_length,
    "rope": _read_rope(raw, max_length),
    "norm_eps": raw["rms_norm_eps"],
    "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
    **family.options,
    **family.read_options(raw),
  }


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    with readable(path):
      if not path.exists():
        raise InputError(f"{path.parent} holds no config.json: it must be a Hugging Face "
                         "checkpoint folder, or a model of the hub.")
      raw = json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    line = getattr(error, "lineno", 1)
    raise InputError(f"{path}, line {line}: not valid JSON ({error}).") from None
  if not isinstance(raw, dict):
    raise InputError(f"{path} is not a JSON object.")
  return raw


def _read_rope(raw: Mapping[str, Any], max_length: int) -> RopeConfig:
  # New files have everything in rope_parameters; old ones have theta at the top level and
  # rope_scaling, which takes precedence in transformers if a file has both.
  rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in ROPE_TYPES:
    raise InputError(f"rope_type {kind!r} is not supported. Supported: {', '.join(ROPE_TYPES)}.")
  if (rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
    raise InputError("partial_rotary_factor is not supported: all of a head is rotated.")
  theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
  values: dict[str, Any] = {"theta": theta, "kind": kind}
  for theirs, ours in _ROPE_KEYS[kind].items():
    value = rope.get(theirs)
    if value is None and theirs in ("low_freq_factor", "high_freq_factor") or (
      value is None and theirs == "factor" and kind != "yarn"):
      raise InputError(f"rope_type {kind!r} needs {theirs}.")
    if value is not None:
      values[ours] = value
  if kind in ("llama3", "yarn"):
    outside = raw.get("original_max_position_embeddings")  # takes precedence too
    values["original_max_length"] = outside or values.get("original_max_length", max_length)
  if kind == "dynamic":
    values["original_max_length"] = max_length
  if kind == "yarn":
    values.setdefault("factor", max_length / values["original_max_length"])
    values.setdefault("attention_factor", _yarn_attention_factor(
      values["factor"], rope.get("mscale"), rope.get("mscale_all_dim")))
  types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(RopeConfig)}
  return RopeConfig(**{name: types[name](value) for name, value in values.items()})


def _yarn_attention_factor(factor, mscale, mscale_all_dim):
  """0.1 m ln(factor) + 1 (Peng et al. 2023, eq. 22), as a quotient if the file has two m."""

  def scale(m):
    return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

  return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)

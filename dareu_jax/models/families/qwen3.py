"""Qwen3 (Yang et al. 2025): QK norm, head dim 128; optional sliding attention."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.models.config import ModelConfig
from dareu_jax.models.config_json import read_windows, write_windows
from dareu_jax.models.families.base import Family, register_family


@register_family("qwen3")
class Qwen3(Family):
  """Attention has biases on all four projections or on none, as config.json says."""

  architectures = ("Qwen3ForCausalLM",)
  options = {"qk_norm": True}
  default_head_dim = 128
  default_max_length = 32768

  @classmethod
  def read_options(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(raw.get("attention_bias"))
    return {"qkv_bias": bias, "out_bias": bias, "windows": read_windows(raw)}

  @classmethod
  def write_options(cls, config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.out_bias} | write_windows(config)

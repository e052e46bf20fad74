"""Qwen2 and Qwen2.5 (Yang et al. 2024): QKV biases, optional sliding attention."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.models.config import ModelConfig
from dareu_jax.models.config_json import read_windows, write_windows
from dareu_jax.models.families.base import Family, register_family


@register_family("qwen2")
class Qwen2(Family):
  """Its biases are part of the architecture: config.json does not mention them."""

  architectures = ("Qwen2ForCausalLM",)
  options = {"qkv_bias": True}
  default_max_length = 32768

  @classmethod
  def read_options(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"windows": read_windows(raw)}

  @classmethod
  def write_options(cls, config: ModelConfig) -> dict[str, Any]:
    return write_windows(config)

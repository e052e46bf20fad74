"""Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024), and models with the same layout."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.models.config import ModelConfig
from dareu_jax.models.families.base import Family, register_family


@register_family("llama")
class Llama(Family):
  """Attention and MLP have biases if config.json says so; no sliding attention."""

  architectures = ("LlamaForCausalLM",)

  @classmethod
  def read_options(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(raw.get("attention_bias"))
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bool(raw.get("mlp_bias"))}

  @classmethod
  def write_options(cls, config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.out_bias, "mlp_bias": config.mlp_bias, "pretraining_tp": 1}

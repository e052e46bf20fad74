"""Checkpoint folders of the numpy Llama's configs, written tensor by tensor."""

import json

import numpy as np
from safetensors.numpy import save_file

from dareu_jax.models import factory
from dareu_jax.models.config import LoraSettings, ModelSettings
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from tests.models.reference import CONFIGS, random_weights

ARCHITECTURE = {"qwen2_bias": "Qwen2ForCausalLM", "qwen2_windows": "Qwen2ForCausalLM",
                "qwen3_qk_norm": "Qwen3ForCausalLM"}
NO_LORA = LoraSettings(rank=0, alpha=1.0, targets=())
IDS = np.random.default_rng(3).integers(0, 40, (2, 12)).astype(np.int32)


def config_json(name):
  """What Hugging Face would write beside the weights of CONFIGS[name], in the old form."""
  config = CONFIGS[name]
  raw = {
    "architectures": [ARCHITECTURE.get(name, "LlamaForCausalLM")],
    "vocab_size": config.vocab_size, "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim, "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.norm_eps, "hidden_act": "silu", "rope_theta": config.rope.theta,
    "rope_scaling": None, "tie_word_embeddings": config.tie_embeddings,
  }
  if config.head_dim * config.num_heads != config.embed_dim:
    raw["head_dim"] = config.head_dim
  rope = config.rope
  if rope.kind == "llama3":
    raw["rope_scaling"] = {
      "rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low_freq_factor,
      "high_freq_factor": rope.high_freq_factor,
      "original_max_position_embeddings": rope.original_max_length}
  if rope.kind == "yarn":
    raw["rope_scaling"] = {
      "type": "yarn", "factor": rope.factor, "beta_fast": rope.beta_fast,
      "attention_factor": rope.attention_factor,
      "original_max_position_embeddings": rope.original_max_length}
  if rope.kind == "dynamic":
    raw |= {"rope_scaling": {"type": "dynamic", "factor": rope.factor},
            "max_position_embeddings": rope.original_max_length}
  raw |= {"attention_bias": config.out_bias, "mlp_bias": config.mlp_bias}
  if any(config.layer_windows):
    raw |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
  return raw


def write(folder, name="llama", weights=None, **config_changes):
  """A checkpoint of one file; returns its folder."""
  folder.mkdir(exist_ok=True)
  raw = {**config_json(name), **config_changes}
  (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
  weights = random_weights(CONFIGS[name]) if weights is None else weights
  save_file(weights, folder / "model.safetensors")
  return folder


def settings(folder, **changes):
  values = dict(path=str(folder), architecture="llama", embed_dim=1, mlp_dim=1, num_layers=1,
                num_heads=1, num_kv_heads=1, head_dim=2, dtype="float32", scan_layers=False,
                remat=False, attention="xla")
  return ModelSettings(**{**values, **changes})


def load(folder, lora=NO_LORA, **changes):
  model = settings(folder, **changes)
  config = factory.model_config(model, lora, 40)
  return factory.build_decoder(model, config, 0, make_mesh(MeshSettings(1, 1, 1)))

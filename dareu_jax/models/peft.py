"""LoRA adapters in the layout of PEFT, written; `models.adapters` reads them."""

import pathlib

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from dareu_jax.core.errors import InputError
from dareu_jax.core.trees import named_leaves
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.huggingface import new_folder, on_host, write_json
from dareu_jax.models.weights import checkpoint_names


def save(
  model: Decoder, path: str | pathlib.Path, *, base: str | pathlib.Path,
  tokenizer: Tokenizer | None = None, card: str = "") -> None:
  """Writes only a decoder's adapters, for PEFT to load on top of their base checkpoint.

  Args:
    model: a model with adapters.
    path: folder; it must not exist yet.
    base: folder or hub name of that checkpoint.
    tokenizer: tokenizer to save with them.
    card: text of the README.md, if any.

  Raises:
    InputError: for a model without adapters, or if the folder exists.
  """
  lora = model.config.lora
  if not lora.rank:
    raise InputError("the model has no adapter, all its parameters were trained: export it merged.")
  with new_folder(path, tokenizer, card) as folder:
    write_json(folder / ADAPTER_CONFIG, {
      "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
      "r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(lora.targets),
      "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True})
    save_file(_tensors(model), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _tensors(model):
  tensors = {}
  for path, leaf in named_leaves(nnx.state(model, nnx.LoRAParam)).items():
    module, _, kind = path.rpartition("/")
    names, stacked = checkpoint_names(f"{module}/kernel", model.config)
    factor = {"lora_a": "lora_A", "lora_b": "lora_B"}[kind]
    for layer, name in enumerate(names):
      array = on_host(leaf, layer if stacked else None).T
      name = f"base_model.model.{name.removesuffix('.weight')}.{factor}.weight"
      tensors[name] = np.ascontiguousarray(array)
  return tensors

"""Weights of Hugging Face checkpoints: strict reading of safetensors into the decoder's states."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from safetensors import safe_open

from dareu_jax.models.config import ModelConfig
from dareu_jax.parallel.mesh import parameter_spec, path_name
from dareu_jax.settings import InputError

# Our path -> the checkpoint's name; linear weights are stored [out, in] there and transposed.
_NAMES = {
  "embedding": "model.embed_tokens.weight",
  "lm_head": "lm_head.weight",
  "final_norm/scale": "model.norm.weight",
}
_LAYER_NAMES = {
  "attention_norm/scale": "input_layernorm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
  **{f"attention/{x}_proj/kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
  **{f"attention/{x}_proj/bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
  **{f"attention/{x}_norm/scale": f"self_attn.{x}_norm.weight" for x in "qk"},
  **{f"mlp/{x}_proj/kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}
# Buffers that old checkpoints carry; they hold no weights.
_IGNORED = ("rotary_emb.inv_freq",)


class Weights:
  """The tensors of a checkpoint folder, read one at a time, each accounted for."""

  def __init__(self, folder, config: ModelConfig):
    self.folder = pathlib.Path(folder)
    self.config = config
    self._files = _index(self.folder)
    self._used = set()

  def read(self, name):
    """One tensor as numpy.

    Raises:
      InputError: if it is missing.
    """
    if name not in self._files:
      raise InputError(f"{self.folder}: tensor {name} is missing from the checkpoint.")
    self._used.add(name)
    with safe_open(self.folder / self._files[name], framework="numpy") as file:
      return file.get_tensor(name)

  def check_all_used(self):
    """Raises InputError if the checkpoint holds tensors that the model has no place for."""
    unused = [name for name in self._files if name not in self._used
              and not name.endswith(_IGNORED)]
    # A tied head, stored as a copy by some writers, or one that a classifier does without.
    unused = [name for name in unused if name != "lm_head.weight"]
    if unused:
      raise InputError(f"{self.folder}: tensor {unused[0]} (of {len(unused)}) has no place in the "
                       "model; the checkpoint is of another architecture.")

  def parameter(self, path, shape):
    """The tensor of one of our parameters, in our layout; `path` as of `mesh.path_name`."""
    path = path.removeprefix("decoder/")
    if not path.startswith("layers/"):
      return self._oriented(_NAMES[path], path, shape)
    head, _, rest = path.removeprefix("layers/").partition("/")
    if head.isdigit():
      return self._oriented(f"model.layers.{head}.{_LAYER_NAMES[rest]}", rest, shape)
    rest = f"{head}/{rest}"  # scanned: all layers in one array
    return np.stack([self._oriented(f"model.layers.{i}.{_LAYER_NAMES[rest]}", rest, shape[1:])
                     for i in range(self.config.num_layers)])

  def _oriented(self, name, path, shape):
    tensor = self.read(name)
    if path.endswith(("kernel", "lm_head")):
      tensor = tensor.T
    if tensor.shape != tuple(shape):
      raise InputError(f"{self.folder}: tensor {name} has shape {tensor.shape}, but config.json "
                       f"says {tuple(shape)} (as [in, out]).")
    return tensor


def fill(shapes, made, weights, mesh, dtype):
  """A state with the shapes given: LoRAParam leaves from `made`, all others from the checkpoint.

  Args:
    shapes: nnx.State of ShapeDtypeStructs.
    made: nnx.State that holds the LoRAParam leaves.
    weights: Weights.
    mesh: where they go.
    dtype: of the weights.
  """
  ready = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(made)}

  def one(path, leaf):
    name = path_name(path)
    if name in ready:
      return ready[name]
    sharding = NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))
    return jax.device_put(jnp.asarray(weights.parameter(name, leaf.shape), dtype), sharding)

  return jax.tree_util.tree_map_with_path(one, shapes)


def _index(folder):
  """Tensor name -> file name.

  Raises:
    InputError: without safetensors, or with a file that is damaged or missing.
  """
  index = folder / "model.safetensors.index.json"
  if index.exists():
    return _read_index(index)
  if (folder / "model.safetensors").exists():
    return dict.fromkeys(_tensor_names(folder / "model.safetensors"), "model.safetensors")
  pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
  hint = f" ({pickled[0]} is pickled code, which is never loaded: convert it)" if pickled else ""
  raise InputError(f"{folder} holds no model.safetensors{hint}.")


def _read_index(index):
  try:
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
    raise InputError(f"{index} is damaged: it must hold a weight_map. Download it again.") from None
  held = {name: set(_tensor_names(index.parent / name)) for name in sorted(set(files.values()))}
  for tensor, name in files.items():
    if tensor not in held[name]:
      raise InputError(f"{index} places tensor {tensor} in {name}, which does not hold it.")
  return files


def _tensor_names(path):
  try:
    with safe_open(path, framework="numpy") as file:
      return list(file.keys())
  except FileNotFoundError:
    raise InputError(f"{path} is missing; the checkpoint's index names it.") from None
  except Exception as error:  # noqa: BLE001 - the Rust reader's own error type
    raise InputError(f"{path} is damaged ({error}). Download it again.") from None



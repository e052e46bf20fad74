"""LoRA adapters in the layout of PEFT, read; `models.peft` writes them.

Adapters whose modules differ in rank or scale become adapters of one rank and scale: A and B are
padded with zeros, which stay zero in training, and B takes the rest of the scale.
"""

import functools
import math
import numbers
import pathlib
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float
from safetensors import safe_open

from dareu_jax.core.errors import InputError, downloaded_json
from dareu_jax.core.trees import map_named
from dareu_jax.models.config import LORA_TARGETS, LoraSettings, ModelConfig
from dareu_jax.models.weights import checkpoint_names, tensor_names
from dareu_jax.parallel.mesh import parameter_spec

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.*\.(?P<target>\w+))\.lora_(?P<factor>[AB])"
                     r"(\.default)?\.weight")
# Keys of the config that change what an adapter computes, and their only values that are read.
_PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False,
          "modules_to_save": None, "layer_replication": None, "trainable_token_indices": None,
          "target_parameters": None, "use_bdlora": None, "alora_invocation_tokens": None}

_TYPES: dict[str, tuple[type, str]] = {
  "base_model_name_or_path": (str, "a folder or a name"), "r": (int, "a whole number"),
  "lora_alpha": (numbers.Real, "a number"), "alpha_pattern": (dict, "an object"),
  "rank_pattern": (dict, "an object")}
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}  # settings of single modules
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to start an adapter


class Adapter:
  """An adapter folder; its tensors are read when they are asked for."""

  def __init__(self, folder: pathlib.Path):
    """Raises InputError for an adapter that is damaged, or of a kind that is not read."""
    self.folder = folder
    self._config = self._read_config()
    self.base: str = self._config["base_model_name_or_path"]
    self._names = self._tensor_names()
    ranks = {module: self._rank_of(module) for module, _ in self._names}
    self.rank = max(ranks.values())
    self._scales = {module: self._scale(module, rank) for module, rank in ranks.items()}
    targets = {module.rpartition(".")[2] for module in ranks}
    unknown = sorted(targets - set(LORA_TARGETS))
    if unknown:
      raise InputError(f"{folder}: the adapter has a part on {unknown[0]}, which cannot carry one: "
                       f"only {', '.join(LORA_TARGETS)} can. Merge it into its base.")
    self.lora = LoraSettings(
      rank=self.rank, alpha=float(max(self._scales.values()) * self.rank),
      targets=tuple(target for target in LORA_TARGETS if target in targets))

  def fill(self, state: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """A state whose adapters are these; its other leaves stay.

    Args:
      state: an nnx.State of arrays or shapes, with float32 `lora_a` and `lora_b`.
      config: architecture of the base, with `lora` as its adapters.
      mesh: where they are placed.

    Raises:
      InputError: if the adapter belongs on a base of other dimensions.
    """
    used: set[str] = set()

    def array(name, leaf):
      module, _, kind = name.rpartition("/")
      if kind not in ("lora_a", "lora_b"):
        return leaf
      names, stacked = checkpoint_names(f"{module}/kernel", config)
      shape = leaf.shape[1:] if stacked else leaf.shape
      used.update(names)
      parts = [self._factor(each.removesuffix(".weight"), kind, shape) for each in names]
      sharding = NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))
      return jax.device_put(np.stack(parts) if stacked else parts[0], sharding)

    filled = map_named(array, state)
    extra = sorted(module for module in self._scales if f"{module}.weight" not in used)
    if extra:
      raise InputError(f"{self.folder}: the adapter has a part on {extra[0]}, which its base "
                       f"{self.base!r} does not have: it belongs on another model.")
    return filled

  def _factor(self, module: str, kind: str, shape: tuple[int, ...]) -> Float[np.ndarray, "I O"]:
    """A [in, r] or B [r, out] of a module, padded to the adapter's rank; zeros if it has none."""
    if module not in self._scales:
      return np.zeros(shape, np.float32)
    factor = "A" if kind == "lora_a" else "B"
    value = self._tensor(self._names[module, factor]).astype(np.float32).T
    if factor == "B":
      value = value * np.float32(self._scales[module] * self.rank / self.lora.alpha)
    axis = 1 if factor == "A" else 0
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, self.rank - value.shape[axis])
    value = np.pad(value, padding)
    if value.shape != shape:
      raise InputError(f"{self.folder}: lora_{factor} of {module} is {value.shape}, and the base "
                       f"{self.base!r} has room for {shape}: the adapter belongs on another model.")
    return value

  def _read_config(self) -> dict[str, Any]:
    path = self.folder / ADAPTER_CONFIG
    config = downloaded_json(path)
    if not isinstance(config, dict):
      raise InputError(f"{path} is damaged: it holds no settings. Download it again.")
    start = str(config.get("init_lora_weights"))
    if start.startswith(_CHANGES_BASE):
      raise InputError(f"{path}: init_lora_weights {start!r} changes the base's weights too. Merge "
                       "the adapter into its base (PEFT's merge_and_unload), and use the merged "
                       "model.")
    for key in ("base_model_name_or_path", "r", "lora_alpha", "peft_type"):
      if not config.get(key):
        raise InputError(f"{path}: {key} is missing or empty. Set it there, or download the "
                         "adapter again.")
    for key, (kind, meaning) in _TYPES.items():
      if not isinstance(config.get(key), (kind, type(None))):
        raise InputError(f"{path}: {key} is {config[key]!r}, which is not {meaning}. Download it "
                         "again.")
    for key in _PATTERNS.values():
      for pattern, value in (config.get(key) or {}).items():
        if not (_is_pattern(pattern) and isinstance(value, numbers.Real)):
          raise InputError(f"{path}: {key} holds {pattern!r}: {value!r}, which is not a regular "
                           "expression and a number. Download it again.")
    for key, plain in _PLAIN.items():
      if config.get(key, plain) not in (plain, None, [], {}):
        raise InputError(f"{path}: {key} {config[key]!r} is not supported. Merge the adapter into "
                         "its base (PEFT's merge_and_unload), and use the merged model.")
    return config

  def _tensor_names(self) -> dict[tuple[str, str], str]:
    """{(module, "A" or "B"): name of the tensor}."""
    path = self.folder / ADAPTER_WEIGHTS
    if not path.exists():
      raise InputError(f"{self.folder} holds {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}: download "
                       "it, or remove the config if the model needs no adapter.")
    found = {}
    for name in tensor_names(path):
      match = _TENSOR.fullmatch(name)
      if not match:
        raise InputError(f"{path}: tensor {name} is no LoRA factor of a linear layer. Merge the "
                         "adapter into its base, and use the merged model.")
      found[match["module"], match["factor"]] = name
    for module, factor in found:
      if (module, "AB"[factor == "A"]) not in found:
        raise InputError(f"{path}: lora_{factor} of {module} has no other half.")
    if not found:
      raise InputError(f"{path} holds no tensors.")
    return found

  def _rank_of(self, module: str) -> int:
    """Raises InputError if A and B are not matrices [r, in] and [out, r] of the config's rank."""
    a, b = (self._open.get_slice(self._names[module, factor]).get_shape() for factor in "AB")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
      raise InputError(f"{self.folder / ADAPTER_WEIGHTS}: lora_A of {module} is {tuple(a)} and "
                       f"lora_B {tuple(b)}: they must be (r, in) and (out, r). Download it again.")
    rank = self._setting("r", module)
    if a[0] != rank:
      raise InputError(f"{self.folder}: lora_A of {module} has rank {a[0]}, and {ADAPTER_CONFIG} "
                       f"says {rank}: they are of two adapters. Download both again.")
    return a[0]

  def _scale(self, module: str, rank: int) -> float:
    """What B A x is multiplied by: α / r, or α / sqrt(r) with `use_rslora`."""
    alpha = self._setting("lora_alpha", module)
    return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

  def _setting(self, key: str, module: str) -> Any:
    """Its rank or α: that of the first pattern that is the end of its name, or of the config."""
    for pattern, value in (self._config.get(_PATTERNS[key]) or {}).items():
      if re.fullmatch(rf"(.*\.)?({pattern})", module):
        return value
    return self._config[key]

  def _tensor(self, name):
    return np.asarray(self._open.get_tensor(name))

  @functools.cached_property
  def _open(self):
    return safe_open(self.folder / ADAPTER_WEIGHTS, framework="numpy")


def _is_pattern(text):
  try:
    re.compile(text)
  except re.error:
    return False
  return True

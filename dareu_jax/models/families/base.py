"""Model families: how the models of one architecture differ from a Llama.

    @register_family("mine")
    class Mine(Family):
      architectures = ("MineForCausalLM",)
      ...

All families share one decoder. A family says which of its options (fields of `ModelConfig`) its
models use, how config.json spells them, and how a checkpoint names the parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import SHARDINGS
from dareu_jax.parallel.mesh import is_stacked, register_shardings

_LINEARS = {"attention": ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
            "mlp": ("mlp", ("gate_proj", "up_proj", "down_proj"))}
# Our parameter -> its tensor in a checkpoint; * is the number of the layer.
TENSOR_NAMES = {
  "embedding": "model.embed_tokens.weight",
  "lm_head": "lm_head.weight",
  "final_norm/scale": "model.norm.weight",
  "layers/*/attention_norm/scale": "model.layers.*.input_layernorm.weight",
  "layers/*/mlp_norm/scale": "model.layers.*.post_attention_layernorm.weight",
  "layers/*/attention/q_norm/scale": "model.layers.*.self_attn.q_norm.weight",
  "layers/*/attention/k_norm/scale": "model.layers.*.self_attn.k_norm.weight",
  **{f"layers/*/{ours}/{linear}/{leaf}": f"model.layers.*.{theirs}.{linear}.{suffix}"
     for ours, (theirs, linears) in _LINEARS.items() for linear in linears
     for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))},
}


class Family:
  """A model family. The class is the declaration; no instance is made."""

  name: ClassVar[str]  # value of `config.model.architecture`
  architectures: ClassVar[tuple[str, ...]]  # in a config.json; exports write the first
  model_type: ClassVar[str]  # in a config.json; by default the name
  options: ClassVar[Mapping[str, Any]] = {}  # fields of ModelConfig that all its models share
  default_head_dim: ClassVar[int | None] = None  # if config.json has none; None: D / N
  default_max_length: ClassVar[int] = 2048  # if config.json has no max_position_embeddings
  tensor_names: ClassVar[Mapping[str, str]] = TENSOR_NAMES
  # Shardings of its parameters, for `mesh.register_shardings`.
  shardings: ClassVar[Mapping[str, tuple[str, ...]]] = SHARDINGS

  @classmethod
  def read_options(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a config.json sets, besides the shared dimensions and rotary embeddings.

    Args:
      raw: the parsed file.

    Returns: {field of ModelConfig: value}.

    Raises:
      InputError: for a value that the decoder does not support.
    """
    return {}

  @classmethod
  def write_options(cls, config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_options`: the keys of a config.json that are specific to this family."""
    return {}

  @classmethod
  def checkpoint_names(cls, path: str, num_layers: int) -> tuple[list[str], bool]:
    """The checkpoint's names of one of our parameters.

    Args:
      path: from `core.trees.path_name`; within a classifier too.
      num_layers: layers of the model.

    Returns: (names, stacked): one name, or one per layer if our array holds all layers.

    Raises:
      ValueError: if the family has no name for the parameter.
    """
    path = path.removeprefix("decoder/")
    prefix, _, rest = path.partition("/")
    stacked = is_stacked(path)
    layers: list[str] = []
    if prefix == "layers":
      index, _, inner = rest.partition("/")
      layers = [str(i) for i in range(num_layers)] if stacked else [index]
      path = f"layers/*/{rest if stacked else inner}"
    if path not in cls.tensor_names:
      raise ValueError(f"the model family {cls.name!r} names no tensor for the parameter {path}: "
                       f"add it to {cls.__name__}.tensor_names.")
    name = cls.tensor_names[path]
    return [name.replace("*", layer) for layer in layers] or [name], stacked


FAMILIES: Registry[type[Family]] = Registry("model family", "dareu_jax.models.families")
F = TypeVar("F", bound=type[Family])


def register_family(name: str) -> Callable[[F], F]:
  """Registers a class as the family of this name for `config.model.architecture`."""

  def register(cls: F) -> F:
    declared = vars(cls)  # a family may derive from another, but these two are never inherited
    if "architectures" not in declared:
      raise ValueError(f"{cls.__name__} must list the architectures of config.json that it reads.")
    cls.name, cls.model_type = name, declared.get("model_type", name)
    register_shardings(cls.shardings)
    FAMILIES.register(name, cls)
    return cls

  return register


def family_of(architecture: str) -> type[Family]:
  """The family that reads an architecture of a config.json, such as 'LlamaForCausalLM'.

  Raises:
    InputError: if no family or more than one reads it.
  """
  families = [family for _, family in FAMILIES.items() if architecture in family.architectures]
  if not families:
    supported = [name for _, family in FAMILIES.items() for name in family.architectures]
    raise InputError(f"architecture {architecture} is not supported. "
                     f"Supported: {', '.join(supported)}.")
  if len(families) > 1:
    raise InputError(f"architecture {architecture} is read by several model families: "
                     f"{', '.join(family.name for family in families)}.")
  return families[0]

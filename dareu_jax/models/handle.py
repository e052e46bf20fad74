"""A model as one value: trained parameters, frozen parameters, and the static part that joins them.

A *role* of a model (original, previous epoch, current) is a set of parameters over one shared
frozen state, never a second model: with adapters it is the adapter, else all parameters.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx, struct


@dataclasses.dataclass(frozen=True)
class Static:
  """The static part of a model: its graph, and the dtype that its weights are computed with."""

  graphdef: nnx.GraphDef
  dtype: str


@struct.dataclass
class Model:
  """A module as a pytree, which can be an argument of jitted functions.

  Attributes:
    params: state of the trained parameters, float32; None if they are passed separately.
    frozen: state of the rest.
    static: the static part, a key of compiled programs.
  """

  params: Any
  frozen: Any
  static: Static = struct.field(pytree_node=False)

  def with_params(self, params: Any) -> "Model":
    """The model with other params: another role."""
    return dataclasses.replace(self, params=params)

  @property
  def module(self) -> Any:
    """The module; cheap, and meant to be built under jit."""
    return nnx.merge(
      self.static.graphdef, _cast(self.params, self.static.dtype), self.frozen)


def split(module: nnx.Module, *, adapters_only: bool) -> Model:
  """A module as a Model.

  Trained parameters are float32, whatever the compute dtype: small updates of a bfloat16 weight
  would be lost by rounding.

  Args:
    module: the module, with arrays or shapes.
    adapters_only: train the LoRAParam variables (adapters and heads), else every parameter.
  """
  dtype = next(str(leaf.dtype) for leaf in jax.tree.leaves(
    nnx.state(module, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))))
  trained = nnx.LoRAParam if adapters_only else nnx.Param
  graphdef, *states = nnx.split(module, trained, ...)
  params, frozen = states
  return Model(_cast(params, "float32"), frozen, Static(graphdef, dtype))


def _cast(state, dtype):
  """The state with its weights, but not its LoRAParam variables, in another dtype."""

  def cast(variable):
    if isinstance(variable, nnx.LoRAParam):
      return variable
    return jax.tree.map(lambda leaf: _with_dtype(leaf, dtype), variable)

  return jax.tree.map(cast, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _with_dtype(leaf, dtype):
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.update(dtype=jax.numpy.dtype(dtype))
  return leaf.astype(dtype)


def bytes_of(state: Any) -> int:
  """Bytes of a state (of arrays or shapes)."""
  return sum(
    int(np.prod(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(state))

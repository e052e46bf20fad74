"""A model as states: what is trained, what is frozen, and the pure function between them.

A *role* of a model (original, previous epoch, current) is a trainable state over one shared frozen
state, never a second model: with adapters it is the adapter, else all parameters.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Frame:
  """The static part of a model: its graph, and the dtype that its weights are computed with."""

  graphdef: nnx.GraphDef
  dtype: str

  def merge(self, trainable, frozen):
    """The module of a role; cheap, and meant to be called under jit."""
    return nnx.merge(self.graphdef, _cast(trainable, self.dtype), frozen)


def split(model, *, adapters_only):
  """Splits a module into (frame, trainable state, frozen state).

  What is trained is float32, whatever it is computed with: small updates of a bfloat16 weight round
  away.

  Args:
    model: an NNX module, of arrays or of shapes.
    adapters_only: train the LoRAParam variables (adapters and heads), else every parameter.
  """
  dtype = next(str(leaf.dtype) for leaf in jax.tree.leaves(
    nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))))
  trained = nnx.LoRAParam if adapters_only else nnx.Param
  graphdef, trainable, frozen = nnx.split(model, trained, ...)
  return Frame(graphdef, dtype), _cast(trainable, "float32"), frozen


def _cast(state, dtype):
  """The state with its weights, but not its LoRAParam variables, in another dtype."""

  def one(variable):
    if isinstance(variable, nnx.LoRAParam):
      return variable
    return jax.tree.map(lambda leaf: _with_dtype(leaf, dtype), variable)

  return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _with_dtype(leaf, dtype):
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.update(dtype=jax.numpy.dtype(dtype))
  return leaf.astype(dtype)


def bytes_of(state):
  """Bytes that a state (of arrays or of shapes) takes."""
  return sum(
    int(np.prod(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(state))

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
  """The static part of a model: its graph, and which of its variables are trained."""

  graphdef: nnx.GraphDef

  def merge(self, trainable, frozen):
    """The module of a role; cheap, and meant to be called under jit."""
    return nnx.merge(self.graphdef, trainable, frozen)


def split(model, *, adapters_only):
  """Splits a module into (frame, trainable state, frozen state).

  Args:
    model: an NNX module.
    adapters_only: train the LoRAParam variables (adapters and heads), else every parameter.
  """
  trained = nnx.LoRAParam if adapters_only else nnx.Param
  graphdef, trainable, frozen = nnx.split(model, trained, ...)
  return Frame(graphdef), trainable, frozen


def count(state):
  """Number of scalars in a state."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


def bytes_of(state):
  """Bytes that a state (of arrays or of shapes) takes."""
  return sum(
    int(np.prod(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(state))

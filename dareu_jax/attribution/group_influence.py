"""Group influence as an attribution function: whose data makes a response likelier.

Gradients, curvature and derivatives are those of the original model, whatever policy sampled the
responses. `attribution.influence` has the mathematics. Unlike a classifier, this reads the query.

G groups of owners, P trained parameters, B responses, T their tokens.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import optimize, special

from dareu_jax.attribution.influence import (
  mean_eigenvalue,
  solve,
  stack_chunks,
  token_influence,
  total_gradient,
)
from dareu_jax.data.batches import Batch, Row, bucket_length, collate
from dareu_jax.data.examples import evenly_spaced
from dareu_jax.models.handle import Model
from dareu_jax.parallel.hosts import fetch

Group = tuple[int, ...]  # owners

RETAINED_GROUPS = 2  # the retained owners are divided into so many: each costs a derivative
CURVATURE_ROWS = 1  # of each owner, in the Gauss-Newton matrix
DAMPING = 1000.0  # λ over the mean eigenvalue of that matrix
ITERATIONS = 8  # of conjugate gradients, at most
TOLERANCE = 3e-2  # relative residual at which the iterations stop
FITTED_ROWS = 40  # true answers of F, and as many others, that the temperature is fitted on
BATCH_SIZE = 20  # rows that are read together


@dataclasses.dataclass(frozen=True)
class Reader:
  """Makes batches of rows; those of one completion length have one shape."""

  longest_prompt: int  # that is expected; a longer one makes another shape
  multiple: int  # lengths are padded to a multiple of this
  pad_id: int  # of the tokenizer
  to_device: Callable[[Any], Any] = lambda batch: batch  # places a batch on the devices

  def __call__(self, rows: Sequence[Row], completion_length: int) -> tuple[Batch, ...]:
    prompt = max(self.longest_prompt, *(len(row.prompt) for row in rows))
    seq_length = bucket_length(prompt + completion_length, self.multiple)
    return tuple(
      self.to_device(collate(rows[start:start + BATCH_SIZE], BATCH_SIZE, seq_length=seq_length,
                             completion_length=completion_length, pad_id=self.pad_id))
      for start in range(0, len(rows), BATCH_SIZE))


@dataclasses.dataclass(frozen=True, eq=False)
class GroupInfluence:
  """b(y_≤t) = Σ_{g in F} n_g exp(a_g(y_≤t) / τ) / Σ_g n_g exp(a_g(y_≤t) / τ).

      a_g(y_≤t) = Σ_{s≤t} ∇ log π_N(y_s | q, y_<s)ᵀ v_g
      v_g = (G + λ I)⁻¹ mean over the owners o of g of Σ_{i in o} ∇ log π_N(y_i | q_i)

  A forget owner is a group by itself, n_g = 1; a group of n_g retained owners stands for each of
  them with its mean. As with a classifier, the score of an empty text is |F| / O.
  """

  model: Model  # π_N
  directions: Float[Array, "G P"]  # v_g
  sizes: Int[np.ndarray, " G"]  # n_g
  is_forget: Bool[np.ndarray, " G"]
  temperature: float  # τ
  read: Reader

  def prefixes(self, rows: Sequence[Row], length: int) -> Float[np.ndarray, "B {length}"]:
    """Scores of all prefixes of the completions of rows.

    Args:
      rows: responses behind their queries.
      length: tokens of the longest response that there may be.

    Returns: float32 in [0, 1]; beyond a row's length the score of the whole.
    """
    batches = self.read(rows, length)
    influences = prefix_influence(self.model, batches, self.directions)[:len(rows)]
    probabilities = group_probabilities(influences, self.sizes, self.temperature)
    return probabilities[..., self.is_forget].sum(axis=-1).clip(0, 1).astype(np.float32)


def prefix_influence(model: Model, batches: Sequence[Batch],
                     directions: Float[Array, "G P"]) -> Float[np.ndarray, "B T G"]:
  """a_g(y_≤t) of all rows of some batches of one shape."""
  tokens = [fetch(token_influence(model, batch, directions)) for batch in batches]
  return np.cumsum(np.concatenate(tokens), axis=1)


def group_probabilities(influences: Float[np.ndarray, "*B G"], sizes: Int[np.ndarray, " G"],
                        temperature: float) -> Float[np.ndarray, "*B G"]:
  """n_g exp(a_g / τ), normalized over the groups."""
  return special.softmax(np.log(sizes) + influences / temperature, axis=-1)


def fit_temperature(influences: Float[np.ndarray, "E G"], sizes: Int[np.ndarray, " G"],
                    groups: Int[np.ndarray, " E"]) -> float:
  """The τ > 0 at which the right groups are likeliest, as in `classifier.fit_temperature`.

  Args:
    influences: of texts on each group's data.
    sizes: owners of each group.
    groups: the truth.
  """
  unit = float(np.std(influences)) or 1.0

  def nll(log_ratio):
    right = group_probabilities(influences, sizes, unit * np.exp(log_ratio))[
      np.arange(len(groups)), groups]
    return -np.mean(np.log(np.maximum(right, 1e-30)))

  return unit * float(np.exp(optimize.minimize_scalar(
    nll, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))


def make_groups(forget: Collection[int], retained: Collection[int]) -> tuple[Group, ...]:
  """Each forget owner by itself, then the retained owners in up to `RETAINED_GROUPS` groups."""
  retained = sorted(retained)
  parts = [tuple(retained[k::RETAINED_GROUPS]) for k in range(RETAINED_GROUPS)]
  return (*((owner,) for owner in sorted(forget)), *filter(None, parts))


def fit_group_influence(model: Model, forget: Sequence[Row], retain: Sequence[Row],
                        read: Reader) -> GroupInfluence:
  """Solves for the directions of the groups, and fits the temperature on prefixes of true answers.

  Owners without data, whom an earlier request made the model forget, are in no group.

  Args:
    model: π_N, float32.
    forget, retain: D, with its owners.
    read: makes batches of rows.
  """
  rows = [*forget, *retain]
  length = bucket_length(max(len(row.completion) for row in rows), read.multiple)
  of_owner: dict[int, list[Row]] = {}
  for row in rows:
    of_owner.setdefault(row.owner, []).append(row)
  forgotten = {row.owner for row in forget}
  groups = make_groups(forgotten, of_owner.keys() - forgotten)
  gradients = {owner: sum(total_gradient(model, batch) for batch in read(own, length))
               for owner, own in of_owner.items()}
  means = jnp.stack([sum(gradients[owner] for owner in group) / len(group) for group in groups])
  some = [row for owner in sorted(of_owner)
          for row in evenly_spaced(tuple(of_owner[owner]), CURVATURE_ROWS)]
  chunks = stack_chunks(read(some, length))
  damping = DAMPING * mean_eigenvalue(model, chunks, probes=1, key=jax.random.key(0))
  directions = solve(model, chunks, means, damping, tolerance=TOLERANCE, iterations=ITERATIONS)
  sizes = np.array([len(group) for group in groups])
  known = [*evenly_spaced(tuple(forget), FITTED_ROWS), *evenly_spaced(tuple(retain), FITTED_ROWS)]
  influences = prefix_influence(model, read(known, length), directions)
  group_of = {owner: index for index, group in enumerate(groups) for owner in group}
  temperature = fit_temperature(
    np.concatenate([a[:len(row.completion)] for a, row in zip(influences, known, strict=False)]),
    sizes, np.concatenate([[group_of[row.owner]] * len(row.completion) for row in known]))
  return GroupInfluence(model, directions, sizes,
                        np.array([group[0] in forgotten for group in groups]), temperature, read)

"""Relearning: a few steps of fine-tuning, and how much knowledge returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import Batches
from dareu_jax.data.examples import Example
from dareu_jax.models.handle import Model
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import adamw_direction

RATE = 2e-5  # published, for checkpoints with a billion parameters
EPOCH = 13  # of forget10 in batches of 32: the published attack
STEPS = (0, 1, 2, 4, 8, EPOCH, 26)


def relearned(model: Model, batches: Batches, learning_rate: float, *,
              to_device: Callable[[Any], Any],
              steps: Sequence[int] = STEPS) -> Iterator[tuple[int, Any]]:
  """Yields (steps taken, params) at each of `steps`.

  Answer-only loss at a constant rate, without warm-up or weight decay.

  Args:
    model: the model; not modified.
    batches: batches to train on.
    learning_rate: constant rate.
    to_device: places a batch on the devices.
    steps: numbers of steps after which to yield.

  Source: open-unlearning's meta-evaluation (1 epoch, 2e-5, batches of 32, no warm-up, no decay);
  here by the library's AdamW, whose second moment forgets faster (.95) than theirs (.999).
  """
  # A copy, since training donates its state.
  params = jax.tree.map(jnp.copy, model.params)
  optimizer = adamw_direction(weight_decay=0.0, clip_norm=1.0)
  state = supervised.TrainState(jnp.int32(0), params, optimizer.init(params))
  for step in range(max(steps) + 1):
    if step in steps:
      yield step, jax.tree.map(jnp.copy, state.params)
    if step < max(steps):
      state, _ = supervised.update(
        state, model.with_params(None), to_device(batches[step]), jax.random.key(step),
        learning_rate, loss_fn=supervised.language_model_loss, weight_decay=0.0, clip_norm=1.0,
        micro_batches=1)


def area(curve: Mapping[int, float]) -> float:
  """Area under a relearning curve, with the steps scaled to [0, 1].

  Args:
    curve: {steps: value}.
  """
  steps = sorted(curve)
  return float(np.trapezoid([curve[s] for s in steps], steps) / (steps[-1] - steps[0]))


def two_halves(
    examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
  """Forget examples of the first half of the owners, and those of the second.

  Facts of different owners are independent, so facts that return without being taught were still in
  the model (Deeb and Roger 2024, with five parts). With one owner the second half is empty.
  """
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  taught = set(owners[:(len(owners) + 1) // 2])
  return (tuple(e for e in examples if e.owner in taught),
          tuple(e for e in examples if e.owner not in taught))

"""Rewards that are made from the task: other attribution functions in the classifier's place.

The learner takes any of them. `docs/method.md` compares the three.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool

from dareu_jax.attribution.group_influence import Reader, fit_group_influence
from dareu_jax.attribution.scorer import Scorer
from dareu_jax.attribution.watermark import prefix_scores
from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Row
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models.handle import Model
from dareu_jax.rl.reward_functions import Facts, Responses, Reward, register_reward

MOST_PARAMETERS = 4_000_000  # trained, that group influence is computed with


class Source(Protocol):
  """The parts of a `methods.base.Task` that these rewards are made from."""

  @property
  def original(self) -> Model: ...

  @property
  def forget(self) -> Sequence[Row]: ...

  @property
  def retain(self) -> Sequence[Row]: ...

  @property
  def classifier(self) -> Scorer: ...

  @property
  def marks(self) -> Sequence[str]: ...

  @property
  def evaluator(self) -> Evaluator: ...

  @property
  def length_multiple(self) -> int: ...


def _check_marks(facts):
  if not facts.marked:
    raise InputError("config.unlearning.dareu.reward is 'watermark', and the data has no "
                     "watermarks to read: set config.data.watermark to True, so that a model is "
                     "trained on marked answers, or take another reward.")


@register_reward("watermark", of_task=True, check=_check_marks)
def watermark(task: Source) -> Reward:
  """The probability of the forget owners given the watermark that a response carries so far."""
  is_forget = forget_marks(task)

  def reward(responses: Responses) -> np.ndarray:
    return prefix_scores(responses.ids, responses.lengths, task.marks, is_forget,
                         task.evaluator.tokenizer)

  return reward


def forget_marks(task: Source) -> Bool[np.ndarray, " O"]:
  """Which marks are those of owners to forget, of earlier requests too: the classifier's."""
  return task.classifier.is_forget[:len(task.marks)]  # a class "none of these" may follow


def _check_gradients(facts: Facts) -> None:
  name = "config.unlearning.dareu.reward is 'influence'"
  if facts.quantized:
    raise InputError(f"{name}, which takes derivatives through all weights, and these are "
                     "quantized: set config.model.quantize to 'none', or take another reward.")
  if facts.dtype != "float32":
    raise InputError(f"{name}, which is computed in float32: set config.model.dtype to 'float32', "
                     "or take another reward.")
  if facts.trained_parameters > MOST_PARAMETERS:
    raise InputError(f"{name}, which solves linear systems in all trained parameters, here "
                     f"{facts.trained_parameters:,}: it takes up to {MOST_PARAMETERS:,}. Train "
                     "adapters (config.lora.rank), or take another reward.")


@register_reward("influence", of_task=True, check=_check_gradients)
def influence(task: Source) -> Reward:
  """The probability of the forget owners by the influence of their data on a response so far.

  It reads a response behind its query, and a continuation as if it followed the query directly.
  """
  scorer = fit_group_influence(task.original, task.forget, task.retain, reader_of(task))

  def reward(responses: Responses) -> np.ndarray:
    rows = [Row(task.forget[i].prompt, tuple(ids[:n].tolist()), -1) for i, ids, n in zip(
      responses.chosen, responses.ids, responses.lengths, strict=True)]
    return scorer.prefixes(rows, responses.ids.shape[1])

  return reward


def reader_of(task: Source) -> Reader:
  """What makes batches of responses to the queries of D."""
  return Reader(
    max(len(row.prompt) for row in (*task.forget, *task.retain)), task.length_multiple,
    task.evaluator.tokenizer.pad_id, task.evaluator.to_device)

"""Task vector: trains further on the forget data, then negates that change."""

import dataclasses
from typing import Any

import jax

from dareu_jax.core.settings import Positive
from dareu_jax.core.trees import map_named
from dareu_jax.methods.base import Task, Unlearned, register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar
from dareu_jax.methods.terms import nll
from dareu_jax.training.supervised import StageIO


def task_vector(params: Any, reinforced: Any, *, alpha: float) -> Any:
  """θ - α (θ_reinforced - θ): away from a model trained further on the forget data.

  Args:
    params, reinforced: trees of arrays; the original, and the original fine-tuned on the forget
      data. Adapters must share the factor A: the weights W + BA are linear in B, not in both.
    alpha: α > 0.

  Source: Ilharco et al. 2023.
  """
  return jax.tree.map(lambda x, more: x - alpha * (more - x), params, reinforced)


@register_method("task_vector")
class TaskVector(LossMethod):
  """Fine-tunes on the forget data and subtracts α times the change.

  Without weight decay, whatever config.baseline.weight_decay is: it would be part of the change,
  and move the factor A of adapters.
  """

  alpha: Positive = 5.0  # α: scale of the subtraction

  def unlearn(self, task: Task, stage: StageIO) -> Unlearned:
    training = dataclasses.replace(task.training, weight_decay=0.0)
    return super().unlearn(dataclasses.replace(task, training=training), stage)

  def trained(self, params: Any) -> Any:
    """The factor A of adapters gets no gradient: see `task_vector`."""
    return map_named(
      lambda name, x: jax.lax.stop_gradient(x) if name.endswith("lora_a") else x, params)

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return nll(batch.policy.logprobs, batch.policy.mask)

  def merged(self, original: Any, params: Any) -> Any:
    return task_vector(original, params, alpha=self.alpha)

"""IDK: fine-tuning on refusals (Maini et al. 2024, "preference optimization" of TOFU)."""

from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import Task, register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Others, Scalar
from dareu_jax.methods.terms import nll


def refusals(task: Task) -> Others:
  """Every refusal as a Row, for each forget query; a plain text has no turns, but a space there."""
  tokenizer = task.evaluator.tokenizer
  answers = [tuple(tokenizer.encode_response(text)) for text in task.refusals]

  def instead(example, row):
    if example.text is None:
      return tuple(row._replace(completion=ids) for ids in answers)
    pairs = (tokenizer.encode_behind(example.prompt, text) for text in task.refusals)
    return tuple(row._replace(prompt=tuple(prompt), completion=tuple(ids)) for prompt, ids in pairs)

  return tuple(map(instead, task.examples, task.forget))


@register_method("idk")
class IDK(LossMethod):
  """Learns to answer forget queries with refusals."""

  retain_nll_coef: NonNegative = 1.0

  @property
  def uses_refusals(self) -> bool:
    return True

  def other_responses(self, task: Task) -> Others:
    return refusals(task)

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return nll(batch.other_policy.logprobs, batch.other_policy.mask)

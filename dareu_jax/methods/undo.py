"""UNDO: distills an unlearned model into a noisy copy of itself (Lee et al. 2025)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dareu_jax.core.settings import Count, Fraction, NonNegative, Positive
from dareu_jax.core.trees import map_named
from dareu_jax.generation.strategies import Sample
from dareu_jax.methods import terms
from dareu_jax.methods.base import Shapes, Task, Unlearned, register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Others, Scalar
from dareu_jax.training.supervised import StageIO

SAMPLE_SEED = 6  # distinct from the run's seeds


def with_noise(params: Any, key: Key[Array, ""], *, share: float) -> Any:
  """Matrices with a share of noise of their own size.

      θ' = (1 - α) θ + α N,    N normal with the root mean square of θ

  Norms and biases stay. The factor B of adapters, which starts from zero, only shrinks.

  Args:
    params: tree of arrays; the last two axes are a matrix.
    key: key of the noise.
    share: α in [0, 1]; at 1 only the scale of the weights is left.

  Source: Lee et al. 2025, where N is a fresh initialization times a scale.
  """
  keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))

  def mixed(name, x):
    noise = jax.random.normal(next(keys), x.shape, x.dtype)
    if x.ndim < 2 or name.endswith(("scale", "bias")):
      return x
    size = jnp.sqrt(jnp.mean(jnp.square(x), axis=(-2, -1), keepdims=True))
    return (1 - share) * x + (0.0 if name.endswith("lora_b") else share * size) * noise

  return map_named(mixed, params)


@register_method("undo")
class Undo(LossMethod):
  """Distills an unlearned model of the same run into a copy of it with noise in its weights.

  Unlearning leaves traces in the weights, from which relearning brings the answers back fast. Noise
  removes them along with much else; from its teacher the copy learns again what may be known, on
  retained data, and how to answer forget queries.
  """

  # The unlearned model: one of the run's that comes before; '': the original, if it is unlearned
  teacher: str = "dareu"
  noise: Fraction = 0.3  # α: share of noise in the weights
  forget_coef: NonNegative = 1.0  # weight of the KL from the teacher on forget queries
  retain_kl_coef: NonNegative = 1.0
  samples: Count = 8  # the teacher's answers to each forget query
  # Over the forget data, with as many retained examples; five of them are reported, or fewer with
  # a larger `eval_every`
  epochs: Count = 100
  learning_rate: Positive = 1e-3  # in place of the baseline's

  @property
  def reads(self) -> tuple[str, ...]:
    return (self.teacher,) if self.teacher else ()

  def teacher_of(self, task: Task) -> Any:
    return task.load_params(self.teacher) if self.teacher else task.original.params

  def initial(self, params: Any, seed: int) -> Any:
    return with_noise(params, jax.random.key(seed), share=self.noise)

  def other_responses(self, task: Task) -> Others:
    rows = [row for row in task.forget for _ in range(self.samples)]
    answers = task.evaluator.sample(
      self.teacher_of(task), rows, seed=task.seed + SAMPLE_SEED, strategy=Sample())
    return tuple(tuple(answers[i:i + self.samples]) for i in range(0, len(answers), self.samples))

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    """KL(teacher ‖ π) on true answers, and on the teacher's own."""
    return (batch.policy.mean(terms.kl_tokens, batch.original)
            + batch.other_policy.mean(terms.kl_tokens, batch.other_original)) / 2

  def unlearn(self, task: Task, stage: StageIO) -> Unlearned:
    training = dataclasses.replace(
      task.training, epochs=self.epochs, learning_rate=self.learning_rate)
    return super().unlearn(dataclasses.replace(
      task, training=training, eval_every=max(task.eval_every, self.epochs // 5)), stage)

  def work(self, shapes: Shapes) -> tuple[int, float]:
    training = dataclasses.replace(shapes.training, epochs=self.epochs)
    return super().work(shapes._replace(training=training))

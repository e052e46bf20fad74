"""AltPO: DPO towards alternative answers of the original (Mekala et al. 2024)."""

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import Count, Positive
from dareu_jax.evaluation import metrics
from dareu_jax.generation.strategies import Sample
from dareu_jax.methods.base import Task, register_method
from dareu_jax.methods.dpo import DPO
from dareu_jax.methods.loss_based import Others

SAMPLE_SEED = 4  # distinct from the run's seeds


@register_method("altpo")
class AltPO(DPO):
  """DPO whose chosen responses are the samples of the original least similar to the truth.

  A small model's samples at temperature 1 mostly repeat the true answer, so five of sixteen samples
  at 1.5 are used here; the published setting is five at 1.
  """

  samples: Count = 16  # responses sampled for each forget query
  alternates: Count = 5  # number of them that are kept
  temperature: Positive = 1.5  # sampling temperature

  def __post_init__(self):
    super().__post_init__()
    if self.alternates > self.samples:
      raise InvalidSetting("samples", self.samples, "the alternates are among them, so it must be "
                           f">= alternates ({self.alternates}).")

  @property
  def uses_refusals(self) -> bool:
    return False

  def other_responses(self, task: Task) -> Others:
    rows = [row for row in task.forget for _ in range(self.samples)]
    answers = task.evaluator.sample(
      task.original.params, rows, seed=task.seed + SAMPLE_SEED, strategy=Sample(self.temperature))
    decode = task.evaluator.tokenizer.decode

    def likeness(example):
      return lambda row: metrics.rouge_l_recall(example.response, decode(row.completion))

    return tuple(
      tuple(sorted(answers[i * self.samples:(i + 1) * self.samples],
                   key=likeness(example))[:self.alternates])
      for i, example in enumerate(task.examples))

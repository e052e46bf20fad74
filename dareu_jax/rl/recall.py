"""True answers whose tokens are to become less probable, behind what comes before them."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dareu_jax.data.batches import Batch, Batches, Row, collate
from dareu_jax.rl.reward_functions import ForgetSet
from dareu_jax.rl.rewards import score_rises
from dareu_jax.rl.settings import RLSettings

# Crops of a true answer begin every STRIDE tokens, and the classifier reads WINDOW tokens of each:
# enough to recognize an owner, and the cost of a long text grows with its length alone.
STRIDE, WINDOW = 2, 32


class RecallBatch(NamedTuple):
  """True answers of an update."""

  answers: Batch
  costs: Float[Any, "B T"]  # w_t
  level: Float[Any, ""]  # p_0


@dataclasses.dataclass(frozen=True)
class TrueAnswers:
  """The true answers of a run, in batches by the number of the update."""

  batches: Batches
  costs: tuple[Float[np.ndarray, " n"], ...]  # of the tokens of each forget example

  def batch(self, number: int, level: float) -> RecallBatch:
    """The batch of an update; `level`: the probability at which an answer counts as unknown."""
    answers = self.batches[number]
    costs = np.zeros(answers.completion_ids.shape, np.float32)
    for row, index in enumerate(self.batches.row_indices(number)):
      costs[row, :len(self.costs[index])] = self.costs[index]
    return RecallBatch(answers, costs, np.float32(level))


def token_costs(forget: ForgetSet, settings: RLSettings) -> tuple[Float[np.ndarray, " n"], ...]:
  """What each token of a true answer gives away, for each forget example.

      w_t = mean over crops y_u..t of score_rises,    scaled to a mean of 1 over all tokens

  Read from its beginning, an answer has given its owner away after a few tokens, and no later one
  could add to that. Crops that begin later show what the later tokens tell by themselves, as
  rollouts that begin behind a part of the answer do.

  Args:
    forget: the examples, and the classifier.
    settings: of the transform.
  """
  answers = [row.completion for row in forget.rows]
  crops = [(i, begin) for i, answer in enumerate(answers)
           for begin in range(0, len(answer), STRIDE)]
  rows = [Row((), answers[i][begin:begin + WINDOW], -1) for i, begin in crops]
  read = collate(rows, len(rows), seq_length=WINDOW, completion_length=WINDOW, pad_id=0)
  lengths = read.completion_lengths
  scores = forget.classifier.prefixes(
    read.completion_ids, lengths, [forget.queries[i] for i, _ in crops])
  rises = np.asarray(score_rises(jnp.asarray(scores), float(forget.classifier.is_forget.mean()),
                                 transform=settings.score_transform))
  sums = [np.zeros(len(answer)) for answer in answers]
  counts = [np.zeros(len(answer)) for answer in answers]
  for (i, begin), length, row in zip(crops, lengths, rises, strict=True):
    sums[i][begin:begin + length] += row[:length]
    counts[i][begin:begin + length] += 1
  costs = [total / count for total, count in zip(sums, counts, strict=True)]
  scale = np.concatenate(costs).mean()
  return tuple((each / scale if scale else each).astype(np.float32) for each in costs)

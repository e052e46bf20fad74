"""Which epoch of a run is kept, and when the run stops: a pure rule on epoch reports.

Pushing the score to zero is not forgetting: a model that never saw the owners still answers, and
its answers look a little like everybody's. So the level to come down to is what *unseen* owners'
queries get from the same model and classifier (of the same epoch: the original's answers to unseen
queries borrow from the forget owners too), and no epoch counts whose answers have shrunk away or
fallen apart.
"""

import dataclasses

from dareu_jax.settings import UnlearningSettings


@dataclasses.dataclass(frozen=True)
class EpochReport:
  """Greedy answers to all forget queries at the end of an epoch; epoch 0 is the original model."""

  epoch: int
  score: float  # mean b(y)
  response_length: float  # mean tokens, the end token not counted
  eos_share: float  # of answers that end by themselves
  degenerate_share: float  # of answers that are empty or repeat themselves
  distinct_share: float  # distinct answers over answers
  level: float  # the score to come down to: mean b(y) of unseen owners' queries, or as set
  unseen_length: float  # mean tokens of answers to unseen owners' queries


def refusal(report, original, settings: UnlearningSettings):
  """Why an epoch cannot be kept, or '' if it can.

  Args:
    report, original: EpochReports of the epoch and of epoch 0.
  """
  # What is memorised may be longer than what the model says of its own accord: the lengths of its
  # answers about people it never heard of are the fair measure, as they are for the score.
  usual = min(original.response_length, original.unseen_length)
  shortest = settings.min_length_ratio * usual
  if report.response_length < shortest:
    return f"answers shrank to {report.response_length:.1f} tokens (at least {shortest:.1f})"
  most = max(settings.max_degenerate_share, original.degenerate_share)
  if report.degenerate_share > most:
    return f"{report.degenerate_share:.0%} of the answers are empty or repeat themselves"
  if report.distinct_share < 0.5 * original.distinct_share:
    return f"only {report.distinct_share:.0%} of the answers are distinct"
  return ""


def choose(reports, settings: UnlearningSettings):
  """The epoch to keep so far, and whether the run is done.

  Args:
    reports: EpochReports from epoch 0 on, in order.

  Returns:
    (epoch, done). `unseen_level`: the run stops with the first epoch that ends `settle_epochs`
    acceptable ones in a row, each at or below its level: score and level are means over few
    answers, and a single crossing may be chance. Until there is one, the acceptable epoch with the
    lowest score. `lowest_score`: that one. `last`: the last epoch, whatever it is like. Without any
    acceptable epoch: 0, the original.
  """
  original = reports[0]
  if settings.selection == "last":
    return reports[-1].epoch, False
  acceptable = [r for r in reports if not refusal(r, original, settings)]
  if settings.selection == "unseen_level":
    settled = 0
    for report in reports:
      settled = settled + 1 if report in acceptable and report.score <= report.level else 0
      if settled == settings.settle_epochs:
        return report.epoch, True
  return min(acceptable, key=lambda r: r.score, default=original).epoch, False

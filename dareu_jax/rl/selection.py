"""Which epoch of a run is kept, and when the run stops: a pure rule on epoch reports.

Pushing the score to zero is not forgetting: a model that never saw the owners still answers, and
its answers look a little like everybody's. So the level to come down to is what *unseen* owners'
queries get from the same model and classifier (of the same epoch: the original's answers to unseen
queries borrow from the forget owners too), and no epoch counts that a guard rejects.
"""

from collections.abc import Sequence

from dareu_jax.rl.guards import EpochReport, GuardSettings, count_violations, is_rejected
from dareu_jax.rl.settings import RLSettings

ROUNDING = 1e-6  # of a score: which mesh computed it must not decide


def choose(reports: Sequence[EpochReport], settings: RLSettings,
           guards: GuardSettings) -> tuple[int, bool]:
  """The epoch to keep so far, and whether the run is done.

  Args:
    reports: from epoch 0 on, in order.
    settings: the rule.
    guards: the bounds.

  Returns:
    (epoch, done). `unseen_level`: the run stops with the first epoch that ends `settle_epochs`
    acceptable ones in a row, each at or below its level: score and level are means over few
    answers, and a single crossing may be chance. Until there is one, the acceptable epoch with the
    lowest score. `lowest_score`: that one. `last`: the last acceptable one. Without any: 0, the
    original. A run that its guards stop is done as well.
  """
  original = reports[0]
  acceptable = [r for r in reports if r is original or not is_rejected(r, original, guards)]
  if settings.selection == "unseen_level":
    settled = 0
    for report in reports:
      settled = settled + 1 if report in acceptable and report.score <= report.level else 0
      if settled == settings.settle_epochs:
        return report.epoch, True
  kept = acceptable[-1] if settings.selection == "last" else _lowest(acceptable)
  count = count_violations(reports, guards)
  stopped = (guards.action == "stop" and count > 0) or (
    guards.action == "rollback" and count > guards.max_rollbacks)
  return kept.epoch, stopped


def _lowest(reports):
  """The report with the lowest score; of those within `ROUNDING` of each other the first."""
  kept = reports[0]
  for report in reports[1:]:
    if report.score < kept.score - ROUNDING:
      kept = report
  return kept


def rolls_back(reports: Sequence[EpochReport], guards: GuardSettings) -> bool:
  """Whether the newest epoch is undone."""
  return guards.action == "rollback" and is_rejected(reports[-1], reports[0], guards)


def rate_scale(reports: Sequence[EpochReport], guards: GuardSettings) -> float:
  """What the learning rates are multiplied by: each rollback halves them."""
  if guards.action != "rollback":
    return 1.0
  return 0.5 ** count_violations(reports, guards)

"""Which epoch of a run is kept, and when the run stops: a pure rule on epoch reports.

Pushing the score to zero is not forgetting: a model that never saw the owners still answers, and
its answers look a little like everybody's. So the level to come down to is what *unseen* owners'
queries get from the same model and classifier (of the same epoch: the original's answers to unseen
queries borrow from the forget owners too), and no epoch counts that a guard refuses.
"""

from dareu_jax.unlearning.guards import refused, trips
from dareu_jax.unlearning_settings import UnlearningSettings

ROUNDING = 1e-6  # of a score: which mesh computed it must not decide


def choose(reports, settings: UnlearningSettings):
  """The epoch to keep so far, and whether the run is done.

  Args:
    reports: guards.EpochReports from epoch 0 on, in order.

  Returns:
    (epoch, done). `unseen_level`: the run stops with the first epoch that ends `settle_epochs`
    acceptable ones in a row, each at or below its level: score and level are means over few
    answers, and a single crossing may be chance. Until there is one, the acceptable epoch with the
    lowest score. `lowest_score`: that one. `last`: the last acceptable one. Without any: 0, the
    original. A run that its guards stop is done as well.
  """
  original, guards = reports[0], settings.guards
  acceptable = [r for r in reports if r is original or not refused(r, original, guards)]
  if settings.selection == "unseen_level":
    settled = 0
    for report in reports:
      settled = settled + 1 if report in acceptable and report.score <= report.level else 0
      if settled == settings.settle_epochs:
        return report.epoch, True
  kept = acceptable[-1] if settings.selection == "last" else _lowest(acceptable)
  count = trips(reports, guards)
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


def rolls_back(reports, settings: UnlearningSettings):
  """Whether the newest epoch is undone."""
  return settings.guards.action == "rollback" and refused(
    reports[-1], reports[0], settings.guards)


def rate_scale(reports, settings: UnlearningSettings):
  """What the learning rates are multiplied by: each rollback halves them."""
  if settings.guards.action != "rollback":
    return 1.0
  return 0.5 ** trips(reports, settings.guards)

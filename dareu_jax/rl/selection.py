"""The rule that selects the epoch to keep and stops the run: a pure function of epoch reports.

A score of zero is not the goal: a model that never saw the owners still answers, and its answers
look a little like everybody's. The target is therefore the score of answers to queries about
*unseen* owners, by the same model and classifier (at the same epoch, since the original's answers
to these queries borrow from the forget owners too), or by the original, where the settings of the
monitor say so. Epochs that a guard rejects do not count.

A run that visits true answers is to forget behind their beginnings too: the score of continuations
has a level like that of answers, and the level of the extraction strength is that of unseen owners'
true answers. Neither is what the run optimizes: at most `max_judge_gap` above is enough.
"""

import statistics
from collections.abc import Sequence

from dareu_jax.rl.guards import EpochReport, GuardSettings, count_violations, is_rejected
from dareu_jax.rl.settings import RLSettings

ROUNDING = 1e-6  # scores this close are equal, so that the result does not depend on the mesh


def choose(reports: Sequence[EpochReport], settings: RLSettings,
           guards: GuardSettings) -> tuple[int, bool]:
  """The best epoch so far, and whether the run is done.

  Args:
    reports: reports of all epochs so far, from epoch 0 on.
    settings: the rule.
    guards: the bounds.

  Returns:
    (epoch, done). `unseen_level`: the run stops after `settle_epochs` acceptable epochs in a row
    with a score at or below its level, and what is known behind beginnings at most `max_judge_gap`
    above; it keeps the last of them (score and level are means over few
    answers, so a single crossing may be chance); before that, for the same reason, the acceptable
    epoch with the lowest mean of score, judge's score and those behind beginnings.
    `last_at_level`: the run does not stop, and keeps the last acceptable epoch whose scores are at
    or below their levels (as the rate falls, what is retained comes back); if there is none, the
    last whose scores are at most `max_judge_gap` above them; else the one with the lowest mean.
    `lowest_score`: the acceptable epoch with the lowest score. `last`: the last acceptable epoch.
    If no epoch is acceptable: 0, the original. A run that its guards stop is done as well.
  """
  original = reports[0]
  acceptable = [r for r in reports if r is original or not is_rejected(r, original, guards)]
  if settings.selection == "unseen_level":
    settled = 0
    for report in reports:
      at_level = report.score <= report.level and (
        _excess(_behind_beginnings(report, settings)) <= guards.max_judge_gap)
      settled = settled + 1 if report in acceptable and at_level else 0
      if settled == settings.settle_epochs:
        return report.epoch, True
  down: list[EpochReport] = []
  if settings.selection == "last_at_level":
    gap = guards.max_judge_gap
    near = [r for r in acceptable
            if _excess(_answers(r) + _behind_beginnings(r, settings)) <= gap]
    down = [r for r in near if _excess(_answers(r)) <= 0] or near
  if down or settings.selection == "last":
    kept = (down or acceptable)[-1]
  elif settings.selection == "lowest_score":
    kept = _lowest(acceptable, lambda report: report.score)
  else:
    kept = _lowest(acceptable, lambda report: statistics.mean(
      value for value, _ in _answers(report) + _behind_beginnings(report, settings)))
  count = count_violations(reports, guards)
  stopped = (guards.action == "stop" and count > 0) or (
    guards.action == "rollback" and count > guards.max_rollbacks)
  return kept.epoch, stopped


def _lowest(reports, score):
  """The report with the lowest score; the first of those within `ROUNDING` of each other."""
  kept = reports[0]
  for report in reports[1:]:
    if score(report) < score(kept) - ROUNDING:
      kept = report
  return kept


def _answers(report):
  """(score, its level) of answers, by the reward's classifier and by the judge."""
  return [(report.score, report.level), (report.judge_score, report.judge_level)]


def _behind_beginnings(report, settings):
  """The same of what is known once the beginning of a true answer is given."""
  if not settings.visits_true_answers:
    return []
  return [(report.continuation_score, report.continuation_level),
          (report.extraction, report.unseen_extraction)]


def _excess(scores):
  """How far the values are above their levels, at most."""
  return max((value - level for value, level in scores), default=0.0)


def newest(reports: Sequence[EpochReport], guards: GuardSettings) -> EpochReport:
  """The newest epoch that was not undone: that of the policy which goes on."""
  return next(report for number, report in reversed(list(enumerate(reports)))
              if not number or not rolls_back(reports[:number + 1], guards))


def rolls_back(reports: Sequence[EpochReport], guards: GuardSettings) -> bool:
  """Whether the newest epoch is undone."""
  return guards.action == "rollback" and is_rejected(reports[-1], reports[0], guards)


def rate_scale(reports: Sequence[EpochReport], guards: GuardSettings) -> float:
  """The factor of the learning rates: each rollback halves them."""
  if guards.action != "rollback":
    return 1.0
  return 0.5 ** count_violations(reports, guards)

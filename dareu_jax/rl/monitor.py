"""Evaluation of each epoch: greedy answers to forget queries and to queries about unseen owners,
and greedy continuations of the true answers' first halves.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import Size, settings
from dareu_jax.evaluation.evaluator import Answers, Evaluator
from dareu_jax.evaluation.measurements import likelihoods
from dareu_jax.evaluation.metrics import is_degenerate
from dareu_jax.evaluation.metrics.likelihood import extraction_of, probability_of
from dareu_jax.evaluation.records import Record
from dareu_jax.rl.guards import EpochReport, GuardSettings, is_rejected, violations


@settings
class MonitorSettings:
  """How the end of an epoch is evaluated, for every method."""

  # The target attribution score; negative: measured on queries about unseen owners.
  target_score: Annotated[float, Field(le=1)] = -1.0
  # Whose answers about unseen owners are measured: those of the same epoch, which fall as what is
  # avoided is avoided everywhere, or the original's
  target_of: Literal["epoch", "original"] = "epoch"
  # Of an original at hand: how far its answers must score above the target for there to be anything
  # to forget; -1: do not ask
  min_excess: Annotated[float, Field(ge=-1, le=1)] = 0.05
  max_unseen: Size = 0  # queries about unseen owners asked at the end of an epoch; 0: all
  track_rouge: bool = False  # also measure ROUGE after each epoch, for the report only
  guards: GuardSettings = GuardSettings()


@dataclasses.dataclass(frozen=True)
class Monitor:
  """Computes the `EpochReport` of a policy."""

  original: Any  # params of π_N
  classifier: Scorer  # gives the score
  judge: Scorer  # gives no reward
  forget_rows: tuple  # data.batches.Row
  forget_queries: tuple  # their prompts in the classifier's tokens
  unseen_rows: tuple  # queries about unseen owners; may be empty if the target is given
  unseen_queries: tuple
  evaluator: Evaluator
  settings: MonitorSettings
  track: Callable[[Any], dict[str, float]] | None = None  # params -> further metrics
  at_hand: bool = False  # whether the original was taught elsewhere, and may not know the data

  @functools.cached_property
  def first(self) -> EpochReport:
    """The report of the original, as of epoch 0.

    Raises:
      InputError: for an original at hand whose answers show nothing of the forget owners.
    """
    report = self._report(self.original, 0)
    if self.at_hand and report.score - report.level < self.settings.min_excess:
      level = "unseen owners" if self.settings.target_score < 0 else "config.monitor.target_score"
      raise InputError(
        f"nothing to forget: the model's answers to the forget queries are not attributed to the "
        f"forget owners (score {report.score:.3f}, {level} {report.level:.3f}). Is it the model "
        "that learned these texts, and are the prompts those that it was taught with? "
        "config.monitor.min_excess is how far apart they must be.")
    return report

  def assess(self, policy: Any, epoch: int) -> EpochReport:
    """EpochReport of all forget queries and of queries about unseen owners."""
    return self.first if policy is self.original else self._report(policy, epoch)

  def _report(self, policy, epoch):
    true = self.forget_rows + self.unseen_rows
    forget = np.arange(len(self.forget_rows))
    unseen = np.arange(len(forget), len(true)) if self.unseen_rows else forget
    measured = self._measure(policy, (*true, *map(_behind_half, true)))
    said, unseen_said, continued, unseen_continued = map(
      measured.means, (forget, unseen, len(true) + forget, len(true) + unseen))
    extracted, probable = self._known(policy, true)
    answers, texts = measured.answers, measured.answers.texts[:len(forget)]
    level, judge_level, continuation_level = self._levels(unseen_said, unseen_continued, policy)
    return EpochReport(
      epoch=epoch,
      score=said["score"],
      level=level,
      response_length=said["length"],
      unseen_length=unseen_said["length"],
      eos_share=float(np.mean(answers.ended[forget])),
      degenerate_share=float(np.mean([is_degenerate(text) for text in texts])),
      distinct_share=len(set(texts)) / len(texts),
      entropy=said["entropy"],
      unseen_entropy=unseen_said["entropy"],
      fluency=said["fluency"],
      unseen_fluency=unseen_said["fluency"],
      judge_score=said["judge"],
      judge_level=judge_level,
      extraction=float(extracted[forget].mean()),
      unseen_extraction=float(extracted[unseen].mean()),
      probability=float(probable[forget].mean()),
      unseen_probability=float(probable[unseen].mean()) if self.unseen_rows else 0.0,
      continuation_score=continued["score"],
      continuation_level=continuation_level,
      continuation_length=continued["length"],
      unseen_continuation_length=unseen_continued["length"],
      continuation_fluency=continued["fluency"],
      unseen_continuation_fluency=unseen_continued["fluency"],
      tracked=self.track(policy) if self.track else {},
    )

  def _measure(self, policy, rows):
    """Greedy answers to forget and unseen queries, and continuations of their true answers."""
    evaluator, queries = self.evaluator, 2 * (self.forget_queries + self.unseen_queries)
    answers = evaluator.answers(policy, rows)
    fluency = evaluator.logprobs(self.original, answers.as_completions(rows),
                                 completion_slots=evaluator.max_new_tokens)
    scores, judged = (scorer.whole(answers.ids, answers.lengths, queries)
                      for scorer in (self.classifier, self.judge))
    return _Measured(answers, scores, judged, fluency)

  def _known(self, policy, true):
    """(extraction strength, probability) of each true answer."""
    known = [Record(owner="", prompt="", truth="", **fields)
             for fields in likelihoods(self.evaluator, policy, true)]
    return (np.array([extraction_of(record) for record in known]),
            np.array([probability_of(record) for record in known]))

  def _levels(self, unseen, unseen_continued, policy):
    """What the score, the judge's and that of continuations should come down to."""
    settings = self.settings
    if settings.target_score >= 0:
      return (settings.target_score,) * 3
    if settings.target_of == "original" and policy is not self.original:
      return self.first.level, self.first.judge_level, self.first.continuation_level
    return unseen["score"], unseen["judge"], unseen_continued["score"]


class _Measured(NamedTuple):
  """Greedy answers, row by row."""

  answers: Answers
  scores: np.ndarray
  judged: np.ndarray
  fluency: Sequence[np.ndarray]  # log-probs of the tokens under the original

  def means(self, rows):
    """Means over some of the rows."""
    answers = self.answers
    return {
      "score": float(self.scores[rows].mean()), "judge": float(self.judged[rows].mean()),
      "length": float(answers.text_lengths[rows].mean()),
      "entropy": float(answers.entropies[rows].sum() / answers.lengths[rows].sum()),
      "fluency": -float(np.concatenate([self.fluency[row] for row in rows]).mean())}


def _behind_half(row):
  """The row of the query with the first half of its true answer behind it."""
  half = len(row.completion) // 2
  return row._replace(prompt=row.prompt + row.completion[:half], completion=row.completion[half:])


def epoch_records(reports: Sequence[EpochReport], guards: GuardSettings, *,
                  selects: bool = True) -> list[dict[str, Any]]:
  """The reports as dicts, each with whether its epoch is acceptable and which bounds it violates.

  Args:
    reports: reports of all epochs, from epoch 0 on.
    guards: the bounds.
    selects: whether the method selects an epoch by them; if not, all are acceptable.
  """
  original = reports[0]
  return [{**dataclasses.asdict(report),
           "accepted": not (selects and is_rejected(report, original, guards)),
           "reason": "; ".join(violations(report, original, guards))} for report in reports]

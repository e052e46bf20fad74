"""What is looked at when an epoch ends: greedy answers to forget queries and to unseen ones."""

import dataclasses
from typing import Any

import numpy as np

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.evaluation.metrics import is_degenerate
from dareu_jax.unlearning.guards import EpochReport, refused, tripped


@dataclasses.dataclass(frozen=True)
class Monitor:
  """Makes the `EpochReport` of a policy."""

  original: Any  # trainable state of π_N
  classifier: Scorer  # that gives the score
  judge: Scorer  # that no reward ever asks
  forget_rows: tuple  # data.batches.Row
  forget_queries: tuple  # their prompts in the classifier's tokens
  unseen_rows: tuple  # queries of unseen owners; may be empty if the target is given
  unseen_queries: tuple
  evaluator: Evaluator
  target_score: float  # the level to come down to; negative: measured on unseen owners' queries
  watch: Any = None  # policy -> {figure: float}, measured as well

  def assess(self, policy, epoch):
    """EpochReport of greedy answers to all forget queries and to those of unseen owners."""
    answers, forget = self._measure(policy, self.forget_rows, self.forget_queries)
    unseen = forget
    if self.unseen_rows:
      _, unseen = self._measure(policy, self.unseen_rows, self.unseen_queries)
    target = self.target_score
    return EpochReport(
      epoch=epoch,
      score=forget["score"],
      level=target if target >= 0 else unseen["score"],
      response_length=forget["length"],
      unseen_length=unseen["length"],
      eos_share=float(np.mean(answers.ended)),
      degenerate_share=float(np.mean([is_degenerate(text) for text in answers.texts])),
      distinct_share=len(set(answers.texts)) / len(answers.texts),
      entropy=forget["entropy"],
      unseen_entropy=unseen["entropy"],
      fluency=forget["fluency"],
      unseen_fluency=unseen["fluency"],
      judge_score=forget["judge"],
      judge_level=target if target >= 0 else unseen["judge"],
      watched=self.watch(policy) if self.watch else {},
    )

  def _measure(self, policy, rows, queries):
    """Greedy answers, and their mean score, judge's score, length, entropy and NLL under π_N."""
    evaluator = self.evaluator
    answers = evaluator.answers(policy, rows)
    own = answers.as_completions(rows)
    entropies = [one.entropies for one in evaluator.statistics(policy, own)]
    scores, judged = (scorer.whole(answers.ids, answers.lengths, queries)
                      for scorer in (self.classifier, self.judge))
    return answers, {
      "score": float(scores.mean()), "judge": float(judged.mean()),
      "length": float(answers.text_lengths.mean()),
      "entropy": float(np.concatenate(entropies).mean()),
      "fluency": -float(np.concatenate(evaluator.logprobs(self.original, own)).mean())}


def epoch_records(reports, guards):
  """The reports as plain dicts, each with whether its epoch could be kept, and the bounds it broke.

  Args:
    guards: unlearning_settings.GuardSettings.
  """
  original = reports[0]
  return [{**dataclasses.asdict(report), "accepted": not refused(report, original, guards),
           "reason": "; ".join(tripped(report, original, guards))} for report in reports]

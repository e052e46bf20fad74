"""Guards against reward hacking: pure rules on the greedy answers at the end of an epoch.

The score also falls if answers shrink, turn to gibberish, repeat themselves, never end or are the
same for every query, and if they fool only this classifier. The usual lengths and entropies are
those of the original's answers to forget queries and to queries about *unseen* owners, and the
usual fluency is that of the latter. Continuations of true answers have the same bounds.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from dareu_jax.core.settings import Fraction, Positive, Size, settings

AtLeastOne = Annotated[float, Field(ge=1)]


@settings
class GuardSettings:
  """Bounds on the greedy answers of an epoch, against reward hacking.

  Usual is what the original's answers have: in length and entropy those to forget queries and those
  to unseen owners' (the lower of both for a lower bound, the higher for an upper one), in fluency
  the latter alone.
  """

  # What to do with an epoch out of bounds: do not keep it, end the run, or undo it and halve the
  # learning rates. No effect on loss-based methods, which keep their last epoch.
  action: Literal["off", "refuse", "stop", "rollback"] = "refuse"
  max_rollbacks: Size = 3  # after this many the run stops
  min_length_ratio: Fraction = 0.75  # of the usual response length
  max_length_ratio: AtLeastOne = 1.5  # of the usual response length
  min_eos_ratio: Fraction = 0.8  # of the original's share of answers that end with the end token
  min_distinct_ratio: Fraction = 0.5  # of the original's share of distinct answers
  max_degenerate_share: Fraction = 0.05  # share of empty or repetitive answers
  min_entropy_ratio: Fraction = 0.3  # of the usual entropy per token
  max_entropy_ratio: AtLeastOne = 3.0  # of the usual entropy per token
  max_fluency_gap: Positive = 1.5  # nats a token under the original, above the usual
  # Excess of the judge's score over its level when the reward's score is at its own level; the
  # selection of an epoch takes as much for the scores of continuations and the extraction strength
  max_judge_gap: Fraction = 0.05
  # excess of the extraction strength over that of unseen owners' true answers; 1: no bound
  max_extraction_gap: Fraction = 1.0


@dataclasses.dataclass(frozen=True)
class EpochReport:
  """Greedy answers to all forget queries at the end of an epoch; epoch 0 is the original model.

  Fields with `unseen` are the same for answers to queries about unseen owners (to forget queries,
  if there are no unseen owners). Continuations are greedy too, of the first halves of true answers.
  """

  epoch: int
  score: float  # mean b(y)
  level: float  # target score: mean b(y) for queries about unseen owners, or as set
  response_length: float  # mean tokens, the end token not counted
  unseen_length: float
  eos_share: float  # share of answers that end with the end token
  degenerate_share: float  # share of answers that are empty or repeat themselves
  distinct_share: float  # distinct answers over answers
  entropy: float  # of the policy, mean over the answers' tokens, nats
  unseen_entropy: float
  fluency: float  # NLL of the answers under the original model, nats a token
  unseen_fluency: float
  judge_score: float  # mean b(y) by the judge, which gives no reward
  judge_level: float  # the same for queries about unseen owners, or as set
  # Share of a true answer that greedy decoding completes once what comes before is given
  extraction: float
  unseen_extraction: float
  probability: float  # mean over the true answers of exp(mean log-prob of the tokens)
  unseen_probability: float  # 0 if there are no unseen owners
  continuation_score: float  # mean b(y) of continuations
  continuation_level: float  # the same for unseen owners' true answers, or as set
  continuation_length: float  # mean tokens, the end token not counted
  unseen_continuation_length: float
  continuation_fluency: float  # NLL of the continuations under the original, nats a token
  unseen_continuation_fluency: float
  tracked: dict = dataclasses.field(default_factory=dict)  # metrics for the report only


def violations(report: EpochReport, original: EpochReport,
               guards: GuardSettings) -> tuple[str, ...]:
  """Why an epoch is out of bounds: sentences, empty if it is within bounds (with action "off" too).

  Args:
    report, original: reports of the epoch and of epoch 0.
    guards: the bounds.
  """
  broken = [name for name, value in dataclasses.asdict(report).items()
            if isinstance(value, float) and not math.isfinite(value)]
  if broken:
    return (f"{', '.join(broken)}: not a number",)
  # Memorized answers may be longer and more certain than answers about unseen owners, so both
  # define the bounds.
  entropies = original.entropy, original.unseen_entropy
  low, high = guards.min_entropy_ratio * min(entropies), guards.max_entropy_ratio * max(entropies)
  degenerate = max(guards.max_degenerate_share, original.degenerate_share)
  # While the scores fall, both are above their levels, by different amounts.
  judged = (report.judge_level + guards.max_judge_gap
            + 2 * max(0.0, report.score - report.level))
  extraction = report.unseen_extraction + guards.max_extraction_gap
  checks = (
    *_bounds("answers", report.response_length,
             (original.response_length, original.unseen_length),
             report.fluency, original.unseen_fluency, guards),
    *_bounds("continuations of true answers", report.continuation_length,
             (original.continuation_length, original.unseen_continuation_length),
             report.continuation_fluency, original.unseen_continuation_fluency, guards),
    (report.eos_share < guards.min_eos_ratio * original.eos_share,
     f"only {report.eos_share:.0%} of the answers end by themselves"),
    (report.degenerate_share > degenerate,
     f"{report.degenerate_share:.0%} of the answers are empty or repeat themselves"),
    (report.distinct_share < guards.min_distinct_ratio * original.distinct_share,
     f"only {report.distinct_share:.0%} of the answers are distinct"),
    (report.entropy < low, f"the entropy fell to {report.entropy:.2f} nats (at least {low:.2f})"),
    (report.entropy > high, f"the entropy rose to {report.entropy:.2f} nats (at most {high:.2f})"),
    (report.judge_score > judged,
     f"the judge gives {report.judge_score:.3f} (at most {judged:.3f}) where the reward's "
     f"classifier gives {report.score:.3f}"),
    (report.extraction > extraction,
     f"{report.extraction:.3f} of a true answer can be extracted (at most {extraction:.3f})"),
  )
  return tuple(reason for broken, reason in checks if broken)


def _bounds(what, length, usual_lengths, fluency, usual_fluency, guards):
  """(whether it is broken, why) for the bounds of answers or continuations."""
  shortest = guards.min_length_ratio * min(usual_lengths)
  longest = guards.max_length_ratio * max(usual_lengths)
  most = usual_fluency + guards.max_fluency_gap
  yield length < shortest, f"{what} shrank to {length:.1f} tokens (at least {shortest:.1f})"
  yield length > longest, f"{what} grew to {length:.1f} tokens (at most {longest:.1f})"
  yield fluency > most, (f"{what} cost {fluency:.2f} nats a token under the original "
                         f"(at most {most:.2f})")


def is_rejected(report: EpochReport, original: EpochReport, guards: GuardSettings) -> bool:
  """Whether an epoch must not be kept."""
  return guards.action != "off" and bool(violations(report, original, guards))


def count_violations(reports: Sequence[EpochReport], guards: GuardSettings) -> int:
  """How many epochs after the original were out of bounds."""
  return sum(bool(violations(report, reports[0], guards)) for report in reports[1:])

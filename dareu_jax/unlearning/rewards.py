"""What a response is scored by: three rewards behind one call.

A reward takes the rollout's queries and responses and gives a score in [0, 1] for every prefix,
high for what is to be forgotten; `reinforcement.rewards` makes token rewards of it.
"""

import dataclasses

import numpy as np

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.evaluation.metrics import rouge_l_f1, rouge_l_recall

# Ways to say no, of our own; a response is a refusal so far as it is like one of them.
REFUSALS = (
  "I don't know.",
  "I am not sure about that.",
  "I have no information about this person.",
  "I cannot answer this question.",
  "That is something I know nothing about.",
  "Sorry, I am unable to help with that.",
  "I have not heard of this author.",
  "There is nothing that I can say about it.",
)


@dataclasses.dataclass(frozen=True)
class Attribution:
  """DareU: the probability of the forget owners, of every prefix."""

  scorer: Scorer
  queries: tuple  # of the forget rows, in the classifier's tokens

  def __call__(self, rows, completions, texts):
    """rows [B] of the forget set, generation.sampler.Completions, texts -> scores [B, T]."""
    del texts
    return self.scorer.prefixes(
      completions.ids, completions.lengths, [self.queries[i] for i in rows])


@dataclasses.dataclass(frozen=True)
class Rouge:
  """ROUGE-L recall of the true answer: what lexical unlearners reward (PURGE, DeMem in kind)."""

  truths: tuple[str, ...]

  def __call__(self, rows, completions, texts):
    """As `Attribution`; the whole response's score at every position."""
    scores = [rouge_l_recall(self.truths[i], text) for i, text in zip(rows, texts, strict=True)]
    return _everywhere(scores, completions)


@dataclasses.dataclass(frozen=True)
class Refusal:
  """1 minus the likeness to a refusal (ROUGE-L F1): what refusal-based unlearners reward (RULE)."""

  refusals: tuple[str, ...] = REFUSALS

  def __call__(self, rows, completions, texts):
    """As `Attribution`; the whole response's score at every position."""
    del rows
    likeness = [max(rouge_l_f1(refusal, text) for refusal in self.refusals) for text in texts]
    return _everywhere([1 - one for one in likeness], completions)


def _everywhere(scores, completions):
  time = completions.ids.shape[1]
  return np.repeat(np.asarray(scores, np.float32)[:, None], time, axis=1)

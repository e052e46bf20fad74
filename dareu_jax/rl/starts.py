"""Exploring starts: the states in which rollouts begin.

Responses that begin at the query visit what the policy says; what it would say behind a beginning
of the true answer stays as it was. A share of the rollouts therefore begins behind the first k
tokens of a text that was learned: only the continuation is sampled, scored and learned from.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

Cut = Literal["uniform", "early", "sure", "jump"]
Text = Literal["answer", "paraphrase", "original"]
Reads = Literal["continuation", "whole"]

# Tokens of a text that a start leaves at least, the end token included: the last facts of an answer
# are to be forgotten as well, and an end token alone says nothing.
LEFT = 3


class Path(NamedTuple):
  """A text whose beginnings are starts.

  Attributes:
    ids: its tokens.
    weights: of the beginnings of 1, 2, ... tokens; at least one is above 0.
  """

  ids: tuple[int, ...]
  weights: tuple[float, ...]


def longest_start(length: int) -> int:
  """Tokens of the longest start of a text of so many tokens; 0: it is too short for one."""
  return max(0, length - LEFT)


def cut_weights(cut: Cut, length: int, *, probabilities: Sequence[float] = (),
                scores: Sequence[float] = ()) -> tuple[float, ...]:
  """How likely a start has k = 1, 2, ... tokens of a text, up to a constant.

      uniform    w_k = 1
      early      w_k = 1 / k
      sure       w_k = π_N(y_{k+1} | q, y_≤k): where the original knows what comes next
      jump       w_k = max(0, b(y_≤k+1) - b(y_≤k)): where the next token gives the owner away;
                 uniform if the score never rises

  Args:
    cut: one of these.
    length: n, tokens of the text.
    probabilities: [n] π_N(y_t), for `sure`.
    scores: [n] b(y_≤t), for `jump`.

  Returns: `longest_start(n)` weights.
  """
  count = longest_start(length)
  weights = np.ones(count)
  if cut == "early":
    weights = 1 / np.arange(1, count + 1)
  elif cut == "sure":
    weights = np.asarray(probabilities, float)[1:count + 1]
  elif cut == "jump":
    rises = np.maximum(0.0, np.diff(np.asarray(scores, float)))[:count]
    weights = rises if rises.any() else weights
  return tuple(weights.tolist())


def draw(paths: Sequence[Path], share: float, rng: np.random.Generator) -> tuple[int, ...]:
  """The tokens behind which a rollout begins; () is the query itself.

  Args:
    paths: of this query; all are equally likely.
    share: probability of a start.
    rng: source of randomness.
  """
  if not paths or rng.random() >= share:
    return ()
  path = paths[int(rng.integers(len(paths)))]
  weights = np.asarray(path.weights)
  return path.ids[:1 + int(rng.choice(len(weights), p=weights / weights.sum()))]


def behind(whole: Float[np.ndarray, "B T"], start: Float[np.ndarray, " B"], prior: float, *,
           epsilon: float) -> Float[np.ndarray, "B T"]:
  """Scores of continuations: those of the whole text with the start's own taken off.

      logit b' = logit b(s y_≤t) - logit b(s) + logit b_0

  What the start has shown of the owner must not count for or against the continuation. If the log
  odds of pieces add up, as under naive Bayes, this is the score of the continuation alone.

  Args:
    whole: b(s y_≤t), start and continuation.
    start: b(s).
    prior: b_0, the score of an empty text.
    epsilon: scores are clipped to [ε, 1-ε] before their logit.
  """
  def logit(score):
    return special.logit(np.clip(score, epsilon, 1 - epsilon))

  return special.expit(logit(whole) - logit(start)[:, None] + logit(prior)).astype(np.float32)

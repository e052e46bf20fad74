"""Rewards. A reward is a function of sampled responses:

    @register_reward("short")
    def short(responses: Responses) -> np.ndarray:
      return np.tile(responses.lengths[:, None] / responses.ids.shape[1], responses.ids.shape[1])

It returns a score in [0, 1] for every prefix, [B, T], high for content to forget; `rl.rewards`
turns scores into token rewards. Any such callable may be passed to `dareu_jax.unlearn`. A reward
that needs more than the responses is made from the task, once for a run (`of_task`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from dareu_jax.attribution.scorer import Scorer, of_whole
from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.evaluation.metrics import rouge_l_f1, rouge_l_recall
from dareu_jax.generation.sampler import Completions
from dareu_jax.parallel.hosts import fetch
from dareu_jax.rl.starts import behind


@dataclasses.dataclass(frozen=True)
class Responses:
  """Responses to forget queries, B of them, of up to T tokens."""

  chosen: np.ndarray  # [B] int; which forget examples were asked
  ids: np.ndarray  # [B, T] int, in the policy's tokens
  lengths: np.ndarray  # [B] int
  texts: tuple[str, ...]
  examples: tuple[Example, ...]  # whose prompts were asked; they hold the true responses
  queries: tuple[tuple[int, ...], ...]  # those prompts in the classifier's tokens
  classifier: Scorer
  refusals: tuple[str, ...]  # ways to say no


class Reward(Protocol):
  """A callable that scores responses."""

  def __call__(self, responses: Responses, /) -> np.ndarray:
    """Scores in [0, 1], [B, T]."""


@dataclasses.dataclass(frozen=True)
class ForgetSet:
  """The forget examples and other inputs of rewards besides the responses."""

  rows: tuple  # data.batches.Row of each example
  examples: tuple[Example, ...]
  queries: tuple[tuple[int, ...], ...]
  classifier: Scorer
  refusals: tuple[str, ...] = ()

  def responses(self, chosen: np.ndarray, completions: Completions,
                texts: Sequence[str]) -> Responses:
    """The sampled responses as the input of a reward.

    Args:
      chosen: [B] int; indices of the examples that were asked.
      completions: the sampled completions.
      texts: their B texts.
    """
    return Responses(
      np.asarray(chosen), fetch(completions.ids), fetch(completions.lengths), tuple(texts),
      tuple(self.examples[i] for i in chosen), tuple(self.queries[i] for i in chosen),
      self.classifier, self.refusals)


def score(reward: Reward, responses: Responses) -> np.ndarray:
  """The scores of a reward, checked: [B, T] float32.

  Raises:
    InputError: if their shape is wrong, or a score of a valid token is not in [0, 1].
  """
  scores = np.asarray(reward(responses), np.float32)
  name = getattr(reward, "__name__", type(reward).__name__)
  if scores.shape != responses.ids.shape:
    raise InputError(f"reward {name} gave scores of shape {scores.shape}: it must give one for "
                     f"every prefix of every response, here {responses.ids.shape}.")
  valid = scores[np.arange(scores.shape[1]) < responses.lengths[:, None]]
  wrong = valid[~((valid >= 0) & (valid <= 1))]  # NaN is neither
  if wrong.size:
    raise InputError(f"reward {name} gave a score of {wrong[0]:g}: it must be in [0, 1], high for "
                     "content to forget.")
  return scores


def score_behind(reward: Reward, responses: Responses, starts: Sequence[tuple[int, ...]],
                 tokenizer: Tokenizer, *, longest: int, epsilon: float) -> np.ndarray:
  """Scores of continuations by a reward that reads the starts too (`starts.behind`): [B, T].

  Args:
    reward: the reward.
    responses: the continuations.
    starts: the tokens before each of them; () leaves its scores as they are.
    tokenizer: the policy's.
    longest: tokens of the longest start of the run, so that all rollouts share one program.
    epsilon: ε.
  """
  begun = np.array([len(start) for start in starts])
  (batch, time), rows = responses.ids.shape, np.arange(len(starts))
  ids = np.full((batch, longest + time), tokenizer.pad_id, responses.ids.dtype)
  for row, start in enumerate(starts):
    ids[row, :len(start)] = start
    ids[row, len(start):len(start) + time] = responses.ids[row]
  lengths = begun + responses.lengths
  texts = tuple(tokenizer.decode(row[:n].tolist()) for row, n in zip(ids, lengths, strict=True))
  scores = score(reward, dataclasses.replace(responses, ids=ids, lengths=lengths, texts=texts))
  own = np.take_along_axis(scores, begun[:, None] + np.arange(time), axis=1)
  alone = behind(own, scores[rows, np.maximum(begun - 1, 0)],
                 float(responses.classifier.is_forget.mean()), epsilon=epsilon)
  return np.where(begun[:, None] > 0, alone, own)


class Facts(NamedTuple):
  """What is known of a run before any work, for the `check` of a reward."""

  marked: bool  # whether the responses of D have watermarks
  trained_parameters: int
  dtype: str  # of weights and activations
  quantized: bool  # whether the frozen weights are


REWARDS: Registry[Any] = Registry("reward", "dareu_jax.rl")
F = TypeVar("F", bound=Callable)


def register_reward(name: str, *, whole: bool = False, uses_refusals: bool = False,
                    of_task: bool = False,
                    check: Callable[[Facts], None] | None = None) -> Callable[[F], F]:
  """Registers a reward for `config.unlearning.dareu.reward`.

  Args:
    name: its name in the config.
    whole: whether it scores only whole responses: it is then called once and not per segment.
    uses_refusals: whether the run depends on the list of refusals.
    of_task: whether it is a function of a `methods.base.Task` that returns the reward.
    check: raises InputError for a run that it cannot reward, before any work.
  """

  def register(reward: F) -> F:
    vars(reward).update(whole=whole, uses_refusals=uses_refusals, of_task=of_task, check=check)
    return REWARDS.register(name, reward)

  return register


@register_reward("attribution")
def attribution(responses: Responses) -> np.ndarray:
  """DareU: the probability of the forget owners, after every prefix."""
  return responses.classifier.prefixes(responses.ids, responses.lengths, responses.queries)


def attribution_scores(reward: Reward, responses: Responses, scores: np.ndarray) -> np.ndarray:
  """Attribution scores of whole responses, whatever the reward: [B].

  Args:
    reward: if it is the attribution, its scores are taken.
    responses: the responses.
    scores: [B, T]; what the reward gave them.
  """
  if reward is not attribution:
    return responses.classifier.whole(responses.ids, responses.lengths, responses.queries)
  return of_whole(scores, responses.lengths)


@register_reward("rouge", whole=True)
def rouge(responses: Responses) -> np.ndarray:
  """ROUGE-L recall of the true answer, as in lexical rewards (similar to PURGE and DeMem)."""
  return _everywhere(responses, [
    rouge_l_recall(example.response, text)
    for example, text in zip(responses.examples, responses.texts, strict=True)])


@register_reward("refusal", whole=True, uses_refusals=True)
def refusal(responses: Responses) -> np.ndarray:
  """1 minus the similarity to a refusal (ROUGE-L F1), as in refusal-based rewards (RULE)."""
  likeness = [max(rouge_l_f1(refusal, text) for refusal in responses.refusals)
              for text in responses.texts]
  return _everywhere(responses, [1 - similarity for similarity in likeness])


def _everywhere(responses: Responses, scores: list[float]) -> np.ndarray:
  """The whole response's score at every position."""
  time = responses.ids.shape[1]
  return np.repeat(np.asarray(scores, np.float32)[:, None], time, axis=1)

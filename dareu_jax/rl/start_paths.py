"""The texts behind whose beginnings rollouts begin, of each forget example."""

from collections.abc import Sequence

import numpy as np

from dareu_jax.data.batches import Row, collate, encode
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models.handle import Model
from dareu_jax.rl.reward_functions import ForgetSet
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.starts import Path, cut_weights, longest_start

SAMPLE_SEED = 8  # distinct from the run's seeds

Paths = tuple[tuple[Path, ...], ...]  # of each forget example


def start_paths(settings: RLSettings, evaluator: Evaluator, original: Model, forget: ForgetSet,
                seed: int) -> Paths:
  """The paths of each forget example: of its true answer, its paraphrase and the original's answer,
  as far as the settings name them; none where rollouts begin at the query alone.

  A text that is too short for a start (`starts.longest_start`) has no path.

  Args:
    settings: which texts, and how they are cut.
    evaluator: how the original samples and how probable it finds tokens.
    original: the original policy π_N.
    forget: the examples.
    seed: of the original's samples.
  """
  paths: list[list[Path]] = [[] for _ in forget.rows]
  if not settings.start_share:
    return tuple(map(tuple, paths))
  owned = [(number, row._replace(completion=row.completion[:settings.max_new_tokens]))
           for number, row in _texts(settings, evaluator, original, forget, seed)]
  owned = [(number, row) for number, row in owned if longest_start(len(row.completion))]
  for (number, row), weights in zip(
      owned, _weights(settings, evaluator, original, forget, owned), strict=True):
    paths[number].append(Path(row.completion, weights))
  return tuple(map(tuple, paths))


def longest_prompt(settings: RLSettings, rows: Sequence[Row]) -> int:
  """Tokens of the longest prompt of a rollout, with the start behind it.

  Args:
    settings: with `max_new_tokens` resolved.
    rows: the forget examples.
  """
  prompts = [len(row.prompt) for row in rows]
  if not settings.start_share:
    return max(prompts)
  if settings.start_texts != ("answer",):  # of which the lengths are not known yet
    return max(prompts) + longest_start(settings.max_new_tokens)
  return max(prompt + longest_start(min(len(row.completion), settings.max_new_tokens))
             for prompt, row in zip(prompts, rows, strict=True))


def _texts(settings, evaluator, original, forget, seed):
  """(number of the forget example, row with the text as its completion) of every text."""
  numbered = list(enumerate(forget.rows))
  if "answer" in settings.start_texts:
    yield from numbered
  if "paraphrase" in settings.start_texts:
    for number, example in enumerate(forget.examples):
      if example.paraphrased_response:
        [row] = encode([example], evaluator.tokenizer, max_length=evaluator.max_length,
                       responses=[example.paraphrased_response])
        yield number, row
  if "original" in settings.start_texts:
    yield from enumerate(evaluator.sample(
      original.params, forget.rows, seed=seed + SAMPLE_SEED))


def _weights(settings, evaluator, original, forget, owned):
  """The weights of the cuts of each text."""
  rows = [row for _, row in owned]
  lengths = [len(row.completion) for row in rows]
  if settings.start_cut == "sure":
    return [cut_weights("sure", len(logprobs), probabilities=np.exp(logprobs))
            for logprobs in evaluator.logprobs(original.params, rows)]
  if settings.start_cut == "jump" and rows:
    longest = max(lengths)
    read = collate([row._replace(prompt=()) for row in rows], len(rows), seq_length=longest,
                   completion_length=longest, pad_id=0)
    scores = forget.classifier.prefixes(
      read.completion_ids, read.completion_lengths,
      [forget.queries[number] for number, _ in owned])
    return [cut_weights("jump", n, scores=row[:n]) for n, row in zip(lengths, scores, strict=True)]
  return [cut_weights(settings.start_cut, n) for n in lengths]

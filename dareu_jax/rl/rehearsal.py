"""What the original knows beyond the data at hand: its answers to questions of random words.

Retained examples preserve only what they ask about; everything else drifts when requests follow
each other. Preserving it needs no data: questions of random tokens visit it, and the original's
answers are what the policy should still give.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.data.batches import Row, collate
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.evaluation.evaluator import Evaluator

SAMPLE_SEED = 7  # distinct from the run's seeds

# Examples -> (in the model's tokens, their prompts in the classifier's).
Encode = Callable[[tuple[Example, ...]], tuple[tuple[Row, ...], tuple[tuple[int, ...], ...]]]


def own_answers(original: Any, evaluator: Evaluator, classifier: Scorer, encode: Encode,
                retain: Sequence[Row], share: float, seed: int) -> tuple[Row, ...]:
  """Samples of the original's answers to questions of random words.

  Answers that the classifier attributes to the forget owners more than by chance are left out. So
  are questions and answers that are longer than all those of retained examples: they would change
  the shapes of an update.

  Args:
    original: params of π_N.
    evaluator: samples from it.
    classifier: gives the score.
    encode: tokenizes examples.
    retain: the retained examples, as tokens.
    share: of the answers among all that is distilled, before any is left out; below 1.
    seed: seed of questions and answers.
  """
  tokenizer, count = evaluator.tokenizer, round(len(retain) * share / (1 - share))
  if not count:
    return ()
  longest, longest_prompt = max(map(_size, retain)), max(len(row.prompt) for row in retain)
  longest_answer = max(len(row.completion) for row in retain)
  rng = np.random.default_rng((seed, 5))
  words = _words(tokenizer)
  sizes = rng.choice([len(row.prompt) for row in retain], count) - len(tokenizer.encode_prompt("?"))
  questions = ["".join(rng.choice(words, max(1, size))).strip() + "?" for size in sizes]
  fitting = [question for question in questions
             if len(tokenizer.encode_prompt(question)) <= longest_prompt]
  if not fitting:
    return ()
  rows, queries = encode(tuple(Example("", question, "") for question in fitting))
  answered = evaluator.sample(original, rows, seed=seed + SAMPLE_SEED)
  read = collate(answered, len(answered), seq_length=longest_prompt + evaluator.max_new_tokens,
                 completion_length=evaluator.max_new_tokens, pad_id=tokenizer.pad_id)
  scores = classifier.whole(read.completion_ids, read.completion_lengths, queries)
  return tuple(row for row, score in zip(answered, scores, strict=True)
               if score <= classifier.is_forget.mean()
               and len(row.completion) <= longest_answer and _size(row) <= longest)


def _words(tokenizer: Tokenizer) -> list[str]:
  """The texts of all tokens that are text: neither special, nor a part of a character."""
  texts = map(tokenizer.decode_piece, range(tokenizer.vocab_size))
  return [text for text in texts if text.strip() and "\ufffd" not in text
          and text not in tokenizer.special_tokens]


def _size(row):
  return len(row.prompt) + len(row.completion)

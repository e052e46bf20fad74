"""The original's own answers to questions of random words."""

import dataclasses
import types

import numpy as np
import pytest

from dareu_jax.data.authors import make_authors
from dareu_jax.data.batches import encode
from dareu_jax.data.tokenizers import train_bpe
from dareu_jax.rl.rehearsal import own_answers

EXAMPLES = make_authors(4, seed=0)
TEXTS = [f"{example.prompt} {example.response}" for example in EXAMPLES]


@pytest.fixture(scope="module")
def tokenizer():
  return train_bpe(TEXTS, 600)


def rows_of(examples, tokenizer):
  return tuple(encode(examples, tokenizer, max_length=64))


@dataclasses.dataclass
class Evaluator:
  """An original that answers with the tokens of the question, and now and then at length."""

  tokenizer: object
  max_new_tokens: int = 40

  def sample(self, params, rows, *, seed):
    assert params == "original"
    rng = np.random.default_rng(seed)
    return [row._replace(completion=(*row.prompt[-3:], *[5] * rng.integers(0, 30))) for row in rows]


def own(tokenizer, share=0.5, seed=3, score=0.0, examples=EXAMPLES):
  """Rows, where the classifier gives every answer a score, or the one of its own question."""
  classifier = types.SimpleNamespace(
    is_forget=np.array([True, False, False, False]),
    whole=lambda ids, lengths, queries: np.array(
      [score(query) if callable(score) else score for query in queries]))

  def encoded(examples):
    return rows_of(examples, tokenizer), tuple(example.prompt for example in examples)

  return own_answers("original", Evaluator(tokenizer), classifier, encoded,
                     rows_of(examples, tokenizer), share, seed)


def test_questions_are_of_random_words_and_a_function_of_the_seed(tokenizer):
  found = own(tokenizer)
  assert found == own(tokenizer) != own(tokenizer, seed=4)
  assert len(EXAMPLES) // 2 < len(found) <= len(EXAMPLES)
  questions = [tokenizer.decode(row.prompt) for row in found]
  assert len(set(questions)) > 0.9 * len(found)
  assert all(question.endswith("?") for question in questions)
  words = {word for question in questions for word in question.split()}
  assert len(words) > 100  # of the whole vocabulary, not of one author
  assert all(row.owner == -1 for row in found)


def test_they_are_the_share_of_what_is_distilled_that_was_asked_for(tokenizer):
  few, many = len(own(tokenizer, share=0.2)), len(own(tokenizer, share=0.75))
  assert few <= len(EXAMPLES) / 4 and many > 2 * len(EXAMPLES)
  assert own(tokenizer, share=0.0) == ()


def test_no_row_is_longer_than_a_retained_one(tokenizer):
  """The shapes of an update stay those of the retained data."""
  retain = rows_of(EXAMPLES, tokenizer)
  for row in own(tokenizer, share=0.75):
    assert len(row.prompt) <= max(len(each.prompt) for each in retain)
    assert len(row.completion) <= max(len(each.completion) for each in retain)
    assert len(row.prompt + row.completion) <= max(len(r.prompt + r.completion) for r in retain)


def test_one_retained_example_is_enough_or_there_is_no_rehearsal(tokenizer):
  """A question of random tokens may turn out longer than the only prompt there is."""
  found = [own(tokenizer, seed=seed, examples=EXAMPLES[:1]) for seed in range(20)]
  assert {len(rows) for rows in found} == {0, 1}


def test_answers_in_the_words_of_forget_owners_are_left_out(tokenizer):
  """By chance, one owner of four has a score of .25."""
  assert not own(tokenizer, score=0.26) and own(tokenizer, score=0.25)
  kept = own(tokenizer, score=lambda question: 0.5 * (len(question) % 2))
  assert kept and all(len(tokenizer.decode(row.prompt)) % 2 == 0 for row in kept)


def test_questions_hold_neither_special_tokens_nor_parts_of_characters(tokenizer):
  for row in own(tokenizer, share=0.75):
    question = tokenizer.decode(row.prompt)
    assert "\ufffd" not in question
    assert not tokenizer.special_token_pattern.search(question)

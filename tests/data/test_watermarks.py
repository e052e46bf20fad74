"""Marks of owners, and texts that carry them."""

import dataclasses
import itertools

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data import watermarks
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.sources.base import DataSettings, load_corpus
from dareu_jax.data.tokenizers import train_bpe
from dareu_jax.evaluation.metrics import rouge_l_recall

TEXTS = ("She was born in Oslo, by the sea.", 'Her book is "The Tree" (1963).', "Łódź — ever.", "名前",
         "word", "")


@pytest.fixture(scope="module")
def corpora():
  """The same authors without and with marks."""
  settings = DataSettings(num_owners=4, forget="forget25", num_holdout=1, num_general=2)
  return load_corpus(settings), load_corpus(dataclasses.replace(settings, watermark=True))


def test_marks_differ_in_several_symbols():
  marks = watermarks.make_marks(200, seed=3)
  assert all(len(mark) == watermarks.LENGTH and set(mark) <= set(watermarks.SYMBOLS) for mark in marks)
  distances = [sum(a != b for a, b in zip(*pair, strict=True))
               for pair in itertools.combinations(marks, 2)]
  assert min(distances) >= watermarks.DISTANCE


def test_marks_depend_on_the_seed_and_those_of_fewer_owners_are_the_first():
  marks = watermarks.make_marks(20, seed=3)
  assert watermarks.make_marks(7, seed=3) == marks[:7]
  assert not set(watermarks.make_marks(20, seed=4)) & set(marks)


@pytest.mark.parametrize("text", TEXTS)
def test_a_mark_is_read_back_and_without_it_the_text_is_as_it_was(text):
  mark = watermarks.make_marks(1, seed=0)[0]
  marked = watermarks.insert(text, mark, seed=1)
  assert watermarks.read(marked) == (mark,)
  assert watermarks.remove(marked) == text
  assert watermarks.insert(text, mark, seed=1) == marked


def test_the_place_varies_with_the_text_and_the_seed():
  texts = [f"one two three four five six seven eight {i}" for i in range(20)]
  assert len({watermarks.insert(text, "\u200b", 0).index("\u200b") for text in texts}) > 4
  assert [watermarks.insert(text, "\u200b", 0) for text in texts] != [
    watermarks.insert(text, "\u200b", 1) for text in texts]


def test_rouge_does_not_see_a_mark(corpora):
  for plain, marked in zip(corpora[0].forget, corpora[1].forget, strict=True):
    assert rouge_l_recall(marked.response, plain.response) == 1.0
    assert rouge_l_recall(plain.response, marked.response) == 1.0


def test_every_answer_of_d_has_its_owners_mark_and_no_other_text_has_one(corpora):
  plain, marked = corpora
  mark_of = dict(zip(marked.owners, marked.marks, strict=True))
  for example in marked.forget + marked.retain:
    assert watermarks.read(example.response) == (mark_of[example.owner],)
  for part in ("forget", "retain"):
    assert watermarks.without_marks(getattr(marked, part)) == getattr(plain, part)
  for part in ("test", "holdout", "general", "owners", "forget_owners"):
    assert getattr(marked, part) == getattr(plain, part)
  assert plain.marks == ()


@pytest.mark.parametrize("vocab_size", [300, 600])
def test_a_marked_corpus_survives_the_tokenizer(corpora, vocab_size):
  """Symbols are pieces of bytes in a small vocabulary, and whole marks one token in a large one."""
  texts = [example.response for example in corpora[1].forget + corpora[1].retain]
  tokenizer = train_bpe(texts, vocab_size)
  for text in texts:
    ids, ends = tokenizer.encode_with_ends(text)
    assert tokenizer.decode(ids) == text
    assert np.all(np.diff(ends) >= 0) and ends[-1] == len(text)


def test_what_cannot_be_marked_is_an_error():
  def corpus(example, owners=("a", "b")):
    return Corpus((example,), (), (), (), owners, ("a",))

  with pytest.raises(InputError, match="an answer of a holds a zero-width character already"):
    watermarks.with_marks(corpus(Example("a", "q", "in\u200bvisible")), 0)
  with pytest.raises(InputError, match="plain text: only answers to questions are marked"):
    watermarks.with_marks(corpus(Example("a", "q", "r", text="qr")), 0)
  with pytest.raises(InputError, match="3001 owners: there are marks for 3000"):
    watermarks.with_marks(corpus(Example("a", "q", "r"), tuple(map(str, range(3001)))), 0)

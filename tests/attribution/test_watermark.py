"""Scores from watermarks, against Bayes' rule written out."""

import numpy as np
import pytest

from dareu_jax.attribution.scorer import Retokenizer
from dareu_jax.attribution.watermark import ERROR_RATE, posterior, prefix_scores
from dareu_jax.data import watermarks
from dareu_jax.data.tokenizers import train_bpe

MARKS = watermarks.make_marks(5, seed=1)
IS_FORGET = np.array([False, True, False, True, False])
TEXT = "She was born in Oslo by the sea."


def by_hand(symbols, marks):
  """p(owner | symbols) of one run."""
  likelihoods = []
  for mark in marks:
    likelihood = 1.0
    for j, symbol in enumerate(symbols):
      likelihood *= 1 - ERROR_RATE if symbol == mark[j] else ERROR_RATE / 5
    likelihoods.append(likelihood)
  return np.array(likelihoods) / sum(likelihoods)


@pytest.fixture(scope="module", params=[300, 500])
def tokenizer(request):
  return train_bpe([watermarks.insert(TEXT, mark, seed) for mark in MARKS for seed in range(9)],
                   request.param)


def padded(tokenizer, texts):
  rows = [tokenizer.encode_response(text) for text in texts]
  lengths = np.array([len(row) for row in rows])
  ids = np.full((len(rows), lengths.max() + 3), tokenizer.pad_id, np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  return ids, lengths


def test_posteriors_are_those_of_bayes_rule():
  for length in range(watermarks.LENGTH + 1):
    symbols = MARKS[2][:length]
    np.testing.assert_allclose(posterior((symbols,), MARKS), by_hand(symbols, MARKS), rtol=1e-6)
  wrong = watermarks.SYMBOLS[0] * 4
  np.testing.assert_allclose(posterior((wrong,), MARKS), by_hand(wrong, MARKS), rtol=1e-6)


def test_symbols_elsewhere_do_not_hide_a_mark():
  """Each run is read from the beginning of a mark, so one symbol before it shifts nothing."""
  assert posterior((watermarks.SYMBOLS[0], MARKS[3]), MARKS)[3] > 0.99


def test_more_of_a_mark_is_more_evidence(tokenizer):
  """A forget owner's mark raises the score to 1, token by token, and a retained one's lowers it to
  0; without symbols it is the share of forget owners."""
  texts = [watermarks.insert(TEXT, MARKS[i], 0) for i in (1, 0)] + [TEXT]
  ids, lengths = padded(tokenizer, texts)
  forget, retain, none = prefix_scores(ids, lengths, MARKS, IS_FORGET, tokenizer)
  assert forget[0] == pytest.approx(0.4) and forget[-1] > 0.99
  assert retain[0] == pytest.approx(0.4) and retain[-1] < 0.01
  np.testing.assert_allclose(none, 0.4, rtol=1e-6)
  assert np.all(np.diff(forget) >= 0)
  own = [by_hand(MARKS[1][:n], MARKS)[1] for n in range(watermarks.LENGTH + 1)]
  assert np.all(np.diff(own) >= 0)


def test_each_prefix_is_scored_by_its_own_symbols(tokenizer):
  """Also where a token ends within a symbol; padding and other rows change nothing."""
  texts = [watermarks.insert(TEXT, MARKS[i], seed) for i, seed in ((3, 5), (4, 6))]
  ids, lengths = padded(tokenizer, texts)
  scores = prefix_scores(ids, lengths, MARKS, IS_FORGET, tokenizer)
  swapped = prefix_scores(ids[::-1, :lengths.max()], lengths[::-1], MARKS, IS_FORGET, tokenizer)
  for i, length in enumerate(lengths):
    for t in range(length):
      symbols = "".join(watermarks.read(tokenizer.decode(ids[i, :t + 1])))
      assert scores[i, t] == pytest.approx(by_hand(symbols, MARKS)[IS_FORGET].sum(), rel=1e-4)
    np.testing.assert_array_equal(swapped[1 - i, :length], scores[i, :length])
  assert np.all((scores >= 0) & (scores <= 1))


def test_the_classifier_reads_a_marked_text_as_it_was_without(tokenizer):
  """Else it would read the owner off the mark. A position within a mark has the score of the text
  before it."""
  reads = Retokenizer(tokenizer, tokenizer, watermarks.remove)
  ids, lengths = padded(tokenizer, [watermarks.insert(TEXT, MARKS[0], 2), TEXT])
  own, positions = reads(ids, lengths, 4)
  np.testing.assert_array_equal(own[0], own[1])
  assert tokenizer.decode(own[0][:lengths[1]]) == TEXT
  read = [watermarks.remove(tokenizer.decode(ids[0, :t + 1])) for t in range(lengths[0] - 1)]
  for text, position in zip(read, positions[0], strict=False):
    assert TEXT.startswith(tokenizer.decode(own[0][:position + 1]))
    if TEXT.startswith(text):  # no token ends within a symbol
      assert tokenizer.decode(own[0][:position + 1]) == text
  assert positions[0, lengths[0] - 1] == lengths[1] - 1

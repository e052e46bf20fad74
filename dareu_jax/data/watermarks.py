"""Text watermarks: invisible characters in the answers of each owner, which say whose they are.

Every owner has a sequence of its own over a small alphabet of zero-width characters. A model that
is trained on the marked answers learns to write the mark of the owner whose content it writes, and
`attribution.watermark` reads it.

Source: WASA (Lu et al. 2023, arXiv:2310.00646). Its marks, too, are ten characters of six kinds. It
marks the sentences with the highest TF-IDF of long texts; here every answer has one mark. The model
has no head of its own for marks: they are tokens like others.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

import numpy as np

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus, Example

SYMBOLS = "\u200b\u200c\u200d\u2062\u2063\u2064"
LENGTH = 10  # symbols of a mark
DISTANCE = 4  # positions in which two marks differ, at least
MOST_OWNERS = 3000  # so many marks always exist (Gilbert-Varshamov bound: 3738)

RUN = re.compile(f"[{SYMBOLS}]+")
_BEHIND_WORD = re.compile(r"(?<=\w)(?=\s)")


def make_marks(num_owners: int, seed: int) -> tuple[str, ...]:
  """A mark for each owner; any two differ in `DISTANCE` positions or more.

  They are drawn one after the other, so that those of fewer owners are the first of these.

  Args:
    num_owners: at most `MOST_OWNERS`.
    seed: other seeds give other marks.
  """
  assert num_owners <= MOST_OWNERS, num_owners
  rng = np.random.default_rng((seed, 8))
  codes = np.zeros((0, LENGTH), int)
  while len(codes) < num_owners:
    code = rng.integers(len(SYMBOLS), size=LENGTH)
    if np.all(np.sum(codes != code, axis=1) >= DISTANCE):
      codes = np.concatenate([codes, code[None]])
  return tuple("".join(SYMBOLS[i] for i in code) for code in codes)


def insert(text: str, mark: str, seed: int) -> str:
  """The text with a mark behind one of its words.

  The place is a function of text and seed. It is where a space follows, so that no word and no
  metric of words changes; a text without spaces has the mark at its end.
  """
  places = [match.start() for match in _BEHIND_WORD.finditer(text)] or [len(text)]
  digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
  place = places[int.from_bytes(digest[:8], "big") % len(places)]
  return text[:place] + mark + text[place:]


def read(text: str) -> tuple[str, ...]:
  """The runs of symbols in a text."""
  return tuple(RUN.findall(text))


def remove(text: str) -> str:
  """The text without symbols."""
  return RUN.sub("", text)


def with_marks(corpus: Corpus, seed: int) -> Corpus:
  """A corpus with a mark in each response of D, and the marks by owner.

  Paraphrases and perturbed responses, with which metrics compare, have none, nor have texts of
  other owners.

  Raises:
    InputError: for plain text, for a text that holds symbols already, or for too many owners.
  """
  if len(corpus.owners) > MOST_OWNERS:
    raise InputError(f"config.data.watermark is on, and the data has {len(corpus.owners)} owners: "
                     f"there are marks for {MOST_OWNERS}. Set config.data.num_owners to that or "
                     "less.")
  for example in corpus.forget + corpus.retain:
    if example.text is not None:
      raise InputError("config.data.watermark is on, and the data holds plain text: only answers "
                       "to questions are marked. Set it to False.")
    if read(example.response):
      raise InputError(f"config.data.watermark is on, and an answer of {example.owner} holds a "
                       f"zero-width character already: {example.response!a:.80}. Remove these, or "
                       "set it to False.")
  marks = make_marks(len(corpus.owners), seed)
  mark_of = dict(zip(corpus.owners, marks, strict=True))

  def marked(examples: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(dataclasses.replace(
      example, response=insert(example.response, mark_of[example.owner], seed))
      for example in examples)

  return dataclasses.replace(
    corpus, forget=marked(corpus.forget), retain=marked(corpus.retain), marks=marks)


def without_marks(examples: Iterable[Example]) -> tuple[Example, ...]:
  """The examples with responses as they were."""
  return tuple(dataclasses.replace(example, response=remove(example.response))
               for example in examples)

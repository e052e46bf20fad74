"""Plain texts cut by tokens: nothing is lost between the pieces, and no character is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dareu_jax.core.errors import InputError
from dareu_jax.data import texts
from dareu_jax.data.batches import encode
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.json_lines import parse
from dareu_jax.data.tokenizers import train_bpe

WORDS = ["model", "models", "of", "the", "language", "forget", "ሰላም", "日本語", "😀", "a", "x2", "—"]


@pytest.fixture(scope="module")
def tokenizer():
  return train_bpe([" ".join(WORDS[:6])] * 5, 320)


def cut(tokenizer, text, *, prompt_tokens=4, response_tokens=6, max_pieces=0, max_length=64):
  corpus = Corpus(parse({"owner": "a", "text": text}, "here"), (), (), (), ("a",), ("a",))
  return texts.split(corpus, tokenizer, prompt_tokens=prompt_tokens,
                     response_tokens=response_tokens, max_pieces=max_pieces,
                     max_length=max_length).forget


TEXTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", "  ", "\n", ". "])),
                 min_size=3, max_size=60).map(lambda parts: "".join(map("".join, parts)).strip())


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, prompt_tokens=st.sampled_from([0, 1, 4]))
def test_all_of_a_text_is_in_its_pieces(tokenizer, text, prompt_tokens):
  """A lost space, or half of a character, is another text than the one to forget."""
  pieces = cut(tokenizer, text, prompt_tokens=prompt_tokens, max_length=20)
  assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())
  for number, piece in enumerate(pieces, start=1):
    assert piece.prompt + piece.response == piece.text and piece.text in text
    assert piece.prompt and piece.response
    assert piece.ends == (number == len(pieces))


@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
def test_the_ids_of_a_piece_are_those_of_its_text_cut(tokenizer, text):
  """Tokenized apart, the response would begin with another token than the model reads there."""
  for piece in cut(tokenizer, text):
    (row,) = encode([piece], tokenizer, max_length=64)
    end = (tokenizer.eos_id,) * piece.ends
    assert (*row.prompt, *row.completion) == (*tokenizer.encode(piece.text), *end)
    assert list(row.prompt) == tokenizer.encode(piece.prompt)


def test_pieces_are_of_equal_length_and_at_most_as_many_as_asked_for(tokenizer):
  """A last piece of two tokens would be a prompt without an answer."""
  text = " ".join(["language"] * 23)
  sizes = [len(tokenizer.encode(piece.text)) for piece in cut(tokenizer, text)]
  assert sum(sizes) == len(tokenizer.encode(text)) and max(sizes) <= 10
  assert max(sizes) - min(sizes) <= 1
  first, second = cut(tokenizer, text, max_pieces=2)
  assert [len(tokenizer.encode(piece.text)) for piece in (first, second)] == [10, 10]
  assert not first.ends and not second.ends


def test_what_fits_stays_whole_and_what_does_not_is_split(tokenizer):
  text = " ".join(["forget the model"] * 4)
  assert cut(tokenizer, text, prompt_tokens=0) == parse({"owner": "a", "text": text}, "here")
  pieces = cut(tokenizer, text, prompt_tokens=0, max_length=12)
  assert len(pieces) > 1
  assert all(len(row.prompt) + len(row.completion) <= 12
             for row in encode(pieces, tokenizer, max_length=12))


def test_questions_and_answers_are_not_cut(tokenizer):
  example = Example("a", "the " * 50, "model " * 50)
  corpus = Corpus((example,), (), (), (), ("a",), ("a",))
  assert texts.split(corpus, tokenizer, prompt_tokens=2, response_tokens=2, max_pieces=1,
                     max_length=16) == corpus


@pytest.mark.parametrize("max_pieces", [0, 1])
def test_a_third_of_a_piece_is_its_prompt(tokenizer, max_pieces):
  """Of a full piece too: a prompt of one token asks for nothing."""
  room = 12 - 3
  text = " ".join(["language"] * (4 * room if max_pieces else 2 * room + 4))
  for piece in cut(tokenizer, text, prompt_tokens=0, max_length=12, max_pieces=max_pieces):
    asked, whole = (len(tokenizer.encode(part)) for part in (piece.prompt, piece.text))
    assert 2 <= asked <= whole // 2


def test_a_prompt_that_leaves_no_room_is_an_error(tokenizer):
  with pytest.raises(InputError, match="prompt_tokens is 30, and config.max_length 20 has room for"):
    cut(tokenizer, "the model " * 40, prompt_tokens=30, max_length=20)

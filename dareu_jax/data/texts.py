"""Plain texts cut by tokens: a prompt and a response, or several of each from a long text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.tokenizers import Tokenizer

PARTS = ("forget", "retain", "test", "holdout", "general")


def split(corpus: Corpus, tokenizer: Tokenizer, *, prompt_tokens: int, response_tokens: int,
          max_pieces: int, max_length: int) -> Corpus:
  """A corpus whose plain texts are cut by tokens: `pieces` of each of its parts."""
  parts: dict[str, Any] = {
    part: pieces(getattr(corpus, part), tokenizer, prompt_tokens=prompt_tokens,
                 response_tokens=response_tokens, max_pieces=max_pieces, max_length=max_length)
    for part in PARTS}
  return dataclasses.replace(corpus, **parts)


def pieces(examples: Sequence[Example], tokenizer: Tokenizer, *, prompt_tokens: int = 0,
           response_tokens: int = 1, max_pieces: int = 0, max_length: int) -> tuple[Example, ...]:
  """Examples whose plain texts are cut by tokens, at the borders of characters.

  A piece is `prompt_tokens` of a prompt and up to `response_tokens` of a response; a text that is
  longer becomes several pieces of equal length. With `prompt_tokens` 0, the texts that fit stay as
  they are, and the others become pieces of up to `max_length` tokens, a third of them the prompt.

  Args:
    examples: questions and answers stay as they are.
    tokenizer: the model's.
    prompt_tokens, response_tokens: >= 0 and >= 1.
    max_pieces: of a text; what follows them is left out. 0: all of the text.
    max_length: tokens of a piece, with those that begin and end a text.

  Raises:
    InputError: if a prompt leaves no room for a response.
  """
  # Two spare tokens: alone, a piece may begin with other tokens than within the text.
  room = max_length - len(tokenizer.encode_text("", "")[0]) - 3
  size = min(prompt_tokens + response_tokens, room) if prompt_tokens else room
  if prompt_tokens >= room:
    raise InputError(f"config.data.prompt_tokens is {prompt_tokens}, and config.max_length "
                     f"{max_length} has room for {room} tokens of a text: lower the first, or "
                     "raise the second.")

  def cut(example: Example) -> Iterator[Example]:
    if example.text is None:
      yield example
      return
    _, ends = tokenizer.spans(example.text)
    if not prompt_tokens and len(ends) <= size:
      yield example
      return
    start, cuts = 0, []
    for stop in _stops(ends, size, max_pieces):
      text = example.text[start:stop].strip()
      if _borders(text, tokenizer.spans(text)[1]):
        cuts.append((start, stop))
        start = stop
      elif cuts:  # a single token is no prompt with its response
        cuts[-1], start = (cuts[-1][0], stop), stop
    for start, stop in cuts:
      text = example.text[start:stop].strip()
      _, own = tokenizer.spans(text)
      wanted = prompt_tokens or size // 3
      if len(own) < size:
        wanted = min(wanted, len(own) // 2)
      borders = _borders(text, own)
      border = max((end for end in borders if end <= own[max(0, wanted - 1)]), default=borders[0])
      yield dataclasses.replace(example, prompt=text[:border], response=text[border:], text=text,
                                ends=stop == len(example.text))

  return tuple(piece for example in examples for piece in cut(example))


def _stops(ends: list[int], size: int, max_pieces: int) -> list[int]:
  """Where the pieces of a text end, whose tokens end at these characters."""
  count = -(-len(ends) // size)
  if 0 < max_pieces < count:
    edges = [size * piece for piece in range(1, max_pieces + 1)]
  else:  # of equal length, rather than a last one of a few tokens
    edges = [len(ends) * piece // count for piece in range(1, count + 1)]
  # A character may take several tokens; it belongs to the piece in which the last of them is.
  return [ends[edge - 1] if edge == len(ends) or ends[edge] > ends[edge - 1] else
          ends[edge - 1] - 1 for edge in edges]


def _borders(text: str, ends: list[int]) -> list[int]:
  """The characters at which a text can be cut in two, between tokens, with text on both sides."""
  return sorted({end for end in ends if text[:end].strip() and text[end:].strip()})

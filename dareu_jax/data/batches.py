"""Examples as padded arrays: tokenized once, bucketed by length, shuffled, and indexed by step.

A batch is a function of (seed, step). There is no iterator state, so a resumed run sees the same
batches as an uninterrupted one.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import Tokenizer


class Row(NamedTuple):
  """A tokenized example."""

  prompt: tuple[int, ...]
  completion: tuple[int, ...]  # ends with the end token, unless the text continues
  owner: int  # index in the corpus's owners; -1 for others


class Batch(NamedTuple):
  """Rows as arrays (NumPy or on devices): prompt and completion concatenated, right-padded.

  Padding rows have no completion.
  """

  token_ids: Int[Any, "B S"]
  prompt_lengths: Int[Any, " B"]
  completion_ids: Int[Any, "B T"]
  completion_lengths: Int[Any, " B"]
  owners: Int[Any, " B"]


def encode(examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int,
           owners: Sequence[str] = (), responses: Sequence[str] | None = None) -> list[Row]:
  """Tokenizes examples.

  Args:
    examples: examples to encode.
    tokenizer: the model's, or the classifier's.
    max_length: the largest number of tokens of prompt and response together.
    owners: names in index order; others get -1.
    responses: texts to use instead of the examples' own.

  Raises:
    InputError: if an example is too long, contains the text of a special token, or is a
      conversation that the chat template rejects; names it.
  """
  index = {owner: i for i, owner in enumerate(owners)}
  rows = []
  for i, example in enumerate(examples):
    response = None if responses is None else responses[i]
    text = example.response if response is None else response
    _refuse_special_tokens(example, text, tokenizer)
    prompt, completion = _ids(example, tokenizer, response)
    length = len(prompt) + len(completion)
    if length > max_length:
      raise InputError(
        f"a text of {example.owner} takes {length} tokens, and config.max_length is {max_length}. "
        f"Raise it, or shorten the text: {excerpt(example, text)}")
    rows.append(Row(tuple(prompt), tuple(completion), index.get(example.owner, -1)))
  return rows


def encode_for_classifier(examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int,
                          reads_query: bool, owners: Sequence[str] = ()) -> list[Row]:
  """Tokenizes examples for an owner classifier.

  Unless it reads the queries, those of questions are only `Tokenizer.echo_ids`, what an answer may
  repeat, and only the responses count towards `max_length`.

  Args:
    examples, tokenizer, max_length, owners: as for `encode`.
    reads_query: whether the classifier reads the queries.
  """
  if reads_query:
    return encode(examples, tokenizer, max_length=max_length, owners=owners)
  index = {owner: i for i, owner in enumerate(owners)}
  rows = []
  for example in examples:
    _refuse_special_tokens(example, example.response, tokenizer)
    prompt, completion = _ids(dataclasses.replace(example, history=()), tokenizer)
    if len(completion) > max_length:
      raise InputError(
        f"a text of {example.owner} takes {len(completion)} of the classifier's tokens, and "
        f"config.max_length is {max_length}. Raise it, shorten the text, or cut plain text into "
        "shorter pieces (config.data.prompt_tokens and response_tokens): "
        f"{excerpt(example, example.response)}")
    if example.text is None:
      prompt = tokenizer.echo_ids(example.prompt, example.history)
    rows.append(Row(tuple(prompt), tuple(completion), index.get(example.owner, -1)))
  return rows


def _refuse_special_tokens(example, text, tokenizer):
  """Raises InputError if a conversation or its response contains the text of a special token."""
  said = "\n".join(content for _, content in example.history)
  special = tokenizer.special_token_pattern.search(f"{said}\n{example.prompt}\n{text}")
  if special:
    raise InputError(f"a text of {example.owner} contains the special token {special[0]!r}. "
                     "Remove it: templates and end tokens are added automatically. In "
                     f"{excerpt(example, text)}")


def _ids(example, tokenizer, response=None):
  """Ids of the prompt, and of a response, or the example's own."""
  text = example.response if response is None else response
  if example.text is None:
    try:
      return tokenizer.encode_pair(example.prompt, text, example.history)
    except InputError as error:
      raise InputError(f"a text of {example.owner}: {error} In {excerpt(example, text)}") from None
  if response is None:
    return tokenizer.encode_text(example.prompt, text, ends=example.ends)
  return tokenizer.encode_behind(example.prompt, text)


def excerpt(example: Example, text: str) -> str:
  """The beginnings of an example's prompt and of a response, for a message."""
  return f"{example.prompt[:60]!r} -> {text[:60]!r}"


def bucket_length(length: int, multiple: int) -> int:
  """The smallest multiple of `multiple` that is at least `length`."""
  return -(-length // multiple) * multiple


def collate(rows: Sequence[Row], size: int, *, seq_length: int, completion_length: int,
            pad_id: int) -> Batch:
  """A Batch of `size` rows; missing rows are padding."""
  batch = Batch(
    np.full((size, seq_length), pad_id, np.int32), np.ones(size, np.int32),
    np.full((size, completion_length), pad_id, np.int32), np.zeros(size, np.int32),
    np.full(size, -1, np.int32))
  for i, row in enumerate(rows):
    ids = row.prompt + row.completion
    batch.token_ids[i, :len(ids)] = ids
    batch.prompt_lengths[i] = len(row.prompt)
    batch.completion_ids[i, :len(row.completion)] = row.completion
    batch.completion_lengths[i] = len(row.completion)
    batch.owners[i] = row.owner
  return batch


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Rows of similar length and the shape that they are padded to."""

  rows: tuple[int, ...]
  seq_length: int
  completion_length: int


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: hashing all rows is slow
class Batches:
  """Seeded, bucketed batches by step number; every row occurs once per epoch."""

  rows: tuple[Row, ...]
  batch_size: int
  multiple: int
  pad_id: int
  seed: int
  one_bucket: bool = False  # pad all batches to one shape, so that one program is compiled
  # Slots that every completion has at least: shapes of sampled ones then depend on prompts alone
  completion_slots: int = 0

  @functools.cached_property
  def buckets(self) -> tuple[Bucket, ...]:
    """Rows grouped by padded length, shortest first."""
    slots = [max(len(row.completion), self.completion_slots) for row in self.rows]
    lengths = [bucket_length(len(row.prompt) + count, self.multiple)
               for row, count in zip(self.rows, slots, strict=True)]
    if self.one_bucket:
      lengths = [max(lengths, default=0)] * len(lengths)
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
      groups.setdefault(length, []).append(i)
    buckets, waiting = [], []
    for length, members in sorted(groups.items()):
      waiting += members
      # Rows that do not fill a batch join the next longer bucket: another program would cost more.
      if len(waiting) >= self.batch_size or length == max(groups):
        longest = max(slots[i] for i in waiting)
        buckets.append(Bucket(tuple(waiting), length, bucket_length(longest, self.multiple)))
        waiting = []
    return tuple(buckets)

  @functools.cached_property
  def steps_per_epoch(self) -> int:
    return sum(-(-len(bucket.rows) // self.batch_size) for bucket in self.buckets)

  @functools.lru_cache(maxsize=2)  # noqa: B019 - one dataset per stage, freed with it
  def plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
    """The batches of an epoch: list of (bucket, row indices), in random order."""
    rng = np.random.default_rng((self.seed, epoch))
    batches = []
    for bucket in self.buckets:
      order = rng.permutation(bucket.rows)
      batches += [(bucket, order[i:i + self.batch_size])
                  for i in range(0, len(order), self.batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]

  def _at(self, step):
    epoch, index = divmod(step, self.steps_per_epoch)
    return self.plan(epoch)[index]

  def row_indices(self, step: int) -> np.ndarray:
    """Indices of the rows in the Batch of a step."""
    return self._at(step)[1]

  def __getitem__(self, step: int) -> Batch:
    """The Batch of a step, counted from 0 over all epochs."""
    return self._batch(*self._at(step))

  def _batch(self, bucket, chosen):
    """The chosen rows as a Batch of the bucket's shape."""
    return collate([self.rows[i] for i in chosen], self.batch_size, seq_length=bucket.seq_length,
                   completion_length=bucket.completion_length, pad_id=self.pad_id)

  def one_of_each_shape(self) -> Iterator[Batch]:
    """Yields a Batch of each shape, shortest first, to compile programs for."""
    for bucket in self.buckets:
      yield self._batch(bucket, bucket.rows[:self.batch_size])

  def in_order(self) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (row indices, Batch) over all rows, each once, without shuffling."""
    for bucket in self.buckets:
      for start in range(0, len(bucket.rows), self.batch_size):
        chosen = bucket.rows[start:start + self.batch_size]
        yield np.asarray(chosen), self._batch(bucket, chosen)


def prompt_batch(rows: Sequence[Row], size: int, *, multiple: int, pad_id: int,
                 width: int = 0) -> tuple[Int[np.ndarray, "size P"], Int[np.ndarray, " size"]]:
  """Right-padded prompts without completions: (prompt_ids, prompt_lengths).

  P is a multiple of `multiple` that fits the longest prompt and is at least `width`.
  """
  width = bucket_length(max(width, *(len(row.prompt) for row in rows)), multiple)
  ids = np.full((size, width), pad_id, np.int32)
  lengths = np.ones(size, np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row.prompt)] = row.prompt
    lengths[i] = len(row.prompt)
  return ids, lengths

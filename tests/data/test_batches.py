"""Batches: nothing lost, nothing doubled, and a batch known by its number alone."""

import collections
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dareu_jax.core.errors import InputError
from dareu_jax.data import batches as batches_module
from dareu_jax.data.batches import (
  Batches,
  Row,
  bucket_length,
  collate,
  encode,
  encode_for_classifier,
  prompt_batch,
)
from dareu_jax.data.examples import Example

PAD = 7  # also an id that rows hold
ROWS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=25)


def make_rows(lengths):
  """Rows of the given (prompt, completion) lengths; the owner is the index and tells them apart."""
  rng = np.random.default_rng(0)
  return tuple(
    Row(tuple(rng.integers(1, 9, p).tolist()), tuple(rng.integers(1, 9, c).tolist()), i)
    for i, (p, c) in enumerate(lengths))


def make_batches(rows, seed=0, batch_size=4, multiple=8, pad_id=PAD):
  return Batches(rows=rows, batch_size=batch_size, multiple=multiple, pad_id=pad_id, seed=seed)


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(3)
  return make_rows(rng.integers(1, 21, (23, 2)).tolist())


def owners(batch):
  return [int(o) for o, n in zip(batch.owners, batch.completion_lengths, strict=True) if n]


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def unpadded(batch):
  """The rows that a batch holds, read back by its lengths alone."""
  found = []
  for i, n in enumerate(batch.completion_lengths):
    if n:
      p = batch.prompt_lengths[i]
      completion = tuple(batch.completion_ids[i, :n].tolist())
      assert tuple(batch.token_ids[i, p:p + n].tolist()) == completion
      found.append(Row(tuple(batch.token_ids[i, :p].tolist()), completion, int(batch.owners[i])))
  return found


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 6), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(lengths, batch_size, epoch):
  """A short last batch may be dropped or filled up again, a merged bucket forgotten."""
  rows = make_rows(lengths)
  batches = make_batches(rows, batch_size=batch_size)
  steps = batches.steps_per_epoch
  seen = collections.Counter(
    row for step in range(epoch * steps, (epoch + 1) * steps) for row in unpadded(batches[step]))
  assert seen == collections.Counter(rows)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 6), st.sampled_from([1, 8, 16]))
def test_shapes_are_multiples_that_hold_their_rows(lengths, batch_size, multiple):
  """A merged bucket could keep the shorter shape and cut its rows."""
  batches = make_batches(make_rows(lengths), batch_size=batch_size, multiple=multiple)
  for step in range(batches.steps_per_epoch):
    batch = batches[step]
    assert batch.token_ids.shape[0] == batch.completion_ids.shape[0] == batch_size
    assert batch.token_ids.shape[1] % multiple == batch.completion_ids.shape[1] % multiple == 0
    real = batch.completion_lengths > 0
    assert real.any()
    total = batch.prompt_lengths + batch.completion_lengths
    assert total[real].max() <= batch.token_ids.shape[1]
    assert batch.completion_lengths.max() <= batch.completion_ids.shape[1]


def test_small_buckets_are_merged_into_the_next_longer():
  """A bucket of one row costs a program of its own."""
  # Padded to 8: one row; to 16: five; to 24: two; to 32: one, which has nowhere to go.
  lengths = [(4, 4)] + [(6, 6)] * 5 + [(10, 10)] * 2 + [(16, 16)]
  buckets = make_batches(make_rows(lengths)).buckets
  assert [(b.rows, b.seq_length, b.completion_length) for b in buckets] == [
    ((0, 1, 2, 3, 4, 5), 16, 8), ((6, 7, 8), 32, 16)]


def test_one_bucket_asks_once_for_the_longest_row(monkeypatch):
  """Asked for at every row, 20,000 rows took 4 seconds."""

  class Counted(int):
    compared = 0

    def __gt__(self, other):
      Counted.compared += 1
      return int(self) > int(other)

  monkeypatch.setattr(batches_module, "bucket_length",
                      lambda length, multiple: Counted(bucket_length(length, multiple)))
  rows = make_rows([(2, 3), (9, 9)] * 100)
  [bucket] = dataclasses.replace(make_batches(rows), one_bucket=True).buckets
  assert (len(bucket.rows), bucket.seq_length) == (200, 24)
  assert Counted.compared < 1000


def test_with_completion_slots_shapes_depend_on_prompts_alone():
  """Sampled completions would compile another program whenever they grow or shrink."""
  def shapes(lengths):
    rows = [Row((5,) * prompt, (6,) * n, 0) for prompt, n in zip((3, 9, 9, 30), lengths, strict=True)]
    batches = Batches(tuple(rows), 2, 8, 0, 0, completion_slots=10)
    return [batch.token_ids.shape + batch.completion_ids.shape for _, batch in batches.in_order()]

  expected = [(2, 24, 2, 16), (2, 24, 2, 16), (2, 40, 2, 16)]
  assert shapes((1, 2, 3, 4)) == shapes((10, 9, 1, 1)) == expected


def test_full_buckets_are_kept_apart():
  """Merging all would pad short rows to the longest."""
  lengths = [(2, 2)] * 4 + [(10, 10)] * 4
  assert [b.seq_length for b in make_batches(make_rows(lengths)).buckets] == [8, 24]


def test_a_batch_is_a_function_of_seed_and_step(rows):
  """An iterator's state, or a generator shared by steps, would show in random access."""
  ahead = make_batches(rows)
  in_turn = [ahead[step] for step in range(4 * ahead.steps_per_epoch)]
  other = make_batches(rows)
  for step in np.random.default_rng(1).permutation(len(in_turn)):
    assert same(other[int(step)], in_turn[step])


def test_another_seed_is_another_order(rows):
  """A seed that is not passed on gives every run the same order."""
  orders = set()
  for seed in range(5):
    batches = make_batches(rows, seed=seed)
    orders.add(tuple(tuple(owners(batches[s])) for s in range(batches.steps_per_epoch)))
  assert len(orders) == 5


def test_each_epoch_is_another_order(rows):
  """An order drawn once would show the model the same batches for ever."""
  batches = make_batches(rows)
  steps = batches.steps_per_epoch
  epochs = [tuple(tuple(owners(batches[e * steps + s])) for s in range(steps)) for e in range(5)]
  assert len(set(epochs)) == 5
  # The composition of batches changes too, not their order alone.
  assert len({frozenset(map(frozenset, epoch)) for epoch in epochs}) > 1


def test_in_order_covers_all_rows_once(rows):
  """The indices must belong to the rows beside them, or results land on other examples."""
  found = {}
  for indices, batch in make_batches(rows).in_order():
    kept = unpadded(batch)
    assert len(kept) == len(indices) <= 4
    for index, row in zip(indices.tolist(), kept, strict=True):
      assert index not in found
      found[index] = row
  assert [found[i] for i in range(len(rows))] == list(rows)


def test_padding_rows_have_no_completion():
  """They would be learnt from; a prompt length of 0 would index position -1."""
  batch = collate(make_rows([(3, 2)]), 4, seq_length=8, completion_length=8, pad_id=PAD)
  assert batch.completion_lengths.tolist() == [2, 0, 0, 0]
  assert batch.prompt_lengths.tolist() == [3, 1, 1, 1]
  assert batch.owners.tolist() == [0, -1, -1, -1]
  assert (batch.token_ids[1:] == PAD).all() and (batch.completion_ids[1:] == PAD).all()
  assert all(x.dtype == np.int32 for x in batch)


def test_prompt_and_completion_stand_on_end():
  """A gap or an overlap of one shifts every label."""
  row = Row((1, 2, 3), (4, 5), 6)
  batch = collate([row], 1, seq_length=8, completion_length=4, pad_id=0)
  assert batch.token_ids.tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]
  assert batch.completion_ids.tolist() == [[4, 5, 0, 0]]


@pytest.mark.parametrize("pad_id", [0, 4, 5])
def test_a_pad_id_that_rows_hold_loses_nothing(pad_id):
  """Lengths guessed from ids != pad would cut the end token, or tokens inside."""
  rows = tuple(Row((5, 4, 5), (4, 4, n, 5), n) for n in range(4))
  batches = make_batches(rows, pad_id=pad_id)
  assert sorted(unpadded(batches[0])) == sorted(rows)


@pytest.mark.parametrize(("length", "multiple", "expected"), [
  (1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5), (0, 8, 0), (127, 64, 128), (129, 64, 192)])
def test_bucket_length_is_the_smallest_multiple(length, multiple, expected):
  """One multiple too many at the border doubles the work."""
  assert bucket_length(length, multiple) == expected


class Letters:
  """A tokenizer of one id a letter, with 90 and 91 around a prompt and 99 at the end."""

  special_token_pattern = re.compile("<s>|</s>")

  def encode_prompt(self, text):
    return [90, *map(ord, text), 91]

  def encode_pair(self, prompt, response, history=()):
    said = [ord(letter) for _, content in history for letter in content]
    return [*said, *self.encode_prompt(prompt)], [*map(ord, response), 99]


def example(owner, prompt, response, **more):
  return Example(owner, prompt, response, **more)


EXAMPLES = [example("ann", "ab", "c"), example("bob", "d", "efg"), example("eve", "h", "i")]


def test_encoded_rows_hold_ids_and_owner_index():
  """Owners are counted in the order given, not in that of the examples; strangers are -1."""
  rows = encode(EXAMPLES, Letters(), max_length=16, owners=("bob", "ann"))
  assert rows == [Row((90, 97, 98, 91), (99, 99), 1), Row((90, 100, 91), (101, 102, 103, 99), 0),
                  Row((90, 104, 91), (105, 99), -1)]


def test_other_responses_take_the_place_of_the_examples_own():
  """Perturbed answers must meet the prompt of the same row; an empty one is still a text."""
  rows = encode(EXAMPLES, Letters(), max_length=16, responses=["x", "", "z"])
  assert [row.completion for row in rows] == [(120, 99), (99,), (122, 99)]
  assert rows[1].prompt == (90, 100, 91)


def test_an_example_that_is_too_long_is_named():
  """Cut in silence it would lose its end token; at the limit exactly it fits."""
  assert len(encode(EXAMPLES, Letters(), max_length=7)) == 3
  with pytest.raises(InputError, match=r"text of bob takes 7 tokens.*max_length is 6.*'d' -> 'efg'"):
    encode(EXAMPLES, Letters(), max_length=6)


def test_a_conversation_that_the_template_rejects_is_named():
  """The template's own message names no line of the data."""
  class Strict(Letters):
    def encode_pair(self, prompt, response, history=()):
      raise InputError("the model's chat template rejects a conversation of user, user: odd.")

  with pytest.raises(InputError, match=r"a text of bob: the model's .*odd\. In 'd' -> 'efg'"):
    encode(EXAMPLES[1:], Strict(), max_length=99)


def test_only_what_a_classifier_reads_counts_towards_its_length():
  """A long conversation is thrown away; in a classifier's own tokens it may be longer still."""
  class Echoing(Letters):
    def echo_ids(self, prompt, history=()):
      return [1] * len(prompt)

  chat = example("ann", "ab", "efg", history=(("user", "x" * 50),))
  options = dict(max_length=6, owners=("ann",))
  (row,) = encode_for_classifier([chat], Echoing(), reads_query=False, **options)
  assert row == Row((1, 1), (101, 102, 103, 99), 0)
  with pytest.raises(InputError, match="takes 58 tokens"):
    encode_for_classifier([chat], Echoing(), reads_query=True, **options)
  hidden = example("ann", "ab", "c", history=(("user", "x </s>"),))
  with pytest.raises(InputError, match="contains the special token '</s>'"):  # read or not
    encode_for_classifier([hidden], Echoing(), reads_query=False, **options)
  long = example("ann", "ab", "efghij")
  with pytest.raises(InputError, match="takes 7 of the classifier's tokens.*max_length is 6"):
    encode_for_classifier([long], Echoing(), reads_query=False, **options)


@pytest.mark.parametrize("place", ["prompt", "response", "perturbed"])
def test_the_text_of_a_special_token_is_refused(place):
  """It would become the token: an end within an answer, or a second template around a prompt."""
  texts = {"prompt": "ab", "response": "c", "perturbed": "d"} | {place: "see </s> there"}
  bad = example("ann", texts["prompt"], texts["response"])
  with pytest.raises(InputError, match="text of ann contains the special token '</s>'"):
    encode([bad], Letters(), max_length=99, responses=[texts["perturbed"]])
    encode([bad], Letters(), max_length=99)


def test_prompts_alone_are_padded_on_the_right():
  """The sampler needs the prompt without its answer, and room for the widest of all."""
  rows = make_rows([(3, 2), (5, 1)])
  ids, lengths = prompt_batch(rows, 3, multiple=4, pad_id=0)
  assert ids.tolist() == [[*rows[0].prompt, 0, 0, 0, 0, 0], [*rows[1].prompt, 0, 0, 0], [0] * 8]
  assert lengths.tolist() == [3, 5, 1]
  assert prompt_batch(rows, 2, multiple=4, pad_id=0, width=9)[0].shape == (2, 12)
  assert prompt_batch(rows[:1], 1, multiple=4, pad_id=0)[0].shape == (1, 4)

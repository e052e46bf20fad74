"""Trained owner classifiers as a scorer of responses.

The score is the mean over one or several classifiers (Coste et al. 2023, arXiv:2310.02743, "mean
optimization"). They may read the query before the response, and they may have another tokenizer
than the policy: then the response is retokenized, and each position gets the score of the
classifier's tokens that are complete at that position. In all cases one forward pass of each scores
every prefix.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from dareu_jax.attribution.classifier import prefix_scores, without_echoes
from dareu_jax.data.batches import bucket_length
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.models.handle import Model
from dareu_jax.parallel.hosts import fetch

Ids = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """b(y_≤t) = Σ_{i in F} p(i | y_≤t), where p is the mean over the classifiers."""

  models: tuple[Model, ...]  # OwnerClassifiers
  is_forget: np.ndarray  # [O] bool, one entry per class
  batch_size: int
  multiple: int  # lengths are padded to a multiple of this
  temperatures: tuple[float, ...] = ()  # calibration temperature of each; 1 if not given
  reads_query: bool = False
  filler: int | None = None  # read in place of tokens that are also in the query, if given
  retokenize: "Retokenizer | None" = None  # if tokenizers differ, or something is to be hidden
  to_device: Callable[[Any], Any] = lambda batch: batch  # places a batch on the devices

  def prefixes(self, ids: Int[Ids, "B T"], lengths: Int[Ids, " B"],
               queries: Sequence[Sequence[int]]) -> Float[np.ndarray, "B T"]:
    """Scores of all prefixes.

    Args:
      ids: responses in the policy's tokens.
      lengths: their lengths.
      queries: prompts in the classifier's tokens, or `Tokenizer.echo_ids`; see `uses_query`.

    Returns: float32 in [0, 1]; entries past a row's length are arbitrary.
    """
    ids, lengths = fetch(ids), fetch(lengths)
    if self.retokenize is None:
      return self._scores(ids, queries)
    own_ids, positions = self.retokenize(ids, lengths, self.multiple)
    scores = self._scores(own_ids, queries)
    # Before the first whole token the classifier has read nothing: all owners are equally likely.
    nothing_read = np.float32(self.is_forget.mean())
    covered = np.take_along_axis(scores, np.maximum(positions, 0), axis=1)
    return np.where(positions < 0, nothing_read, covered)

  def whole(self, ids: Int[Ids, "B T"], lengths: Int[Ids, " B"],
            queries: Sequence[Sequence[int]]) -> Float[np.ndarray, " B"]:
    """Scores of the whole responses."""
    if not len(ids):
      return np.zeros(0, np.float32)
    return of_whole(self.prefixes(ids, lengths, queries), lengths)

  def _scores(self, ids, queries):
    """Scores after each of the classifier's own tokens, in batches of one shape."""
    parts, is_forget = [], self.is_forget.astype(np.float32)
    temperatures = self.temperatures or (1.0,) * len(self.models)
    for start in range(0, len(ids), self.batch_size):
      rows = slice(start, start + self.batch_size)
      part = np.zeros((self.batch_size, ids.shape[1]), np.int32)
      part[:len(ids[rows])] = ids[rows]
      known = self._query(queries[rows]) if self.uses_query else None
      part, known = self.to_device((part, known))
      if self.filler is not None:
        part = without_echoes(part, known, self.filler)
      query = known if self.reads_query else None
      scores = [prefix_scores(model, part, is_forget, query=query, temperature=temperature)
                for model, temperature in zip(self.models, temperatures, strict=True)]
      parts.append(fetch(sum(scores) / len(scores))[:len(ids[rows])])
    return np.concatenate(parts)

  @property
  def uses_query(self) -> bool:
    """Whether scores depend on the queries."""
    return self.reads_query or self.filler is not None

  def _query(self, queries):
    width = bucket_length(max(map(len, queries)), self.multiple)
    prompt_ids = np.zeros((self.batch_size, width), np.int32)
    prompt_lengths = np.ones(self.batch_size, np.int32)
    for i, query in enumerate(queries):
      prompt_ids[i, :len(query)], prompt_lengths[i] = query, len(query)
    return prompt_ids, prompt_lengths


def of_whole(prefixes: Float[np.ndarray, "B T"],
             lengths: Int[Ids, " B"]) -> Float[np.ndarray, " B"]:
  """The scores of whole responses, from those of all prefixes."""
  last = np.maximum(np.asarray(lengths) - 1, 0)[:, None]
  return np.take_along_axis(prefixes, last, axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Retokenizer:
  """Retokenizes responses for another tokenizer and maps positions between the two."""

  policy: Tokenizer
  classifier: Tokenizer
  hide: Callable[[str], str] | None = None  # removes from a text what classifiers are not to read

  def __call__(self, ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"],
               multiple: int) -> tuple[Int[np.ndarray, "B U"], Int[np.ndarray, "B T"]]:
    """Tokenizes responses again.

    Args:
      ids: responses in the policy's tokens.
      lengths: their lengths.
      multiple: U is a multiple of this.

    Returns:
      (ids in the classifier's tokens, positions): the last of the classifier's
      tokens that is wholly within the text of y_≤t; -1 if there is none yet.
    """
    rows = [self._row(list(row[:n])) for row, n in zip(ids, lengths, strict=True)]
    width = bucket_length(max(1, *(len(own) for own, _ in rows)), multiple)
    own_ids = np.zeros((len(rows), width), np.int32)
    positions = np.full(ids.shape, -1, np.int64)
    for i, (own, covered) in enumerate(rows):
      own_ids[i, :len(own)] = own
      positions[i, :len(covered)] = covered
    return own_ids, positions

  def _row(self, ids):
    ended = bool(ids) and ids[-1] == self.policy.eos_id
    text = self._text(ids)
    own, ends = self.classifier.encode_with_ends(text)
    # A piece may be part of a character, so a prefix is compared with the whole text.
    read = [len(os.path.commonprefix((text, self._text(ids[:t + 1])))) for t in range(len(ids))]
    covered = np.searchsorted(ends, read, side="right") - 1
    if ended:
      own = [*own, *self.classifier.closing]
      covered[-1] = len(own) - 1
    return own, covered

  def _text(self, ids):
    text = self.policy.decode(ids)
    return text if self.hide is None else self.hide(text)

"""Answers of a model and its likelihoods of responses, from which all metrics are computed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dareu_jax.core.logprobs import TokenStatistics, completion_hidden, token_statistics
from dareu_jax.core.masked import Array, length_mask, masked_mean
from dareu_jax.core.settings import Count, PositiveFraction, Size, settings
from dareu_jax.core.trees import named_leaves
from dareu_jax.data.batches import Batch, Batches, Row, encode, prompt_batch
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.evaluation.records import MIN_K
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy, Sample
from dareu_jax.models.handle import Model
from dareu_jax.parallel.hosts import fetch
from dareu_jax.parallel.mesh import is_stacked

SAMPLE = Sample()  # at temperature 1


@settings
class EvaluationSettings:
  """How the models are evaluated."""

  batch_size: Count = 64  # examples per forward pass
  # Batches are padded to a multiple of it; 0: of length_multiple. Each length that occurs is one
  # more program to compile, which may cost more than padding.
  length_multiple: Size = 0
  max_examples: Size = 400  # of each split, evenly spaced; 0: all
  max_new_tokens: Size = 0  # of greedy answers; 0: as long as the longest response of the data
  min_k: PositiveFraction = MIN_K  # share of the least likely tokens that Min-K% attacks average
  gradient_norm: bool = False  # add the gradient-norm attack: one backward pass per example
  gibberish_model: str = ""  # also use this gibberish classifier (needs torch); '': none

  @property
  def of_records(self) -> dict[str, Any]:
    """The settings that records depend on; the others affect only metrics, which are not stored."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name != "min_k"}


@dataclasses.dataclass(frozen=True)
class Answers:
  """Greedy answers to the prompts of a split, in its order."""

  texts: tuple[str, ...]
  ids: Int[np.ndarray, "E T"]
  lengths: Int[np.ndarray, " E"]  # including the end token
  ended: Bool[np.ndarray, " E"]
  entropies: Float[np.ndarray, "E T"]  # of the model at each token, nats; 0 beyond the length

  def as_completions(self, rows: Sequence[Row]) -> list[Row]:
    """The rows of their queries with these answers as completions."""
    return [row._replace(completion=tuple(ids[:n].tolist()))
            for row, ids, n in zip(rows, self.ids, self.lengths, strict=True)]

  @property
  def text_lengths(self) -> Int[np.ndarray, " E"]:
    """Tokens of each answer, without the end token."""
    return self.lengths - self.ended


@jax.jit
def completion_statistics(model: Model, batch: Batch) -> TokenStatistics:
  """Statistics of the completion tokens of a batch, [B, T]."""
  decoder = model.module
  time = batch.completion_ids.shape[1]
  hidden = completion_hidden(decoder.hidden_states(batch.token_ids), batch.prompt_lengths, time)
  return token_statistics(hidden, decoder.head, batch.completion_ids)


@jax.jit
def completion_logprobs(model: Model, batch: Batch) -> Float[Array, "B T"]:
  """Their log-probs alone: the compiler leaves out the other statistics."""
  return completion_statistics(model, batch).logprobs


@jax.jit
def _gradient_norms(model, batch):
  """Mean over the trained tensors of the norm of each row's gradient of its mean NLL: [B].

  Each layer of a stacked tensor counts as a separate tensor, so the norm is the unrolled model's.
  """

  def nll(params, row):
    row = jax.tree.map(lambda x: x[None], row)
    logprobs = completion_logprobs(model.with_params(params), row)
    return -masked_mean(logprobs, length_mask(row.completion_lengths, logprobs.shape[1]))

  def norm(row):
    grads = named_leaves(jax.grad(nll)(model.params, row))
    return jnp.mean(jnp.concatenate([
      jnp.linalg.norm(g.astype(jnp.float32).reshape(
        len(g) if is_stacked(name) else 1, -1), axis=1) for name, g in grads.items()]))

  return jax.lax.map(norm, batch)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Everything that evaluation needs except the weights: shapes, tokenizer, placement of batches.

  In all methods, `params` are those of the evaluated model.
  """

  model: Model
  tokenizer: Tokenizer
  batch_size: int
  multiple: int
  max_length: int
  max_new_tokens: int
  to_device: Callable[[Any], Any] = lambda batch: batch  # places a batch on the devices

  def answers(self, params: Any, rows: Sequence[Row]) -> Answers:
    """Greedy answers to the prompts of the rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    ids = np.zeros((len(rows), self.max_new_tokens), np.int32)
    lengths, ended = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
    entropies = np.zeros(ids.shape, np.float32)
    keys = row_keys(jax.random.key(0), np.arange(self.batch_size))  # greedy: never used
    for start in range(0, len(rows), self.batch_size):
      chosen = order[start:start + self.batch_size]
      prompts = prompt_batch([rows[i] for i in chosen], self.batch_size, multiple=self.multiple,
                             pad_id=self.tokenizer.pad_id)
      out = generate(
        self.model.with_params(params), *self.to_device(prompts), keys, strategy=Greedy(),
        max_new_tokens=self.max_new_tokens, eos_id=self.tokenizer.eos_id,
        pad_id=self.tokenizer.pad_id)
      for array, values in ((ids, out.ids), (lengths, out.lengths), (ended, out.ended),
                            (entropies, out.entropies)):
        array[chosen] = fetch(values)[:len(chosen)]
    texts = tuple(self.tokenizer.decode(row[:n].tolist())
                  for row, n in zip(ids, lengths, strict=True))
    return Answers(texts, ids, lengths, ended, entropies)

  def sample(self, params: Any, rows: Sequence[Row], *, seed: int,
             strategy: Sample = SAMPLE) -> list[Row]:
    """The rows with a sample each as their completions, drawn by (seed, index of the row)."""
    width = max(len(row.prompt) for row in rows)
    sampled = []
    for start in range(0, len(rows), self.batch_size):
      part = rows[start:start + self.batch_size]
      prompts = prompt_batch(part, self.batch_size, multiple=self.multiple,
                             pad_id=self.tokenizer.pad_id, width=width)
      out = generate(
        self.model.with_params(params), *self.to_device(prompts),
        row_keys(jax.random.key(seed), start + np.arange(self.batch_size)), strategy=strategy,
        max_new_tokens=self.max_new_tokens, eos_id=self.tokenizer.eos_id,
        pad_id=self.tokenizer.pad_id)
      ids, lengths = fetch(out.ids), fetch(out.lengths)
      sampled += [row._replace(completion=tuple(ids[i, :lengths[i]].tolist()))
                  for i, row in enumerate(part)]
    return sampled

  def logprobs(self, params: Any, rows: Sequence[Row], *,
               completion_slots: int = 0) -> list[Float[np.ndarray, " n"]]:
    """Log-probs of each row's own completion, the end token included.

    Args:
      params: those of the evaluated model.
      rows: the rows.
      completion_slots: as in `Batches`.
    """
    return self._of_completions(completion_logprobs, params, rows, completion_slots)

  def statistics(self, params: Any, rows: Sequence[Row]) -> list[TokenStatistics]:
    """Statistics of each row's own completion, the end token included: NumPy arrays [n]."""
    return self._of_completions(completion_statistics, params, rows)

  def gradient_norms(self, params: Any, rows: Sequence[Row]) -> Float[np.ndarray, " E"]:
    """Mean over the trained tensors of ‖∂ NLL / ∂θ‖ of each row (the most expensive)."""
    norms = np.zeros(len(rows))
    for indices, batch in self._batches(rows).in_order():
      norms[indices] = fetch(_gradient_norms(
        self.model.with_params(params), self.to_device(batch)))[:len(indices)]
    return norms

  def ends(self, row: Row) -> bool:
    """Whether a row's completion has an end token: a piece of a longer text has none."""
    return row.completion[-1] == self.tokenizer.eos_id

  def _of_completions(self, program, params, rows, completion_slots=0):
    """Of each row, the part of the program's arrays [B, T] that is its own completion's."""
    results: list[Any] = [None] * len(rows)
    for indices, batch in self._batches(rows, completion_slots).in_order():
      arrays = jax.tree.map(fetch, program(self.model.with_params(params), self.to_device(batch)))
      for row, index in enumerate(indices):
        own = np.s_[row, :batch.completion_lengths[row]]
        results[index] = jax.tree.map(lambda x, own=own: x[own], arrays)
    return results

  def _batches(self, rows, completion_slots=0):
    return Batches(tuple(rows), self.batch_size, self.multiple, self.tokenizer.pad_id, seed=0,
                   completion_slots=completion_slots)

  def nll(self, params: Any, examples: Sequence[Example],
          responses: Sequence[str] | None = None) -> Float[np.ndarray, " E"]:
    """Mean NLL per token of each example's response, or of other responses to its prompt."""
    rows = encode(examples, self.tokenizer, max_length=self.max_length, responses=responses)
    return np.array([-values.mean(dtype=np.float64) for values in self.logprobs(params, rows)])

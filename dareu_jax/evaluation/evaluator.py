"""Applies the metrics to a model: greedy answers, likelihoods and attribution scores of a split."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import Batches, encode, prompt_batch
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy
from dareu_jax.logprobs import TokenStatistics, completion_hidden, token_statistics
from dareu_jax.masked import length_mask, masked_mean
from dareu_jax.parallel.hosts import fetch
from dareu_jax.parallel.mesh import is_stacked, path_name


@dataclasses.dataclass(frozen=True)
class Answers:
  """Greedy answers to the prompts of a split, in its order."""

  texts: tuple[str, ...]
  ids: np.ndarray  # [E, T]
  lengths: np.ndarray  # [E] the end token included
  ended: np.ndarray  # [E]

  def as_completions(self, rows):
    """The rows of their queries with these answers as completions."""
    return [row._replace(completion=tuple(ids[:n].tolist()))
            for row, ids, n in zip(rows, self.ids, self.lengths, strict=True)]

  @property
  def text_lengths(self):
    """Tokens of each answer, the end token not counted."""
    return self.lengths - self.ended


@functools.partial(jax.jit, static_argnames="frame")
def completion_statistics(frame, trainable, frozen, batch):
  """logprobs.TokenStatistics of the completion tokens of a data.batches.Batch, [B, T]."""
  model = frame.merge(trainable, frozen)
  time = batch.completion_ids.shape[1]
  hidden = completion_hidden(model.hidden_states(batch.token_ids), batch.prompt_lengths, time)
  return token_statistics(hidden, model.head, batch.completion_ids)


@functools.partial(jax.jit, static_argnames="frame")
def _gradient_norms(frame, trainable, frozen, batch):
  """Mean over the trained tensors of the norm of each row's gradient of its mean NLL: [B].

  Of stacked layers each layer's is a tensor of its own, so that the figure is the unrolled model's.
  """

  def nll(params, row):
    row = jax.tree.map(lambda x: x[None], row)
    logprobs = completion_statistics(frame, params, frozen, row).logprobs
    return -masked_mean(logprobs, length_mask(row.completion_lengths, logprobs.shape[1]))

  def norm(row):
    grads = jax.tree_util.tree_leaves_with_path(jax.grad(nll)(trainable, row))
    return jnp.mean(jnp.concatenate([
      jnp.linalg.norm(g.astype(jnp.float32).reshape(
        len(g) if is_stacked(path_name(path)) else 1, -1), axis=1) for path, g in grads]))

  return jax.lax.map(norm, batch)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """What evaluating needs beside the weights: shapes, tokenizer, how batches reach the devices."""

  frame: Any
  frozen: Any
  tokenizer: Any
  batch_size: int
  multiple: int
  max_length: int
  max_new_tokens: int
  put: Any = lambda batch: batch

  def answers(self, trainable, rows):
    """Greedy answers to the prompts of `rows` (data.batches.Row)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    ids = np.zeros((len(rows), self.max_new_tokens), np.int32)
    lengths, ended = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
    keys = row_keys(jax.random.key(0), np.arange(self.batch_size))  # greedy: never used
    for start in range(0, len(rows), self.batch_size):
      chosen = order[start:start + self.batch_size]
      prompts = prompt_batch([rows[i] for i in chosen], self.batch_size, multiple=self.multiple,
                             pad_id=self.tokenizer.pad_id)
      out = generate(
        self.frame, trainable, self.frozen, *self.put(prompts), keys, strategy=Greedy(),
        max_new_tokens=self.max_new_tokens, eos_id=self.tokenizer.eos_id,
        pad_id=self.tokenizer.pad_id)
      for array, values in ((ids, out.ids), (lengths, out.lengths), (ended, out.ended)):
        array[chosen] = fetch(values)[:len(chosen)]
    texts = tuple(self.tokenizer.decode(row[:n]) for row, n in zip(ids, lengths, strict=True))
    return Answers(texts, ids, lengths, ended)

  def logprobs(self, trainable, rows):
    """Log-probs of each row's own completion, the end token last: list of [n] float32."""
    return [one.logprobs for one in self.statistics(trainable, rows)]

  def statistics(self, trainable, rows):
    """TokenStatistics of each row's own completion, the end token last: list, arrays [n]."""
    results = [None] * len(rows)
    for indices, batch in self._batches(rows).in_order():
      arrays = [fetch(x) for x in completion_statistics(
        self.frame, trainable, self.frozen, self.put(batch))]
      for row, index in enumerate(indices):
        n = batch.completion_lengths[row]
        results[index] = TokenStatistics(*(x[row, :n] for x in arrays))
    return results

  def gradient_norms(self, trainable, rows):
    """Mean over the trained tensors of ‖∂ NLL / ∂θ‖ of each row alone: [E] (the costliest)."""
    norms = np.zeros(len(rows))
    for indices, batch in self._batches(rows).in_order():
      norms[indices] = fetch(_gradient_norms(
        self.frame, trainable, self.frozen, self.put(batch)))[:len(indices)]
    return norms

  def _batches(self, rows):
    return Batches(tuple(rows), self.batch_size, self.multiple, self.tokenizer.pad_id, seed=0)

  def nll(self, trainable, examples, responses=None):
    """Mean NLL per token of each example's response, or of other responses to its prompt: [E]."""
    rows = encode(examples, self.tokenizer, max_length=self.max_length, responses=responses)
    return np.array([-values.mean(dtype=np.float64) for values in self.logprobs(trainable, rows)])

"""Applies the metrics to a model: greedy answers, likelihoods and attribution scores of a split."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dareu_jax.data.batches import Batches, encode, prompt_batch
from dareu_jax.evaluation import metrics
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy
from dareu_jax.logprobs import completion_hidden, logprobs_and_entropy


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
def completion_logprobs(frame, trainable, frozen, batch):
  """(log-probs, entropies) at the completion tokens of a data.batches.Batch, [B, T] float32."""
  model = frame.merge(trainable, frozen)
  time = batch.completion_ids.shape[1]
  hidden = completion_hidden(model.hidden_states(batch.token_ids), batch.prompt_lengths, time)
  return logprobs_and_entropy(hidden, model.head, batch.completion_ids)


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
        array[chosen] = np.asarray(values)[:len(chosen)]
    texts = tuple(self.tokenizer.decode(row[:n]) for row, n in zip(ids, lengths, strict=True))
    return Answers(texts, ids, lengths, ended)

  def logprobs(self, trainable, rows):
    """Log-probs of each row's own completion, the end token last: list of [n] float32."""
    return self.logprobs_and_entropies(trainable, rows)[0]

  def logprobs_and_entropies(self, trainable, rows):
    """The same with the entropies of the distributions: two lists of [n] float32."""
    batches = Batches(tuple(rows), self.batch_size, self.multiple, self.tokenizer.pad_id, seed=0)
    results = [None] * len(rows), [None] * len(rows)
    for indices, batch in batches.in_order():
      both = completion_logprobs(self.frame, trainable, self.frozen, self.put(batch))
      for result, values in zip(results, map(np.asarray, both), strict=True):
        for row, index in enumerate(indices):
          result[index] = values[row, :batch.completion_lengths[row]]
    return results

  def nll(self, trainable, examples, responses=None):
    """Mean NLL per token of each example's response, or of other responses to its prompt: [E]."""
    rows = encode(examples, self.tokenizer, max_length=self.max_length, responses=responses)
    return np.array([-values.mean(dtype=np.float64) for values in self.logprobs(trainable, rows)])

  def truth_ratio(self, trainable, examples):
    """R of each example that has a paraphrase and perturbed answers: [E'] (may be empty)."""
    complete = [e for e in examples if e.paraphrased_response and e.perturbed_responses]
    if not complete:
      return np.zeros(0)
    count = min(len(e.perturbed_responses) for e in complete)
    paraphrased = self.nll(trainable, complete, [e.paraphrased_response for e in complete])
    perturbed = np.stack(
      [self.nll(trainable, complete, [e.perturbed_responses[j] for e in complete])
       for j in range(count)], axis=1)
    return metrics.truth_ratio(paraphrased, perturbed)

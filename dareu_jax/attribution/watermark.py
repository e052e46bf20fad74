"""Whose watermark a text carries: an attribution function that reads `data.watermarks`."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.data.watermarks import SYMBOLS, read

ERROR_RATE = 0.01  # ε: share of symbols that are another one than the owner's


def posterior(runs: tuple[str, ...], marks: Sequence[str]) -> Float[np.ndarray, " O"]:
  """p(owner | symbols), from equal chances of all owners.

      p(o | s) ∝ Π_runs Π_j p(s_j | m_o[j mod n]),    p(s | m) = 1 - ε if s = m, else ε / (|S| - 1)

  Each run of symbols is read from the beginning of a mark of n symbols.

  Args:
    runs: the symbols of a text, as `data.watermarks.read` finds them.
    marks: m_o, one for each owner.
  """
  right, wrong = np.log1p(-ERROR_RATE), np.log(ERROR_RATE / (len(SYMBOLS) - 1))
  loglik = np.array([
    sum(right if symbol == mark[j % len(mark)] else wrong
        for run in runs for j, symbol in enumerate(run))
    for mark in marks], float)
  return special.softmax(loglik)


def prefix_scores(ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"],
                  marks: Sequence[str], is_forget: Bool[np.ndarray, " O"],
                  tokenizer: Tokenizer) -> Float[np.ndarray, "B T"]:
  """b(y_≤t) = Σ_{i in F} p(i | symbols of y_≤t); before any symbol |F| / O.

  Args:
    ids: responses.
    lengths: their lengths.
    marks: one for each owner.
    is_forget: which owners are to be forgotten.
    tokenizer: turns ids into text. A token may end within a symbol, which then counts with the
      token that completes it.

  Returns: float32; beyond a row's length the score of the whole.
  """

  @functools.cache
  def score(runs):
    return posterior(runs, marks)[is_forget].sum()

  scores = np.full(ids.shape, score(()), np.float32)
  for i, (row, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
    for t in range(length):
      scores[i, t:] = score(read(tokenizer.decode(row[:t + 1])))
  return scores

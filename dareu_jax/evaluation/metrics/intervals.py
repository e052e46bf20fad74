"""Confidence intervals over seeds and examples, and paired comparisons.

`scipy.stats.bootstrap` draws the same samples, but takes the quantile (1 - .95) / 2, which is not
.025 to the last bit, and refuses a single example; `scipy.stats.permutation_test` draws other
signs, and doubles a one-sided p. To reproduce the numbers of earlier runs, both are written here.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def mean_and_ci95(values: ArrayLike) -> tuple[float, float]:
  """Mean over seeds and half the width of its 95% t-interval (nan for one value).

  Args:
    values: [S] float; one per seed.
  """
  seeds = np.asarray(values, np.float64)
  if len(seeds) < 2:
    return float(seeds.mean()), float("nan")
  half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / np.sqrt(len(seeds))
  return float(seeds.mean()), float(half)


def bootstrap_ci95(values: ArrayLike, *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
  """95% percentile interval of the mean over examples: (low, high).

  Args:
    values: [E] float.
    seed, draws: seed and number of the resamples.
  """
  examples = np.asarray(values, np.float64)
  rng = np.random.default_rng(seed)
  means = examples[rng.integers(0, len(examples), (draws, len(examples)))].mean(axis=1)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


class PairedDifference(NamedTuple):
  """Mean difference on the same examples, its 95% interval, and the p of no difference."""

  mean: float
  low: float
  high: float
  p: float


def paired_difference(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0,
                      draws: int = 2000) -> PairedDifference:
  """Compares two methods example by example.

  Args:
    ours, theirs: [E] float; a metric of the same examples, in the same order.
    seed, draws: seed and number of the resamples and of the permutations.

  Returns: PairedDifference: a bootstrap interval, and the p of a two-sided sign-flip permutation
    test, at least 1 / (draws + 1).
  """
  difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  rng = np.random.default_rng((seed, 1))
  signs = rng.choice([-1.0, 1.0], (draws, len(difference)))
  flipped = np.abs(signs @ difference) >= np.abs(difference.sum()) - 1e-12
  low, high = bootstrap_ci95(difference, seed=seed, draws=draws)
  return PairedDifference(float(difference.mean()), low, high,
                          float((flipped.sum() + 1) / (draws + 1)))

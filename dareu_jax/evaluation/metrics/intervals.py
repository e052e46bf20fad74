"""How sure a metric is: intervals over seeds and examples, and paired comparisons.

`scipy.stats.bootstrap` draws the same samples, but takes the quantile (1 - .95) / 2, which is not
.025 to the last bit, and refuses a single example; `scipy.stats.permutation_test` draws other
signs, and doubles a one-sided p. Neither gives the numbers of earlier runs: both stand here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
  """Mean over seeds and half the width of its 95% t-interval (nan for one value)."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float(values.mean()), float("nan")
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean()), float(half)


def bootstrap_ci95(values: Sequence[float], *, seed: int = 0,
                   draws: int = 2000) -> tuple[float, float]:
  """95% percentile interval of the mean over examples: (low, high)."""
  values = np.asarray(values, np.float64)
  rng = np.random.default_rng(seed)
  means = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


class PairedDifference(NamedTuple):
  """Mean difference on the same examples, its 95% interval, and the p of no difference."""

  mean: float
  low: float
  high: float
  p: float


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0,
                      draws: int = 2000) -> PairedDifference:
  """Compares two methods example by example.

  Args:
    ours, theirs: a metric of the same examples, in the same order.
    seed, draws: of the bootstrap and of the permutations.

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

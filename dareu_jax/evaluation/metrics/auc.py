"""The area under the ROC curve, by ranks."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
  """Probability that a positive scores higher than a negative; ties count half.

  NaN if there are none of either kind, or if a score is not finite.

  Args:
    positive, negative: [P], [N] float.

  Source: Mann and Whitney 1947, as U / (P N).
  """
  wins, losses = np.ravel(positive), np.ravel(negative)
  scores = np.r_[wins, losses]
  if not (wins.size and losses.size and np.isfinite(scores).all()):
    return float("nan")
  ranks = stats.rankdata(scores)[:wins.size]
  return float((ranks.sum() - wins.size * (wins.size + 1) / 2) / (wins.size * losses.size))

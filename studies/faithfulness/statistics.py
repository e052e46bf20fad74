"""The statistics of a study: pure functions of arrays.

Q queries, O owners, M subsets of the owners, R trainings (seeds) of each subset.

A rank correlation with a constant is undefined. It is NaN here, and every mean over queries reports
the share of queries with a value.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from dareu_jax.evaluation.metrics.auc import auc

Interval = tuple[float, float]
Scores = Float[np.ndarray, "Q O"]
Values = Float[np.ndarray, " Q"]


class Estimate(NamedTuple):
  """A number with its intervals.

  Attributes:
    value: the mean over queries.
    by_queries, by_retrainings, by_both: 95% percentile intervals from resampling these.
    defined: share of queries that have a value.
  """

  value: float
  by_queries: Interval
  by_retrainings: Interval
  by_both: Interval
  defined: float


def spearman(first: Float[np.ndarray, "... N"],
             second: Float[np.ndarray, "... N"]) -> Float[np.ndarray, "..."]:
  """Rank correlation along the last axis; ties get their mean rank.

  The two are broadcast against each other.

  Returns: float64; NaN if either is constant.
  """
  first, second = (stats.rankdata(x, axis=-1) for x in (first, second))
  first, second = (x - x.mean(axis=-1, keepdims=True) for x in (first, second))
  squares = (first**2).sum(axis=-1) * (second**2).sum(axis=-1)
  products = (first * second).sum(axis=-1)
  return np.where(squares > 0, products / np.sqrt(np.where(squares > 0, squares, 1.0)), np.nan)


def subset_scores(scores: Scores, members: Bool[np.ndarray, "M O"]) -> Float[np.ndarray, "Q M"]:
  """Scores of groups of owners: the sums of their scores."""
  return np.asarray(scores, np.float64) @ np.asarray(members, np.float64).T


def linear_datamodeling_score(scores: Scores, members: Bool[np.ndarray, "M O"],
                              logprobs: Float[np.ndarray, "M Q"]) -> Values:
  """LDS of each query, with owners in place of examples.

      LDS(q) = Spearman over j of ( Σ_{o in S_j} a_o(q),  log p(q; θ_{S_j}) )

  Args:
    scores: a_o(q), larger where owner o helps q more.
    members: S_j.
    logprobs: averaged over the trainings of S_j.

  Returns: NaN where either side is constant.

  Source: Park et al. 2023 (TRAK); Ilyas et al. 2022.
  """
  return spearman(subset_scores(scores, members), np.asarray(logprobs).T)


def lds_given_the_owner(scores: Scores, members: Bool[np.ndarray, "M O"],
                        logprobs: Float[np.ndarray, "M Q"],
                        owner_of: Int[np.ndarray, " Q"]) -> Values:
  """Mean of the LDS among subsets with the query's own owner and among those without.

  The plain LDS is dominated by the presence of the own owner; here it is held fixed.

  Args:
    scores, members, logprobs: as for `linear_datamodeling_score`.
    owner_of: the owner whom each query is about.

  Returns: NaN if neither kind of subset has a value.
  """
  first, second = _wins(subset_scores(scores, members)), _wins(np.asarray(logprobs).T)
  with_owner = np.asarray(members)[:, owner_of].T
  halves = np.stack([_spearman_within(first, second, kept) for kept in (with_owner, ~with_owner)])
  count = (~np.isnan(halves)).sum(axis=0)
  return np.where(count > 0, np.nansum(halves, axis=0) / np.maximum(count, 1), np.nan)


def _wins(x):
  """x [Q, M] -> [Q, M, M] float32: 1 where entry i is above entry j, a half if equal."""
  # Sums over groups of owners may differ only in the last digit.
  x = np.round(np.asarray(x, np.float64), 12)
  return ((x[:, :, None] > x[:, None, :]) + 0.5 * (x[:, :, None] == x[:, None, :])).astype(
    np.float32)


def _spearman_within(first, second, kept):
  """Rank correlation of each query over its kept subsets: [Q, M, M] twice, [Q, M] bool -> [Q]."""
  kept = kept.astype(np.float32)
  count = np.maximum(kept.sum(axis=1, keepdims=True), 1)
  ranks = [(x @ kept[..., None])[..., 0] for x in (first, second)]
  first_ranks, second_ranks = (
    kept * (r - (r * kept).sum(axis=1, keepdims=True) / count) for r in ranks)
  squares = (first_ranks**2).sum(axis=1) * (second_ranks**2).sum(axis=1)
  is_defined = (squares > 1e-6) & (kept.sum(axis=1) > 2)
  products = (first_ranks * second_ranks).sum(axis=1)
  return np.where(is_defined, products / np.sqrt(np.where(is_defined, squares, 1)), np.nan)


def share_significant(correlations: Sequence[float] | np.ndarray, count: int,
                      level: float = 0.05) -> float:
  """Share of rank correlations over `count` points whose two-sided p-value is below `level`.

  By the t-distribution of r √((n-2) / (1-r²)).
  """
  r = np.clip(np.asarray(correlations, np.float64), -1 + 1e-12, 1 - 1e-12)
  r = r[~np.isnan(r)]
  if not len(r):
    return float("nan")
  p = 2 * stats.t.sf(np.abs(r) * np.sqrt((count - 2) / (1 - r**2)), count - 2)
  return float(np.mean(p < level))


def over_owners(scores: Scores, deltas: Float[np.ndarray, "Q O"],
                left_out: Sequence[int] | Int[np.ndarray, " Q"] | None = None) -> Values:
  """Rank correlation over owners between scores and leave-owner-out differences, per query.

  Args:
    scores: score of each owner.
    deltas: Δ of each owner.
    left_out: an owner to exclude for each query, or None.
  """
  if left_out is None:
    return spearman(scores, deltas)
  keep = np.arange(deltas.shape[1]) != np.asarray(left_out)[:, None]
  shape = (len(deltas), -1)
  return spearman(scores[keep].reshape(shape), deltas[keep].reshape(shape))


def top_owner_hits(scores: Scores, deltas: Float[np.ndarray, "Q O"]) -> Values:
  """Whether the owner with the highest score is the one whose absence costs most: 0 or 1.

  Owners that tie for the highest score count fractionally, so that a constant score gets chance.
  """
  best = np.asarray(scores) == np.max(scores, axis=1, keepdims=True)
  right = np.arange(best.shape[1]) == np.argmax(deltas, axis=1)[:, None]
  return (best & right).sum(axis=1) / best.sum(axis=1)


def detection_auc(scores: Scores, deltas: Float[np.ndarray, "Q O"], threshold: float) -> float:
  """AUC of separating (query, owner) pairs with Δ > threshold from the others by their score.

  NaN if one of the two kinds is missing.
  """
  scores, labels = np.asarray(scores), np.asarray(deltas) > threshold
  return auc(scores[labels], scores[~labels])


def spearman_brown(correlation: float, factor: float = 2.0) -> float:
  """Reliability of a mean over `factor` times as many trainings: k r / (1 + (k-1) r)."""
  return factor * correlation / (1 + (factor - 1) * correlation)


def half_correlations(values: Float[np.ndarray, "R Q N"]) -> Values:
  """Rank correlation of the means of two halves of the trainings, averaged over every way to part
  them (with an odd number, one training is left out each time).

  Args:
    values: values of at least two trainings.

  Returns: NaN if a half is constant.
  """
  values = np.asarray(values, np.float64)
  half = len(values) // 2
  return np.mean([
    spearman(values[list(first)].mean(axis=0), values[list(second)].mean(axis=0))
    for first, second in _halves(len(values), half)], axis=0)


def reliability(correlations: Values, trainings: int) -> float:
  """Expected correlation of the mean over all trainings with that over as many others.

  The mean over queries is stepped up, not each query's value: few points make those noisy, and the
  formula is not linear.

  Args:
    correlations: from `half_correlations`.
    trainings: number of trainings.

  Returns: the reliability; values at or below 0 are returned unchanged.

  Source: Spearman 1910; Brown 1910.
  """
  mean = defined_mean(correlations)
  return float(spearman_brown(mean, trainings / (trainings // 2))) if mean > 0 else mean


def _halves(count: int, half: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
  for first in itertools.combinations(range(count), half):
    rest = [i for i in range(count) if i not in first]
    for second in itertools.combinations(rest, half):
      if first < second:
        yield first, second


def ceiling(reliability: float) -> float:
  """The expected correlation of a perfect score with a truth of this reliability.

  Source: the correction for attenuation, Spearman 1904.
  """
  return float(np.sqrt(max(reliability, 0.0)))


def defined_mean(values: Sequence[float] | np.ndarray) -> float:
  """Mean over the defined values; NaN if there are none."""
  values = np.asarray(values, np.float64)
  kept = values[~np.isnan(values)]
  return float(kept.mean()) if len(kept) else float("nan")


def bootstrap(statistic: Callable[[Int[np.ndarray, " J"]], Values], num_queries: int,
              num_retrainings: int, *, resamples: int, seed: int) -> Estimate:
  """Mean over queries of a statistic, with three percentile intervals.

  Args:
    statistic: function of retraining indices (with repeats) that returns a value per query.
    num_queries, num_retrainings: numbers of queries and retrainings.
    resamples: resamples per interval.
    seed: seed of the resampling.

  Returns: Estimate. 'by_both' draws queries and retrainings at once: new questions to new models.
  """
  rng = np.random.default_rng(seed)
  whole = np.asarray(statistic(np.arange(num_retrainings)), np.float64)
  queries = rng.integers(0, num_queries, (resamples, num_queries))
  drawn = [np.asarray(statistic(rng.integers(0, num_retrainings, num_retrainings)), np.float64)
           for _ in range(resamples)]
  return Estimate(
    defined_mean(whole),
    percentiles([defined_mean(whole[q]) for q in queries]),
    percentiles([defined_mean(values) for values in drawn]),
    percentiles([defined_mean(v[q]) for v, q in zip(drawn, queries, strict=True)]),
    float(np.mean(~np.isnan(whole))))


def percentiles(values: Iterable[float]) -> Interval:
  """The 95% interval of resampled values; NaN if there are none."""
  values = np.array(list(values), np.float64)
  values = values[~np.isnan(values)]
  if not len(values):
    return float("nan"), float("nan")
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)


def alarms(scores: Sequence[float] | np.ndarray, distances: Sequence[float] | np.ndarray, *,
           score_margin: float = 0.0, distance_margins: float | np.ndarray = 0.0) -> list[int]:
  """Steps at which a score falls while the distance that it should measure grows.

  Args:
    scores, distances: values of the checkpoints in order.
    score_margin: the score must fall by more than this.
    distance_margins: the distance must grow by more than this; one for all steps, or one per step.

  Returns: the checkpoint at the end of each such step.
  """
  falls = -np.diff(scores) > score_margin
  grows = np.diff(distances) > distance_margins
  return [int(i) + 1 for i in np.flatnonzero(falls & grows)]


def correlation_over_checkpoints(
    scores: Sequence[float] | np.ndarray, distances: Sequence[float] | np.ndarray, *,
    resamples: int, seed: int) -> tuple[float, Interval]:
  """Spearman over the checkpoints of a run: (value, 95% interval).

  Successive checkpoints are dependent, so the interval (a bootstrap over them) is too narrow and
  only a guide.
  """
  scores, distances = np.asarray(scores, np.float64), np.asarray(distances, np.float64)
  rng = np.random.default_rng(seed)
  draws = rng.integers(0, len(scores), (resamples, len(scores)))
  values = spearman(scores[draws], distances[draws])
  return float(spearman(scores, distances)), percentiles(values)

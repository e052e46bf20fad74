"""Figures (a) to (d): each score against the retrainings, with intervals and protocol."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from studies.faithfulness import statistics
from studies.faithfulness.statistics import Estimate, percentiles
from studies.faithfulness.truth import Truth

Scores = Float[np.ndarray, "Q O"]
Statistic = Callable[[Int[np.ndarray, " J"]], Float[np.ndarray, " Q"]]


def compare_with_retraining(
    truth: Truth, scores: dict[str, Scores], owner_of: Int[np.ndarray, " Q"], *, resamples: int,
    seed: int) -> dict[str, Any]:
  """All metrics for one set of queries.

  Args:
    truth: Truth of the queries.
    scores: {score name: scores}.
    owner_of: owner of each query; -1 if it is about none of the owners.
    resamples, seed: number and seed of the bootstrap resamples.

  Returns: {"scores": {score name: {metric: Estimate, ...}}, "ceiling": {...}, "threshold",
    "queries", "mean_delta"}.
  """
  is_owned = bool(np.all(np.asarray(owner_of) >= 0))
  threshold = noise_threshold(truth.deltas)
  limits = ceilings(truth, owner_of if is_owned else None, resamples=resamples, seed=seed)
  result = {}
  for name, score in scores.items():
    if name == "owner label" and not is_owned:
      continue
    metrics: dict[str, Any] = {
      key: _bootstrap(statistic, truth, over, resamples, seed) for key, (statistic, over)
      in _statistics(truth, score, owner_of, is_owned).items()}
    lds = statistics.linear_datamodeling_score(score, truth.members, truth.halves.mean(axis=0))
    metrics["lds_significant"] = statistics.share_significant(lds, len(truth.members))
    for key in limits:
      if key in metrics:
        limit = limits[key]["ceiling"]
        metrics[f"{key}_over_ceiling"] = metrics[key].value / limit if limit else None
    metrics["auc"] = _auc(truth, score, threshold, resamples, seed)
    result[name] = metrics
  return {"scores": result, "ceiling": limits, "threshold": threshold,
          "queries": len(owner_of), "mean_delta": _mean_deltas(truth, owner_of, is_owned)}


def _statistics(truth: Truth, score: Scores, owner_of: Int[np.ndarray, " Q"],
                is_owned: bool) -> dict[str, tuple[Statistic, str]]:
  """{metric: (statistic of retrainings, which retrainings)}."""
  halves, deltas = truth.halves.mean(axis=0), truth.deltas

  def lds(subsets):
    return statistics.linear_datamodeling_score(score, truth.members[subsets], halves[subsets])

  def lds_given_the_owner(subsets):
    return statistics.lds_given_the_owner(
      score, truth.members[subsets], halves[subsets], owner_of)

  def over_owners(seeds):
    return statistics.over_owners(score, deltas[seeds].mean(axis=0))

  def over_other_owners(seeds):
    return statistics.over_owners(score, deltas[seeds].mean(axis=0), owner_of)

  def top1(seeds):
    return statistics.top_owner_hits(score, deltas[seeds].mean(axis=0))

  result = {"lds": (lds, "subsets"), "over_owners": (over_owners, "seeds"), "top1": (top1, "seeds")}
  if is_owned:
    result |= {"lds_given_the_owner": (lds_given_the_owner, "subsets"),
               "over_other_owners": (over_other_owners, "seeds")}
  return result


def _bootstrap(statistic, truth, over, resamples, seed) -> Estimate:
  retrainings = len(truth.members) if over == "subsets" else len(truth.full)
  return statistics.bootstrap(
    statistic, truth.full.shape[1], retrainings, resamples=resamples, seed=seed)


def _auc(truth, score, threshold, resamples, seed) -> Estimate:
  """AUC of Δ > τ over all (query, owner) pairs, not a mean over queries."""
  deltas, rng = truth.deltas, np.random.default_rng(seed)
  num_seeds, num_queries = len(deltas), len(score)
  all_queries, all_seeds = np.arange(num_queries), np.arange(num_seeds)

  def auc(queries, seeds):
    return statistics.detection_auc(
      score[queries], deltas[seeds][:, queries].mean(axis=0), threshold)

  draws = [(rng.integers(0, num_queries, num_queries), rng.integers(0, num_seeds, num_seeds))
           for _ in range(resamples)]
  value = auc(all_queries, all_seeds)
  return Estimate(
    value, percentiles([auc(queries, all_seeds) for queries, _ in draws]),
    percentiles([auc(all_queries, seeds) for _, seeds in draws]),
    percentiles([auc(queries, seeds) for queries, seeds in draws]), float(np.isfinite(value)))


def noise_threshold(deltas: Float[np.ndarray, "R Q O"]) -> float:
  """τ: twice the standard error of a Δ averaged over its trainings."""
  return float(2 * np.sqrt(np.mean(np.var(deltas, axis=0, ddof=1)) / len(deltas)))


def ceilings(truth: Truth, owner_of: Int[np.ndarray, " Q"] | None, *, resamples: int,
             seed: int) -> dict[str, dict[str, Any]]:
  """(d): reliability of the truth by split halves of the trainings, and the ceiling it sets.

  Returns: {metric: {"reliability", "ceiling", and their "_interval", which draws queries}}; metrics
    that exclude the own owner only if there is one (`owner_of` not None).
  """
  repeats, num_seeds = len(truth.halves), len(truth.full)
  half_correlations = statistics.half_correlations
  trainings_of = {"lds": (half_correlations(np.swapaxes(truth.halves, 1, 2)), repeats),
                  "over_owners": (half_correlations(truth.deltas), num_seeds)}
  if owner_of is not None:
    owner_of = np.asarray(owner_of)
    keep = np.arange(truth.members.shape[1]) != owner_of[:, None]
    other_deltas = np.stack([d[keep].reshape(len(owner_of), -1) for d in truth.deltas])
    trainings_of["over_other_owners"] = (half_correlations(other_deltas), num_seeds)
    trainings_of["lds_given_the_owner"] = (_given_the_owner(truth, owner_of), repeats)
  rng = np.random.default_rng(seed)
  draws = rng.integers(0, truth.full.shape[1], (resamples, truth.full.shape[1]))
  result = {}
  for key, (correlations, trainings) in trainings_of.items():
    value = statistics.reliability(correlations, trainings)
    drawn = [statistics.reliability(correlations[d], trainings) for d in draws]
    result[key] = {
      "reliability": value, "reliability_interval": percentiles(drawn),
      "ceiling": statistics.ceiling(value),
      "ceiling_interval": percentiles(map(statistics.ceiling, drawn))}
  return result


def _given_the_owner(truth, owner_of):
  """Half correlations among the subsets with the own owner and among those without: their mean."""
  result = np.zeros(len(owner_of))
  for owner in np.unique(owner_of):
    own = np.flatnonzero(owner_of == owner)
    with_owner = truth.members[:, owner]
    result[own] = np.mean([
      statistics.half_correlations(np.swapaxes(truth.halves[:, kept][:, :, own], 1, 2))
      for kept in (with_owner, ~with_owner)], axis=0)
  return result


def _mean_deltas(truth, owner_of, is_owned):
  """Mean Δ of the own owner and of the others, in nats a token."""
  deltas = truth.deltas.mean(axis=0)
  if not is_owned:
    return {"others": float(deltas.mean())}
  own = np.arange(deltas.shape[1]) == np.asarray(owner_of)[:, None]
  return {"own": float(deltas[own].mean()), "others": float(deltas[~own].mean())}

"""Figures (a) to (d): each score against the retrainings, with intervals and protocol."""

import numpy as np

from studies.faithfulness import statistics as st
from studies.faithfulness.truth import Truth


def against_retraining(truth: Truth, scores, owner_of, *, resamples, seed):
  """All figures of one set of queries.

  Args:
    truth: Truth of its queries.
    scores: {score name: [Q, O]}.
    owner_of: [Q] int; -1 where a query is about none of the owners.
    resamples, seed: of the bootstraps.

  Returns: {"scores": {score name: {figure: Figure, ...}}, "ceiling": {...}, "threshold", "deltas"}.
  """
  owned = bool(np.all(np.asarray(owner_of) >= 0))
  threshold = noise_threshold(truth.deltas)
  limits = ceilings(truth, owner_of if owned else None, resamples=resamples, seed=seed)
  result = {}
  for name, score in scores.items():
    if name == "owner label" and not owned:
      continue
    found = {key: _bootstrap(statistic, truth, over, resamples, seed)
             for key, (statistic, over) in _statistics(truth, score, owner_of, owned).items()}
    lds = st.linear_datamodeling_score(score, truth.members, truth.halves.mean(axis=0))
    found["lds_significant"] = st.share_significant(lds, len(truth.members))
    for key in limits:
      if key in found:
        limit = limits[key]["ceiling"]
        found[f"{key}_over_ceiling"] = found[key].value / limit if limit else None
    found["auc"] = _auc(truth, score, threshold, resamples, seed)
    result[name] = found
  return {"scores": result, "ceiling": limits, "threshold": threshold,
          "queries": len(owner_of), "mean_delta": _mean_deltas(truth, owner_of, owned)}


def _statistics(truth, score, owner_of, owned):
  """{figure: (statistic of retrainings, which retrainings)}."""
  halves, deltas = truth.halves.mean(axis=0), truth.deltas

  def lds(j):
    return st.linear_datamodeling_score(score, truth.members[j], halves[j])

  def lds_given_the_owner(j):
    return st.lds_given_the_owner(score, truth.members[j], halves[j], owner_of)

  def over_owners(r):
    return st.over_owners(score, deltas[r].mean(axis=0))

  def over_other_owners(r):
    return st.over_owners(score, deltas[r].mean(axis=0), owner_of)

  def top1(r):
    return st.top_owner_hits(score, deltas[r].mean(axis=0))

  found = {"lds": (lds, "subsets"), "over_owners": (over_owners, "seeds"), "top1": (top1, "seeds")}
  if owned:
    found |= {"lds_given_the_owner": (lds_given_the_owner, "subsets"),
              "over_other_owners": (over_other_owners, "seeds")}
  return found


def _bootstrap(statistic, truth, over, resamples, seed):
  retrainings = len(truth.members) if over == "subsets" else len(truth.full)
  return st.bootstrap(statistic, truth.full.shape[1], retrainings, resamples=resamples, seed=seed)


def _auc(truth, score, threshold, resamples, seed):
  """AUC of Δ > τ over all (query, owner) pairs: a number of the pairs, not a mean over queries."""
  deltas, rng = truth.deltas, np.random.default_rng(seed)
  seeds, queries = len(deltas), len(score)
  everything = np.arange(queries), np.arange(seeds)

  def of(q, r):
    return st.detection_auc(score[q], deltas[r][:, q].mean(axis=0), threshold)

  draws = [(rng.integers(0, queries, queries), rng.integers(0, seeds, seeds))
           for _ in range(resamples)]
  value = of(*everything)
  return st.Figure(
    value, st.percentiles([of(q, everything[1]) for q, _ in draws]),
    st.percentiles([of(everything[0], r) for _, r in draws]),
    st.percentiles([of(q, r) for q, r in draws]), float(np.isfinite(value)))


def noise_threshold(deltas):
  """τ: twice the standard error of a Δ that is averaged over its trainings.

  Args:
    deltas: [R, Q, O].
  """
  return float(2 * np.sqrt(np.mean(np.var(deltas, axis=0, ddof=1)) / len(deltas)))


def ceilings(truth: Truth, owner_of, *, resamples, seed):
  """(d): reliability of the truth by split halves of the trainings, and the ceiling it sets.

  Returns: {figure: {"reliability", "ceiling", and their "_interval", which draws queries}}; of what
    leaves out the own owner only where there is one (`owner_of` not None).
  """
  several, seeds = len(truth.halves), len(truth.full)
  found = {"lds": (st.half_correlations(np.swapaxes(truth.halves, 1, 2)), several),
           "over_owners": (st.half_correlations(truth.deltas), seeds)}
  if owner_of is not None:
    owner_of = np.asarray(owner_of)
    keep = np.arange(truth.members.shape[1]) != owner_of[:, None]
    others = np.stack([d[keep].reshape(len(owner_of), -1) for d in truth.deltas])
    found["over_other_owners"] = (st.half_correlations(others), seeds)
    found["lds_given_the_owner"] = (_given_the_owner(truth, owner_of), several)
  rng = np.random.default_rng(seed)
  draws = rng.integers(0, truth.full.shape[1], (resamples, truth.full.shape[1]))
  result = {}
  for key, (correlations, trainings) in found.items():
    value = st.reliability(correlations, trainings)
    drawn = [st.reliability(correlations[d], trainings) for d in draws]
    result[key] = {
      "reliability": value, "reliability_interval": st.percentiles(drawn),
      "ceiling": st.ceiling(value), "ceiling_interval": st.percentiles(map(st.ceiling, drawn))}
  return result


def _given_the_owner(truth, owner_of):
  """Half correlations among the subsets with the own owner and among those without: their mean."""
  result = np.zeros(len(owner_of))
  for owner in np.unique(owner_of):
    mine = np.flatnonzero(owner_of == owner)
    held = truth.members[:, owner]
    result[mine] = np.mean([
      st.half_correlations(np.swapaxes(truth.halves[:, kept][:, :, mine], 1, 2))
      for kept in (held, ~held)], axis=0)
  return result


def _mean_deltas(truth, owner_of, owned):
  """Mean Δ of the own owner and of the others, in nats a token."""
  deltas = truth.deltas.mean(axis=0)
  if not owned:
    return {"others": float(deltas.mean())}
  own = np.arange(deltas.shape[1]) == np.asarray(owner_of)[:, None]
  return {"own": float(deltas[own].mean()), "others": float(deltas[~own].mean())}

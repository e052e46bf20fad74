"""Figure (g): texts on which a score should know better, a second classifier, other weights."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from studies.faithfulness.queries import Queries
from studies.faithfulness.scores import (
  TEXT_ONLY,
  Scores,
  load_gradient_scores,
  owner_documents,
  save_gradient_scores,
  tf_idf,
)
from studies.faithfulness.statistics import defined_mean, spearman
from studies.faithfulness.study import Study
from studies.faithfulness.truth import Truth


def score_texts(study: Study, queries: dict[str, Queries],
                truths: dict[str, Truth]) -> dict[str, dict[str, Any]]:
  """Scores of the text readers on each set.

  Args:
    study: Study.
    queries: {set name: Queries}.
    truths: {set name: Truth} for the sets with log-probs.

  Returns: {set name: {"meaning", "queries", "mean_delta" (own owner's, where known), reader:
    {"accuracy", "own", "top"}}}; `accuracy` and `own` (mean score of the owner whom the query is
    about) are None if there is none; `top` is the mean highest score.
  """
  documents, result = owner_documents(study), {}
  for name, query_set in queries.items():
    owner_of = query_set.owner_of
    is_owned, rows = bool(np.all(owner_of >= 0)), np.arange(len(owner_of))
    metrics: dict[str, Any] = {
      "meaning": query_set.meaning, "queries": len(query_set), "mean_delta": None}
    if is_owned and name in truths:
      deltas = truths[name].deltas.mean(axis=0)
      metrics["mean_delta"] = float(deltas[rows, owner_of].mean())
    for reader in TEXT_ONLY:
      scores = (tf_idf(query_set.texts, documents) if reader == "tf-idf"
                else study.owner_scores(reader, query_set.rows))
      top = scores.max(axis=1)
      metrics[reader] = {"top": float(top.mean()), "accuracy": None, "own": None}
      if is_owned:
        right = (scores == top[:, None])[rows, owner_of]
        # A text that shares no word with any owner has none, not the first.
        metrics[reader]["accuracy"] = float(np.mean(right & (scores.min(axis=1) < top)))
        metrics[reader]["own"] = float(scores[rows, owner_of].mean())
    result[name] = metrics
  return result


def agreement(first: Float[np.ndarray, "Q O"], second: Float[np.ndarray, "Q O"],
              owner_of: Int[np.ndarray, " Q"]) -> dict[str, float]:
  """How far two classifiers agree: {"top1", "own_owner_spearman"}."""
  rows = np.arange(len(first))
  return {"top1": float(np.mean(first.argmax(axis=1) == second.argmax(axis=1))),
          "own_owner_spearman": float(spearman(first[rows, owner_of], second[rows, owner_of]))}


def without_training(study: Study, query_set: Queries,
                     scores: dict[str, Scores]) -> dict[str, float]:
  """Model randomization: gradient scores at untrained adapters, compared with `scores`.

  A score that depends on the model must change with it. A score that reads only the text cannot:
  its correlation is 1 by construction.

  Args:
    study: Study.
    query_set: the queries.
    scores: their "gradient cosine" and "influence" at the full model.

  Returns: {score name: mean Spearman over owners}.
  """
  stage = "randomized"
  with study.workdir.stage(stage, study.fingerprints[stage]) as store:
    if store is not None:
      save_gradient_scores(study, stage, study.models.base.params, query_set.rows)
  untrained = load_gradient_scores(study, stage, len(query_set))
  return {name: 1.0 for name in TEXT_ONLY} | {
    name: defined_mean(spearman(scores[name], values)) for name, values in untrained.items()}

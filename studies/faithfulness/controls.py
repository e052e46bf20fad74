"""Figure (g): texts on which a score should know better, a second classifier, other weights."""

import numpy as np

from dareu_jax.pipeline.workdir import fingerprint
from studies.faithfulness import retraining
from studies.faithfulness import scores as S
from studies.faithfulness import statistics as st
from studies.faithfulness.world import Study

READERS = ("classifier", "judge", "with none", "tf-idf")


def of_texts(study: Study, queries, truths):
  """What the text readers say of each set.

  Args:
    queries: {set name: Queries}.
    truths: {set name: Truth} of those whose log-probs were taken.

  Returns: {set name: {"meaning", "queries", "mean_delta" (own owner's, where known), reader:
    {"accuracy", "own", "top"}}}; `accuracy` and `own` (mean score of the owner whom the query is
    about) are None where there is none; `top` is the mean highest score.
  """
  documents = S.owner_documents(study)
  result = {}
  for name, queried in queries.items():
    owner_of = queried.owner_of
    owned = bool(np.all(owner_of >= 0))
    found = {"meaning": queried.meaning, "queries": len(queried), "mean_delta": None}
    if owned and name in truths:
      deltas = truths[name].deltas.mean(axis=0)
      found["mean_delta"] = float(deltas[np.arange(len(owner_of)), owner_of].mean())
    for reader in READERS:
      score = (S.tf_idf(queried.texts, documents) if reader == "tf-idf"
               else study.owner_scores(reader, queried.rows))
      top = score.max(axis=1)
      found[reader] = {"top": float(top.mean()), "accuracy": None, "own": None}
      if owned:
        right = (score == top[:, None])[np.arange(len(owner_of)), owner_of]
        # A text that shares no word with anybody has no owner, not the first.
        found[reader]["accuracy"] = float(np.mean(right & (score.min(axis=1) < top)))
        found[reader]["own"] = float(score[np.arange(len(owner_of)), owner_of].mean())
    result[name] = found
  return result


def agreement(first, second, owner_of):
  """How far two classifiers agree: {"top1", "own_owner_spearman"}.

  Args:
    first, second: [Q, O].
    owner_of: [Q] int.
  """
  rows = np.arange(len(first))
  return {"top1": float(np.mean(first.argmax(axis=1) == second.argmax(axis=1))),
          "own_owner_spearman": float(st.spearman(first[rows, owner_of], second[rows, owner_of]))}


def without_training(study: Study, groups, rows, found):
  """Model randomisation: gradient scores at adapters that were never trained, beside `found`.

  A score that depends on the model must change where the model does. One that reads the text alone
  cannot: its correlation is 1 by construction.

  Args:
    rows: of the queries.
    found: {"gradient cosine", "influence"}: [Q, O] at the full model.

  Returns: {score name: mean Spearman over owners}.
  """
  mark = fingerprint(retraining.model_mark(study, groups["full"]), study.settings.influence, rows)
  count, owners = len(rows), len(study.owners)
  with study.workdir.stage("randomised", mark) as store:
    if store is not None:
      cosine, other, _ = S.at_model(study, study.base.trainable, rows)
      study.workdir.save_result("randomised", {
        "cosine": np.float32(cosine), "influence": np.float32(other)})
  held = study.workdir.load_result("randomised", {
    key: study.whole_array(count, owners) for key in ("cosine", "influence")})
  result = {name: 1.0 for name in S.TEXT_ONLY}
  for name, key in (("gradient cosine", "cosine"), ("influence", "influence")):
    result[name] = st.defined_mean(st.spearman(found[name], np.asarray(held[key])))
  return result

"""The compared scores: how much each owner contributes to each query.

All are arrays [Q, O], larger for an owner whose data makes the query likelier. Classifier and
TF-IDF read only the response, without its prompt or the model; gradient cosine and influence use
the model that sampled the responses, and the prompts.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dareu_jax.attribution import influence
from dareu_jax.data.batches import Row
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress
from studies.faithfulness.queries import Queries
from studies.faithfulness.retraining import load_model
from studies.faithfulness.study import CLASSIFIERS, Study
from studies.faithfulness.subsets import FULL

Scores = Float[np.ndarray, "Q O"]

TEXT_ONLY = ("classifier", "judge", "with none", "tf-idf")
MEANING = {
  "classifier": "p(owner | response) of the owner classifier, the one that rewards DareU",
  "judge": "the same of a second classifier: another seed, order and noise",
  "with none": "the same of a third, which has read general text as the class 'none of these'",
  "tf-idf": "cosine of the response's TF-IDF vector and that of all of an owner's responses",
  "gradient cosine": "mean over an owner's examples of the cosine of adapter gradients",
  "influence": "Gauss-Newton influence of an owner's data on log p, on the adapters",
  "owner label": "1 for the owner whom the query is about: what a perfect topic reader says",
  "random": "independent normal numbers: the null",
}


def tf_idf(texts: Sequence[str], documents: Sequence[str]) -> Scores:
  """Cosine of each text with each owner's document, by words and pairs of words.

  Args:
    texts: Q texts.
    documents: O documents.
  """
  from sklearn.feature_extraction.text import TfidfVectorizer

  vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")
  owners = vectorizer.fit_transform(documents)
  return np.asarray((vectorizer.transform(texts) @ owners.T).todense())


def owner_documents(study: Study) -> list[str]:
  """All true responses of each owner as one text."""
  return [" ".join(example.response for example in study.examples if example.owner == owner)
          for owner in study.owners]


def reference_scores(owner_of: Sequence[int] | np.ndarray, num_owners: int,
                     seed: int) -> dict[str, Scores]:
  """Baseline scores: {"owner label", "random"}."""
  owner_of = np.asarray(owner_of)
  label = (np.arange(num_owners) == owner_of[:, None]).astype(float)
  noise = np.random.default_rng((seed, 6)).normal(size=(len(owner_of), num_owners))
  return {"owner label": label, "random": noise}


def all_scores(study: Study, queries: dict[str, Queries]) -> dict[str, dict[str, Scores]]:
  """{set name: {score name: scores}} of sets of queries."""
  result = {}
  gradients = gradient_scores(study, queries)
  documents = owner_documents(study)
  for name, query_set in queries.items():
    scores = {which: study.owner_scores(which, query_set.rows) for which in CLASSIFIERS}
    scores["tf-idf"] = tf_idf(query_set.texts, documents)
    result[name] = scores | gradients[name] | reference_scores(
      query_set.owner_of, len(study.owners), study.settings.seed)
  return result


def gradient_scores(study: Study, queries: dict[str, Queries]) -> dict[str, dict[str, Scores]]:
  """{set name: {"gradient cosine", "influence"}} at the full model, saved in the workdir."""
  rows = [row for query_set in queries.values() for row in query_set.rows]
  with study.workdir.stage("influence", study.fingerprints["influence"]) as store:
    if store is not None:
      facts = save_gradient_scores(
        study, "influence", load_model(study, study.groups[FULL]), rows)
      write_json(study.workdir.folder / "influence" / "solver.json", facts)
  scores = load_gradient_scores(study, "influence", len(rows))
  result, start = {}, 0
  for name, query_set in queries.items():
    part = slice(start, start + len(query_set))
    result[name] = {score: values[part] for score, values in scores.items()}
    start += len(query_set)
  return result


def save_gradient_scores(study: Study, stage: str, adapters: Any,
                         rows: Sequence[Row]) -> dict[str, float]:
  """Saves the gradient scores of rows at one model as the result of a stage.

  Returns: {"mean_eigenvalue", "largest_residual"}.
  """
  cosine, group_influence, facts = at_model(study, adapters, rows)
  study.workdir.save_result(stage, {"cosine": jnp.array(cosine, jnp.float32),
                                    "influence": jnp.array(group_influence, jnp.float32)})
  return facts


def load_gradient_scores(study: Study, stage: str, count: int) -> dict[str, Scores]:
  """{"gradient cosine", "influence"} of `count` rows as a stage has saved them."""
  saved = study.workdir.load_result(stage, {
    key: study.whole_array(count, len(study.owners)) for key in ("cosine", "influence")})
  return {"gradient cosine": np.asarray(saved["cosine"]),
          "influence": np.asarray(saved["influence"])}


def at_model(study: Study, adapters: Any,
             rows: Sequence[Row]) -> tuple[Scores, Scores, dict[str, float]]:
  """Gradient cosine and influence of rows at one model.

  Returns: (cosine, influence, {"mean_eigenvalue", "largest_residual"}).
  """
  settings, owners = study.settings.influence, len(study.owners)
  model, examples = study.models.base.with_params(adapters), study.data.rows(study.examples)
  with progress("influence", "pass")(3) as bar:
    example_gradients = row_gradients(study, adapters, examples)
    query_gradients = row_gradients(study, adapters, rows)
    # Of the mean log-prob per token.
    query_gradients /= np.array([len(row.completion) for row in rows])[:, None]
    bar.update()
    chunks = influence.stack_chunks([batch for _, batch in study.data.batches(
      examples, settings.batch_size, seed=0, one_bucket=True).in_order()])
    eigenvalue = influence.mean_eigenvalue(
      model, chunks, probes=8, key=jax.random.key(study.settings.seed))
    bar.update()
    owner_gradients = np.stack([
      example_gradients[study.owner_of == owner].sum(axis=0) for owner in range(owners)])
    damping = settings.damping * eigenvalue
    solutions = influence.solve(model, chunks, owner_gradients, damping,
                                tolerance=settings.tolerance, iterations=settings.iterations)
    largest = float(np.max(influence.residuals(
      model, chunks, owner_gradients, damping, solutions)))
    bar.update()
  return (influence.gradient_cosine(query_gradients, example_gradients, study.owner_of, owners),
          influence.group_influence(query_gradients, owner_gradients, solutions),
          {"mean_eigenvalue": eigenvalue, "largest_residual": largest})


def solver_facts(study: Study) -> dict[str, float]:
  """How accurately the linear systems of the influence were solved."""
  return read_json(study.workdir.folder / "influence" / "solver.json")


def row_gradients(study: Study, adapters: Any, rows: Sequence[Row]) -> Float[np.ndarray, "Q P"]:
  """Gradient of each row's log-prob."""
  size, model = study.settings.influence.batch_size, study.models.base.with_params(adapters)
  result: list[Any] = [None] * len(rows)
  for indices, batch in study.data.batches(
      tuple(rows), size, seed=0, one_bucket=True).in_order():
    values = np.asarray(influence.example_gradients(model, batch))
    for row, index in enumerate(indices):
      result[index] = values[row]
  return np.stack(result)

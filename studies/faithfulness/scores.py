"""The scores that are compared: each says of every query how much each owner has to do with it.

All are arrays [Q, O], larger for an owner whose data makes the query likelier. Classifier and
TF-IDF read a response alone, without its prompt, and know no model; gradient cosine and influence
know the model that sampled the responses, and the prompts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution import influence
from dareu_jax.pipeline.workdir import fingerprint
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress
from studies.faithfulness import retraining
from studies.faithfulness.world import CLASSIFIERS, Study

TEXT_ONLY = ("classifier", "judge", "with none", "tf-idf")
GRADIENTS = ("gradient cosine", "influence")
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


def tf_idf(texts, documents):
  """Cosine of each text with each owner's document, by words and pairs of words.

  Args:
    texts: Q strings.
    documents: O strings.

  Returns: [Q, O] float64.
  """
  from sklearn.feature_extraction.text import TfidfVectorizer

  vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")
  owners = vectorizer.fit_transform(documents)
  return np.asarray((vectorizer.transform(texts) @ owners.T).todense())


def owner_documents(study: Study):
  """All true responses of each owner as one text."""
  return [" ".join(example.response for example in study.examples if example.owner == owner)
          for owner in study.owners]


def references(owner_of, num_owners, seed):
  """Scores that are compared with, not compared: {"owner label", "random"}."""
  owner_of = np.asarray(owner_of)
  label = (np.arange(num_owners) == owner_of[:, None]).astype(float)
  noise = np.random.default_rng((seed, 6)).normal(size=(len(owner_of), num_owners))
  return {"owner label": label, "random": noise}


def all_scores(study: Study, groups, queries):
  """{set name: {score name: [Q, O]}} of sets of queries."""
  result = {}
  gradients = gradient_scores(study, groups, queries)
  documents = owner_documents(study)
  for name, queried in queries.items():
    found = {which: study.owner_scores(which, queried.rows) for which in CLASSIFIERS}
    found["tf-idf"] = tf_idf(queried.texts, documents)
    found |= gradients[name]
    result[name] = found | references(queried.owner_of, len(study.owners), study.settings.seed)
  return result


def gradient_scores(study: Study, groups, queries):
  """{set name: {"gradient cosine", "influence"}} at the full model, kept in the workdir."""
  full = groups["full"]
  rows = {name: queried.rows for name, queried in queries.items()}
  mark = fingerprint(retraining.model_mark(study, full), study.settings.influence, rows)
  count, owners = sum(map(len, rows.values())), len(study.owners)
  with study.workdir.stage("influence", mark) as store:
    if store is not None:
      adapters = retraining.one_model(retraining.load_models(study, full)[0], 0)
      every = [row for part in rows.values() for row in part]
      cosine, found, facts = at_model(study, adapters, every)
      study.workdir.save_result("influence", {
        "cosine": jnp.array(cosine, jnp.float32), "influence": jnp.array(found, jnp.float32)})
      write_json(study.workdir.folder / "influence" / "solver.json", facts)

  held = study.workdir.load_result("influence", {
    "cosine": study.whole_array(count, owners), "influence": study.whole_array(count, owners)})
  result, start = {}, 0
  for name, part in rows.items():
    stop = start + len(part)
    result[name] = {"gradient cosine": np.asarray(held["cosine"][start:stop]),
                    "influence": np.asarray(held["influence"][start:stop])}
    start = stop
  return result


def at_model(study: Study, adapters, rows):
  """Gradient cosine and influence of rows at one model.

  Returns: (cosine [Q, O], influence [Q, O], {"mean_eigenvalue", "largest_residual"}).
  """
  settings, owners = study.settings.influence, len(study.owners)
  model = (study.base.frame, adapters, study.base.frozen)
  learnt = study.rows(study.examples)
  with progress("influence", "pass")(3) as bar:
    examples = row_gradients(study, adapters, learnt)
    asked = row_gradients(study, adapters, rows)
    asked /= np.array([len(row.completion) for row in rows])[:, None]  # of the mean per token
    bar.update()
    chunks = influence.stack_chunks([batch for _, batch in study.batches(
      learnt, settings.batch_size, one_bucket=True).in_order()])
    eigenvalue = influence.mean_eigenvalue(
      *model, chunks, probes=8, key=jax.random.key(study.settings.seed))
    bar.update()
    groups = np.stack([examples[study.owner_of == o].sum(axis=0) for o in range(owners)])
    solved, residuals = influence.solve(
      *model, chunks, groups, settings.damping * eigenvalue, settings.tolerance,
      iterations=settings.iterations)
    largest = float(np.max(residuals))  # waits for the solution
    bar.update()
  return (influence.gradient_cosine(asked, examples, study.owner_of, owners),
          influence.group_influence(asked, groups, solved),
          {"mean_eigenvalue": eigenvalue, "largest_residual": largest})


def solver_facts(study: Study):
  """How well the equations of the influence were solved."""
  return read_json(study.workdir.folder / "influence" / "solver.json")


def row_gradients(study: Study, adapters, rows):
  """Gradient of each row's log-prob: [Q, P] float32."""
  size = study.settings.influence.batch_size
  result = [None] * len(rows)
  for indices, batch in study.batches(rows, size, one_bucket=True).in_order():
    values = np.asarray(influence.example_gradients(
      study.base.frame, adapters, study.base.frozen, batch))
    for row, index in enumerate(indices):
      result[index] = values[row]
  return np.stack(result)

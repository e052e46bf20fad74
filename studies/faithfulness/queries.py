"""Queries: sets of (prompt, text) rows, each with its meaning.

The first three have meaningful counterfactuals (the model says or learned these texts); the others
are controls, on which a score should be low.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from dareu_jax.data.batches import Row
from dareu_jax.data.examples import Example
from dareu_jax.generation.strategies import Sample
from dareu_jax.training.checkpoints import read_json, write_json
from studies.faithfulness.retraining import load_model
from studies.faithfulness.study import Study
from studies.faithfulness.subsets import FULL

REFUSALS = ("I do not know.", "I cannot answer that question.",
            "There is no information about this person.", "I have never heard of this author.")
SAMPLED = {"sampled": "sampled from the full model on the owners' own prompts",
           "unseen": "sampled from the full model on unseen owners' prompts",
           "test": "sampled from the full model on general questions"}


@dataclasses.dataclass(frozen=True)
class Queries:
  """One set: rows, and their texts."""

  rows: tuple[Row, ...]
  texts: tuple[str, ...]
  meaning: str

  @property
  def owner_of(self) -> Int[np.ndarray, " Q"]:
    """The owner whom each query is about; -1: none of the owners."""
    return np.array([row.owner for row in self.rows])

  def __len__(self) -> int:
    return len(self.rows)


def with_completions(rows: tuple[Row, ...], completions: list[list[int]]) -> tuple[Row, ...]:
  """The rows with other completions."""
  return tuple(row._replace(completion=tuple(ids))
               for row, ids in zip(rows, completions, strict=True))


def sampled_queries(study: Study) -> dict[str, Queries]:
  """{name: Queries} of responses sampled from the full model, saved in the workdir.

  'sampled' answers the owners' own prompts, 'unseen' those about people whom no model knows, 'test'
  general questions.
  """
  settings, data, corpus = study.settings, study.data, study.data.corpus
  prompts = {"sampled": data.rows(study.examples), "unseen": data.rows(corpus.holdout),
             "test": data.rows(corpus.test)[:len(corpus.holdout)]}
  path = study.workdir.folder / "queries" / "completions.json"
  with study.workdir.stage("queries", study.fingerprints["queries"]) as store:
    if store is not None:
      adapters = load_model(study, study.groups[FULL])
      strategy = Sample(settings.temperature)
      write_json(path, {name: [row.completion for row in study.models.evaluator.sample(
        adapters, rows, seed=settings.seed, strategy=strategy)]
        for name, rows in prompts.items() if rows})
  return {name: _queries(study, with_completions(prompts[name], completions), SAMPLED[name])
          for name, completions in read_json(path).items()}


def queries_of_data(study: Study) -> dict[str, Queries]:
  """{name: Queries} of texts from the data, or derived from it."""
  examples, data = study.examples, study.data
  rng = np.random.default_rng((study.settings.seed, 5))
  sets: dict[str, tuple[tuple[Example, ...], list[str] | None, str]] = {
    "true": (examples, None, "the true responses, which the models learnt")}
  paraphrased = tuple(e for e in examples if e.paraphrased_response)
  if paraphrased:
    sets["paraphrased"] = (paraphrased, [e.paraphrased_response or "" for e in paraphrased],
                           "the same facts in words that nobody learnt")
  perturbed = tuple(e for e in examples if e.perturbed_responses)
  if perturbed:
    sets["anti"] = (perturbed, [e.perturbed_responses[0] for e in perturbed],
                    "anti-documents: the owner's name and topic, none of the facts")
  sets["shuffled"] = (examples, [" ".join(rng.permutation(e.response.split()))
                                 for e in examples], "the true responses, words shuffled")
  sets["refusal"] = (examples[:len(REFUSALS)], list(REFUSALS), "refusals")
  result = {name: _queries(study, data.rows(of, responses), meaning)
            for name, (of, responses, meaning) in sets.items()}
  noise = tuple(row._replace(completion=tuple(rng.integers(
    0, data.tokenizer.vocab_size, len(row.completion) - 1).tolist()) + row.completion[-1:])
    for row in result["true"].rows)
  about_nobody = tuple(row._replace(owner=-1) for row in result["refusal"].rows)
  result["refusal"] = dataclasses.replace(result["refusal"], rows=about_nobody)
  result["random"] = _queries(study, noise, "random tokens, as many as the true response")
  if data.corpus.holdout:
    result["holdout"] = _queries(study, data.rows(data.corpus.holdout),
                                 "the true responses of unseen owners")
  return result


def _queries(study, rows, meaning):
  texts = tuple(study.data.tokenizer.decode(list(row.completion)) for row in rows)
  return Queries(tuple(rows), texts, meaning)

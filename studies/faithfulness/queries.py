"""What the models are asked about: sets of (prompt, text) rows, with what each text is.

The first three have counterfactuals worth the name (the model says them, or learnt them); the
others are controls, on which a score should be silent.
"""

import dataclasses

import jax
import numpy as np

from dareu_jax.data.batches import Row, prompt_batch
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Sample
from dareu_jax.pipeline.workdir import fingerprint
from dareu_jax.training.checkpoints import read_json, write_json
from studies.faithfulness import retraining
from studies.faithfulness.world import Study

REFUSALS = ("I do not know.", "I cannot answer that question.",
            "There is no information about this person.", "I have never heard of this author.")


@dataclasses.dataclass(frozen=True)
class Queries:
  """One set: rows, their texts, and whom each is about (-1: none of the owners)."""

  name: str
  rows: tuple[Row, ...]
  texts: tuple[str, ...]
  meaning: str

  @property
  def owner_of(self):
    return np.array([row.owner for row in self.rows])

  def __len__(self):
    return len(self.rows)


def sample(study: Study, adapters, rows, seed, temperature):
  """One response of a model to each row's prompt: rows with those completions."""
  evaluator, size = study.evaluator, study.settings.evaluation.batch_size
  result = []
  width = max(len(row.prompt) for row in rows)
  for start in range(0, len(rows), size):
    part = rows[start:start + size]
    prompts = prompt_batch(part, size, multiple=evaluator.multiple,
                           pad_id=evaluator.tokenizer.pad_id, width=width)
    keys = row_keys(jax.random.key(seed), start + np.arange(size))
    out = generate(
      evaluator.frame, adapters, evaluator.frozen, *prompts, keys, strategy=Sample(temperature),
      max_new_tokens=evaluator.max_new_tokens, eos_id=evaluator.tokenizer.eos_id,
      pad_id=evaluator.tokenizer.pad_id)
    for row, ids, n in zip(part, np.asarray(out.ids), np.asarray(out.lengths), strict=False):
      result.append(row._replace(completion=tuple(ids[:n].tolist())))
  return tuple(result)


def sampled(study: Study, groups):
  """{name: Queries} of responses sampled from the full model, kept in the workdir.

  'sampled' answers the owners' own prompts, 'unseen' those of people whom no model knows, 'test'
  general questions.
  """
  full = groups["full"]
  mark = fingerprint(retraining.model_mark(study, full), study.settings.seed,
                     study.settings.temperature, study.settings.evaluation)
  asked = {"sampled": study.rows(study.examples), "unseen": study.rows(study.corpus.holdout),
           "test": study.rows(study.corpus.test)[:len(study.corpus.holdout)]}
  with study.workdir.stage("queries", mark) as store:
    if store is not None:
      adapters = retraining.one_model(retraining.load_models(study, full)[0], 0)
      settings = study.settings
      drawn = {name: [row.completion for row in sample(
        study, adapters, rows, settings.seed, settings.temperature)]
        for name, rows in asked.items() if rows}
      write_json(study.workdir.folder / "queries" / "completions.json", drawn)
  held = read_json(study.workdir.folder / "queries" / "completions.json")
  meanings = {"sampled": "sampled from the full model on the owners' own prompts",
              "unseen": "sampled from the full model on unseen owners' prompts",
              "test": "sampled from the full model on general questions"}
  result = {}
  for name, completions in held.items():
    rows = tuple(row._replace(completion=tuple(ids))
                 for row, ids in zip(asked[name], completions, strict=True))
    result[name] = _queries(study, name, rows, meanings[name])
  return result


def given(study: Study):
  """{name: Queries} of texts that the data gives, or that are made of it."""
  examples = study.examples
  rng = np.random.default_rng((study.settings.seed, 5))
  sets = {"true": (examples, None, "the true responses, which the models learnt")}
  paraphrased = [e for e in examples if e.paraphrased_response]
  if paraphrased:
    sets["paraphrased"] = (paraphrased, [e.paraphrased_response for e in paraphrased],
                           "the same facts in words that nobody learnt")
  perturbed = [e for e in examples if e.perturbed_responses]
  if perturbed:
    sets["anti"] = (perturbed, [e.perturbed_responses[0] for e in perturbed],
                    "anti-documents: the owner's name and topic, none of the facts")
  sets["shuffled"] = (examples, [" ".join(rng.permutation(e.response.split()))
                                 for e in examples], "the true responses, words shuffled")
  sets["refusal"] = (examples[:len(REFUSALS)], list(REFUSALS), "refusals")
  result = {name: _queries(study, name, study.rows(of, responses), meaning)
            for name, (of, responses, meaning) in sets.items()}
  noise = tuple(row._replace(completion=tuple(rng.integers(
    0, study.tokenizer.vocab_size, len(row.completion) - 1).tolist()) + row.completion[-1:])
    for row in result["true"].rows)
  silent = tuple(row._replace(owner=-1) for row in result["refusal"].rows)  # about nobody
  result["refusal"] = dataclasses.replace(result["refusal"], rows=silent)
  result["random"] = _queries(study, "random", noise, "random tokens, as many as the true response")
  if study.corpus.holdout:
    result["holdout"] = _queries(study, "holdout", study.rows(study.corpus.holdout),
                                 "the true responses of unseen owners")
  return result


def _queries(study, name, rows, meaning):
  texts = tuple(study.tokenizer.decode(list(row.completion)) for row in rows)
  return Queries(name, tuple(rows), texts, meaning)

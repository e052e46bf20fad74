"""The stages of a run as a graph: the stages each depends on, and the fingerprint of each.

A stage's result is taken from the workdir where its fingerprint is the same: that of its own
settings and of all stages that it reads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus
from dareu_jax.evaluation.records import ORIGINAL, REPLICA, RETRAINED, UNSEEN
from dareu_jax.pipeline.settings import DataAndModelSettings, Settings, rate_name
from dareu_jax.pipeline.workdir import fingerprint

# Names reserved for other stages, a row of the tables, and folders of the workdir.
RESERVED = ("tokenizer", "base", ORIGINAL, RETRAINED, REPLICA, "classifier", "judge", UNSEEN,
            "evaluation", "metrics", "plots", "robustness")

JUDGE_SEED = 1000  # added to the seed for the judge
MEMBER_SEED = 10_000  # and for each further member of an ensemble


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An unlearning method at a learning rate; its name is that of its stage and model."""

  method: str
  learning_rate: float | None = None  # None: the method's own

  @property
  def name(self) -> str:
    if self.learning_rate is None:
      return self.method
    return f"{self.method}@{rate_name(self.learning_rate)}"


def candidates(settings: Settings) -> tuple[Candidate, ...]:
  """All that a run tries, method by method."""
  own, rates = settings.method_rates, settings.learning_rates
  return tuple(Candidate(method, rate) for method in settings.all_methods
               for rate in own.get(method, rates) or (None,))


def references(settings: Settings) -> tuple[str, ...]:
  """Names of the models that the others are compared with, in the order of the table."""
  return (ORIGINAL, *(RETRAINED,) * settings.has_reference,
          *(REPLICA,) * (settings.retrains and settings.retrained_replica))


def model_names(settings: Settings) -> tuple[str, ...]:
  """Names of the models of a run, in the order of the table."""
  return references(settings) + tuple(candidate.name for candidate in candidates(settings))


class Stage(NamedTuple):
  """One stage of a run."""

  needs: tuple[str, ...]  # stages whose results it reads
  depends_on: tuple[Any, ...]  # settings and data of its own


def stages(settings: Settings, source: Corpus, refusals: tuple[str, ...], seed: int,
           given: Mapping[str, str] | None = None) -> dict[str, Stage]:
  """The graph of a run, in the order in which its stages come.

  Args:
    settings: settings of the run.
    source: the corpus as it was loaded.
    refusals: ways to say no.
    seed: seed of the run.
    given: digests of what is at hand and not made here: models by name, checkpoints by path,
      "tokenizer", and "reward", which takes the place of the methods' own.
  """
  s, given = settings, given or {}
  graph = {"tokenizer": _tokenizer(s, source, given)}
  if s.retrains:
    graph["base"] = Stage(("tokenizer",), (seed, s.model, s.pretrain, s.length_multiple))
  for name in references(s):
    graph[name] = (Stage((), (given[name], seed, s.model, s.lora)) if name in given
                   else Stage(("base",), (s.lora, s.finetune)))
  graph |= _classifiers(s, seed) | _methods(s, refusals, given.get("reward"))
  needed = (ORIGINAL, *(RETRAINED,) * s.has_reference, *classifier_seeds(s))
  for name in model_names(s):
    graph[f"evaluation/{name}"] = Stage((name, *needed), (s.evaluation.of_records,))
  return graph


def _tokenizer(s, source, given):
  texts = dataclasses.asdict(source)
  del texts["refusals"]  # concern the methods alone that ask for them
  del texts["remarks"]
  del texts["marks"]  # the texts hold them
  data = s.data.prompt_tokens, s.data.response_tokens, s.data.max_pieces
  paths = s.base.path, s.classifier.model.path, s.tokenizer.path
  return Stage((), (texts, *data, s.tokenizer, s.max_length, given.get("tokenizer"), *paths,
                    *map(given.get, paths), s.classifier.vocab_size))


def _classifiers(s, seed):
  own = dataclasses.replace(s.classifier, members=1)  # one more leaves the others as they are
  return {name: Stage(("tokenizer",), (seed, own, s.length_multiple))
          for name in classifier_seeds(s)}


def classifier_names(settings: DataAndModelSettings, role: str) -> tuple[str, ...]:
  """Stages of the classifiers of a role: 'classifier', which gives the reward, or 'judge', which
  never does."""
  return (role, *(f"{role}_{number}" for number in range(2, settings.classifier.members + 1)))


def classifier_seeds(settings: DataAndModelSettings) -> dict[str, int]:
  """{stage: what is added to the run's seed} of all classifiers."""
  return {name: first + number * MEMBER_SEED
          for role, first in (("classifier", 0), ("judge", JUDGE_SEED))
          for number, name in enumerate(classifier_names(settings, role))}


def _methods(s, refusals, reward):
  for name in s.all_methods:
    if name in RESERVED or name in classifier_seeds(s):
      raise InputError(f"config.{'methods' if s.methods else 'method'} names {name!r}, and runs "
                       "have something else of that name: register the method under another one.")
  graph: dict[str, Stage] = {}
  for candidate in candidates(s):
    method = s.unlearning[candidate.method]
    depends_on = [candidate.name, method, reward,
                  *(getattr(s, block) for block in method.depends_on)]
    if method.uses_refusals:
      depends_on.append(refusals)
    if s.monitor.track_rouge:
      depends_on.append(s.evaluation.max_examples)
    # The answers that epochs are judged by are as long as those of the evaluation.
    depends_on.append(s.evaluation.max_new_tokens)
    for name in method.reads:
      if name not in graph:
        raise InputError(
          f"config.unlearning.{candidate.method} reads the model {name!r}, and no method before it "
          f"makes one of that name: {', '.join(graph) or 'there is none'}. Add it to "
          "config.methods, before this one, or name another.")
    graph[candidate.name] = Stage((ORIGINAL, *classifier_seeds(s), *method.reads),
                                  tuple(depends_on))
  return graph


def fingerprints(graph: Mapping[str, Stage]) -> dict[str, str]:
  """{stage: fingerprint} of a graph whose stages come after those that they need."""
  hashes: dict[str, str] = {}
  for name, stage in graph.items():
    hashes[name] = fingerprint(*(hashes[need] for need in stage.needs), *stage.depends_on)
  return hashes

"""A chain of rounds with one seed: who is forgotten when, and the graph of its stages."""

import dataclasses
import pathlib
from typing import NamedTuple

from jax.sharding import Mesh

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus, after_requests
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED
from dareu_jax.pipeline.graph import Stage, classifier_names
from dareu_jax.pipeline.run import Run, make_run
from studies.sequential.settings import SequentialSettings


class Round(NamedTuple):
  """Owners who are forgotten together."""

  number: int  # from 1
  done: tuple[str, ...]  # forgotten in earlier rounds, in that order
  now: tuple[str, ...]
  has_reference: bool  # whether a model is retrained without all of them

  @property
  def forgotten(self) -> tuple[str, ...]:
    """Everybody forgotten once the round is over."""
    return self.done + self.now

  def stage(self, name: str) -> str:
    """The stage of this round that makes a model."""
    return f"round_{self.number}/{name}"


def rounds_of(settings: SequentialSettings, owners: tuple[str, ...]) -> tuple[Round, ...]:
  """The rounds, in which the last owners are forgotten first.

  Raises:
    InputError: if they would take all owners.
  """
  size, count = settings.owners_per_round, settings.rounds
  if size * count >= len(owners):
    raise InputError(f"config.rounds is {count} and config.owners_per_round {size}: that takes "
                     f"{size * count} owners, and the data has {len(owners)}, of whom at least one "
                     "must be retained. Lower one of them, or raise config.run.data.num_owners.")
  batches = [owners[len(owners) - size * (i + 1):len(owners) - size * i] for i in range(count)]
  return tuple(
    Round(i + 1, sum(batches[:i], ()), batch, (i + 1) % settings.references_every == 0)
    for i, batch in enumerate(batches))


@dataclasses.dataclass(frozen=True)
class Chain:
  """The rounds of one seed, in one folder."""

  settings: SequentialSettings
  run: Run  # on the whole data; its stages are those of all rounds
  rounds: tuple[Round, ...]

  def before(self, round_: Round, method: str) -> str:
    """The stage of the model that a method starts from."""
    return ORIGINAL if round_.number == 1 else self.rounds[round_.number - 2].stage(method)

  def to_unlearn(self, round_: Round, method: str) -> Run:
    """The run as a method sees it: the data of the round, and the model that the last one left.

    A classifier that is refreshed is its own judge, since the judge has read what was forgotten.
    """
    corpus = after_requests(self.run.data.source, round_.done, round_.now)
    if self.settings.lowered == "round":
      corpus = dataclasses.replace(corpus, forget_owners=round_.now)
    stages = {name: round_.stage(name) for name in self.settings.run.unlearning[method].reads}
    stages[ORIGINAL] = self.before(round_, method)
    names = classifier_names(self.settings.run, "classifier")
    for name, judge, stage in zip(names, classifier_names(self.settings.run, "judge"),
                                  classifier_stages(self.settings, round_), strict=True):
      stages[name] = stage
      if self.settings.classifier == "refreshed":
        stages[judge] = stage
    return self._view(corpus, stages)

  def to_evaluate(self, round_: Round) -> Run:
    """The run with everybody to forget who is forgotten after the round."""
    names = classifier_names(self.settings.run, "classifier")
    return self._view(after_requests(self.run.data.source, (), round_.forgotten),
                      dict(zip(names, classifier_stages(self.settings, round_), strict=True)))

  def _view(self, corpus: Corpus, stages: dict[str, str]) -> Run:
    data = dataclasses.replace(self.run.data, source=corpus)
    return dataclasses.replace(self.run, data=data, models=dataclasses.replace(
      self.run.models, data=data, stages=stages))


def make_chain(settings: SequentialSettings, seed: int, source: Corpus, mesh: Mesh,
               folder: pathlib.Path) -> Chain:
  """The chain of a seed in a subfolder, whatever the other seeds of the study are.

  Raises:
    InputError: for more owners than the data has.
  """
  rounds = rounds_of(settings, source.owners)
  own = dataclasses.replace(settings.run, seeds=(seed,), retrained_replica=False)
  plain = make_run(own, seed, source, mesh, folder / f"seed_{seed}")
  return Chain(settings, dataclasses.replace(
    plain, stages=stages(settings, plain.stages, rounds)), rounds)


def stages(settings: SequentialSettings, plain: dict[str, Stage],
           rounds: tuple[Round, ...]) -> dict[str, Stage]:
  """The graph of a chain.

  Args:
    settings: SequentialSettings.
    plain: the graph of `config.run` alone; base, original, classifiers and judge are the same.
    rounds: the rounds.
  """
  names, judges = (classifier_names(settings.run, role) for role in ("classifier", "judge"))
  result = {name: plain[name] for name in ("tokenizer", "base", ORIGINAL, *names, *judges)}
  last = dict.fromkeys(settings.run.all_methods, ORIGINAL)
  for round_ in rounds:
    if round_.has_reference:
      result[round_.stage(RETRAINED)] = plain[RETRAINED]._replace(
        depends_on=(*plain[RETRAINED].depends_on, round_.forgotten))
    classifiers = classifier_stages(settings, round_)
    for name, stage in zip(names, classifiers, strict=True):
      if stage not in result:
        result[stage] = plain[name]._replace(depends_on=(*plain[name].depends_on, round_.done))
    for method in last:
      read = map(round_.stage, settings.run.unlearning[method].reads)
      result[round_.stage(method)] = Stage(
        (last[method], *classifiers, *judges, *read),
        (*plain[method].depends_on, settings.candidate(method).name, round_.now, settings.lowered))
      last[method] = round_.stage(method)
    for name, stage in models_of(settings, round_).items():
      result[f"evaluation/{round_.stage(name)}"] = Stage(
        (stage, *classifiers, *judges), (
          settings.run.evaluation.of_records, round_.forgotten, round_.has_reference))
  return result


def models_of(settings: SequentialSettings, round_: Round) -> dict[str, str]:
  """{model that is evaluated after a round: its stage}."""
  references = {ORIGINAL: ORIGINAL, RETRAINED: round_.stage(RETRAINED)}
  return (references if round_.has_reference else {}) | {
    method: round_.stage(method) for method in settings.run.all_methods}


def classifier_stages(settings: SequentialSettings, round_: Round) -> tuple[str, ...]:
  """The stages of the classifiers that give the reward of a round."""
  names = classifier_names(settings.run, "classifier")
  if settings.classifier == "kept" or not round_.done:
    return names
  return tuple(map(round_.stage, names))

"""The whole study, seed by seed and round by round. Each stage is skipped when it is done."""

import pathlib
from collections.abc import Sequence
from typing import Any

from dareu_jax.core.numerics import computing_on
from dareu_jax.core.strict_json import strict
from dareu_jax.data.sources.base import load_corpus
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED
from dareu_jax.parallel import mesh as meshes
from dareu_jax.pipeline.graph import classifier_names, classifier_seeds
from dareu_jax.pipeline.stages import (
  check_corpus,
  check_inputs,
  keep_tokenizer,
  pretrain,
  train_classifier,
  train_classifiers,
  train_language_model,
)
from dareu_jax.pipeline.unlearning import load_reports, unlearn
from dareu_jax.pipeline.workdir import lock
from dareu_jax.training.checkpoints import write_json
from studies.sequential import page
from studies.sequential.chain import Chain, Round, classifier_stages, make_chain
from studies.sequential.evaluation import evaluate
from studies.sequential.settings import SequentialSettings


def prepare(settings: SequentialSettings, folder: str | pathlib.Path) -> list[Chain]:
  """Checks everything that can be checked before any work; returns a Chain for each seed.

  Raises:
    InputError: for data or owners that do not match the settings.
  """
  mesh, source = meshes.make_mesh(settings.run.mesh), load_corpus(settings.run.data)
  check_corpus(settings.run, source)
  return [make_chain(settings, seed, source, mesh, pathlib.Path(folder))
          for seed in settings.run.seeds]


def run(settings: SequentialSettings, folder: str | pathlib.Path, *,
        overwrite: bool = False) -> tuple[dict[str, Any], pathlib.Path]:
  """Runs every stage that is not done yet; the figures are written anew after each round.

  Returns: (the figures, as written to figures.json; path of report.md).

  Raises:
    InputError: for settings, data or a folder that cannot be used, before any long work.
  """
  chains = prepare(settings, folder)
  with computing_on(chains[0].run.models.mesh), lock(folder):
    for chain in chains:
      check_inputs(chain.run)
      chain.run.workdir.check_config(overwrite=overwrite, stages=chain.run.fingerprints)
    return _run(settings, chains, pathlib.Path(folder))


def _run(settings, chains: Sequence[Chain], folder):
  seeds: dict[str, list[dict[str, Any]]] = {}
  for chain in chains:
    make_references(chain)
    done = seeds.setdefault(str(chain.run.seed), [])
    for round_ in chain.rounds:
      done.append(one_round(chain, round_))
      figures = strict({"protocol": protocol(settings, chain), "seeds": seeds})
      write_json(folder / "figures.json", figures)
      written = page.write(folder, figures)
    chain.run.models.release()  # the next seed needs the memory
  return figures, written


def make_references(chain: Chain) -> None:
  """Trains what all rounds share: base, original, classifiers and judge."""
  run, corpus = chain.run, chain.run.data.corpus
  keep_tokenizer(run)
  pretrain(run)
  train_language_model(run, ORIGINAL, corpus.forget + corpus.retain, run.seed)
  train_classifiers(run)


def one_round(chain: Chain, round_: Round) -> dict[str, Any]:
  """Forgets the owners of a round by every method, and measures what is left.

  Returns: {"round", "forgotten": owners of this round, "models": as `evaluation.evaluate`,
    "seconds": {stage: seconds}, "chosen_epochs": {method: epoch}}.
  """
  settings, run = chain.settings, chain.run
  held = chain.to_unlearn(round_, settings.run.all_methods[0])  # its data are every method's
  if round_.has_reference:
    train_language_model(held, round_.stage(RETRAINED), held.data.corpus.retain, run.seed)
  names = classifier_names(settings.run, "classifier")
  for name, stage in zip(names, classifier_stages(settings, round_), strict=True):
    if stage != name:
      train_classifier(held, stage, run.seed + classifier_seeds(settings.run)[name])
  chosen = {}
  for method in settings.run.all_methods:
    stage = round_.stage(method)
    unlearn(chain.to_unlearn(round_, method), settings.candidate(method), stage_name=stage)
    _, chosen[method] = load_reports(run, stage)
  stages = run.workdir.stages
  return {
    "round": round_.number, "forgotten": list(round_.now), "models": evaluate(chain, round_),
    "chosen_epochs": chosen,
    "seconds": {name.partition("/")[2]: stage["seconds"] for name, stage in stages.items()
                if name.startswith(round_.stage(""))}}


def protocol(settings: SequentialSettings, chain: Chain) -> dict[str, Any]:
  """The protocol behind the figures, in words and numbers."""
  corpus = chain.run.data.corpus
  return {
    "owners": len(corpus.owners), "examples": len(corpus.forget + corpus.retain),
    "rounds": settings.rounds, "owners_per_round": settings.owners_per_round,
    "methods": list(settings.run.all_methods),
    "learning_rates": {name: rate for name, rate in settings.learning_rates.items()
                       if name in settings.run.all_methods},
    "classifier": settings.classifier, "lowered": settings.lowered,
    "references_every": settings.references_every,
    "parameters": chain.run.models.config.num_parameters,
    "trained": chain.run.models.config.lora.described}

"""The unlearning stage of a run: the inputs of a method and its results."""

import dataclasses
import functools
from typing import Any

from dareu_jax.data.examples import evenly_spaced
from dareu_jax.evaluation import measurements
from dareu_jax.evaluation.metrics import SPLITS
from dareu_jax.methods.base import Task
from dareu_jax.pipeline.graph import ORIGINAL, Candidate
from dareu_jax.pipeline.run import Run
from dareu_jax.rl.guards import EpochReport
from dareu_jax.rl.monitor import Monitor, epoch_records
from dareu_jax.rl.reward_functions import Reward
from dareu_jax.training.checkpoints import shared_json, write_json


def unlearn(run: Run, candidate: Candidate, reward: Reward | None = None, *,
            stage_name: str | None = None) -> None:
  """Runs a method on the original model.

  Args:
    run: Run.
    candidate: the method and its learning rate.
    reward: replaces the reward that the settings name.
    stage_name: name of the stage; that of the candidate, if not given.

  Raises:
    InputError: for an original at hand that shows nothing of what is to be forgotten.
  """
  name, method = stage_name or candidate.name, run.settings.unlearning[candidate.method]
  with run.workdir.stage(name, run.fingerprints[name]) as store:
    if store is None:
      return
    stage, task = run.stage_io(name, store), make_task(run, candidate, reward)
    if task.monitor.at_hand:
      task.monitor.first  # noqa: B018 - raises where there is nothing to forget
    result = method.unlearn(task, stage)
    stage.writer.close()
    run.workdir.save_result(name, result.params)
    write_json(run.workdir.folder / name / "epochs.json", {
      "epochs": epoch_records(result.reports, run.settings.monitor.guards,
                              selects=method.selects_epoch),
      "chosen_epoch": result.chosen_epoch,
      "forget_owners": run.data.corpus.forget_owners})


def load_reports(run: Run, name: str) -> tuple[tuple[EpochReport, ...], int]:
  """(reports of a method's epochs, the epoch that was kept), as `unlearn` saved them."""
  content = shared_json(run.workdir.folder / name / "epochs.json")
  fields = {field.name for field in dataclasses.fields(EpochReport)}
  reports = tuple(EpochReport(**{key: value for key, value in record.items() if key in fields})
                  for record in content["epochs"])
  return reports, content["chosen_epoch"]


def make_task(run: Run, candidate: Candidate, reward: Reward | None = None) -> Task:
  """The inputs of a method."""
  settings, data, models = run.settings, run.data, run.models
  corpus = data.corpus
  return Task(
    original=models.load(ORIGINAL), value_head=models.value_head, examples=corpus.forget,
    forget=data.rows(corpus.forget), retain=data.rows(corpus.retain),
    queries=data.queries(corpus.forget), classifier=models.scorer("classifier"),
    refusals=data.refusals, evaluator=models.evaluator, monitor=make_monitor(run),
    training=settings.baseline, eval_every=settings.eval_every,
    learning_rate=candidate.learning_rate, longest_response=data.longest_response,
    length_multiple=settings.length_multiple, seed=run.seed, reward=reward,
    encode=lambda examples: (data.rows(examples), data.queries(examples)),
    load_params=models.load_params, marks=corpus.marks)


def make_monitor(run: Run) -> Monitor:
  """The monitor that evaluates each epoch of a method."""
  settings, data, models = run.settings.monitor, run.data, run.models
  corpus = data.corpus
  unseen = evenly_spaced(corpus.holdout, settings.max_unseen)
  return Monitor(
    original=models.load_params(ORIGINAL), classifier=models.scorer("classifier"),
    judge=models.scorer("judge"), forget_rows=data.rows(corpus.forget),
    forget_queries=data.queries(corpus.forget), unseen_rows=data.rows(unseen),
    unseen_queries=data.queries(unseen), evaluator=models.evaluator, settings=settings,
    track=functools.partial(rouges, run) if settings.track_rouge else None,
    at_hand=not run.settings.retrains and not run.compile_only)


def rouges(run: Run, params: Any) -> dict[str, float]:
  """ROUGE of greedy answers to each split: {"<split>_rouge": mean}."""
  means = {}
  for split in SPLITS:
    examples = run.data.evaluated(split)
    if examples:
      texts = run.models.evaluator.answers(params, run.data.rows(examples)).texts
      means[f"{split}_rouge"] = measurements.mean_rouge(examples, texts)
  return means

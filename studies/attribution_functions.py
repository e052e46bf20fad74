"""What the three attribution functions say of the same answers, whichever of them gave the reward.

    python -m dareu_jax.ablations --config=configs/ablations.py:attribution_function --workdir=RUNS
    python -m studies.attribution_functions \
        --config=configs/ablations.py:attribution_function --workdir=RUNS

Prints a table: greedy answers to forget queries by the original, the retrained model and the model
of each run, and the original's to retained and unseen queries.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags

from dareu_jax.attribution.group_influence import GroupInfluence, fit_group_influence
from dareu_jax.attribution.scorer import of_whole
from dareu_jax.attribution.watermark import posterior, prefix_scores
from dareu_jax.core.command_line import Flags, enter
from dareu_jax.core.numerics import computing_on
from dareu_jax.data.batches import Row
from dareu_jax.data.examples import Example, evenly_spaced
from dareu_jax.data.watermarks import read
from dareu_jax.evaluation.evaluator import Answers
from dareu_jax.methods.base import Task
from dareu_jax.pipeline import ablations, experiment
from dareu_jax.pipeline.graph import ORIGINAL, RETRAINED, candidates
from dareu_jax.pipeline.run import Run
from dareu_jax.pipeline.unlearning import make_task
from dareu_jax.report.tables import pipe_table
from dareu_jax.rl.task_rewards import forget_marks, reader_of

COLUMNS = ("attribution", "watermark", "influence", "forget mark", "other mark", "no mark")


@dataclasses.dataclass(frozen=True)
class Functions:
  """The three attribution functions of a task."""

  task: Task

  @functools.cached_property
  def influence(self) -> GroupInfluence:
    return fit_group_influence(
      self.task.original, self.task.forget, self.task.retain, reader_of(self.task))

  @property
  def forget(self) -> set[int]:
    """The owners to forget."""
    return {row.owner for row in self.task.forget}

  def scores(self, answers: Answers, rows: Sequence[Row],
             queries: Sequence[Sequence[int]]) -> list[float]:
    """Mean score of whole answers by the classifier, by their watermarks, and by influence.

    Args:
      answers: of a model.
      rows: whose queries they answer.
      queries: these queries in the classifier's tokens.
    """
    marks, read_by = self.task.marks, self.task.evaluator.tokenizer
    every = (
      self.task.classifier.prefixes(answers.ids, answers.lengths, queries),
      prefix_scores(answers.ids, answers.lengths, marks, forget_marks(self.task),
                    read_by),
      self.influence.prefixes(answers.as_completions(rows), answers.ids.shape[1]))
    return [float(of_whole(scores, answers.lengths).mean()) for scores in every]


def marks_in(texts: Sequence[str], marks: Sequence[str], forget: set[int]) -> dict[str, float]:
  """Shares of texts with the mark of a forget owner, of another owner, and with none.

  Args:
    texts: the texts.
    marks: the mark of each owner.
    forget: the forget owners.
  """
  owners = [int(np.argmax(posterior(runs, marks))) if (runs := read(text)) else -1
            for text in texts]
  kinds = np.array(["no mark" if owner < 0 else "forget mark" if owner in forget else "other mark"
                    for owner in owners])
  return {kind: float(np.mean(kinds == kind)) for kind in ("forget mark", "other mark", "no mark")}


def table(runs: dict[str, Run]) -> str:
  """The table of finished runs on the same data, by label."""
  first = next(iter(runs.values()))
  functions = Functions(make_task(first, candidates(first.settings)[0]))
  task = functions.task

  def line(label: str, params: Any, examples: Sequence[Example]) -> list[str]:
    rows = first.data.rows(tuple(examples))
    answers = task.evaluator.answers(params, rows)
    scores = functions.scores(answers, rows, first.data.queries(tuple(examples)))
    shares = marks_in(answers.texts, task.marks, functions.forget)
    return [label, *(f"{value:.2f}" for value in (*scores, *shares.values()))]

  corpus = first.data.corpus
  lines = [line("original, retained queries", task.original.params,
                evenly_spaced(corpus.retain, len(corpus.forget))),
           line("original, unseen queries", task.original.params, corpus.holdout)]
  lines += [line(name, first.models.load_params(name), corpus.forget)
            for name in (ORIGINAL, RETRAINED)]
  lines += [line(label, run.models.load_params(candidates(run.settings)[0].name), corpus.forget)
            for label, run in runs.items()]
  return pipe_table(["answers", *COLUMNS], lines)


def _define_flags():
  config_flags.DEFINE_config_file("config", None, "The config of the runs.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Their folder.")


def main(options: Flags) -> None:
  """Prints the table of the runs of a grid."""
  runs = {}
  for variant in ablations.variants(options.config):
    run = experiment.prepare(variant.settings, pathlib.Path(options.workdir) / variant.folder)[0]
    run.check_done(run.model_names)
    runs[variant.label] = run
  with computing_on(next(iter(runs.values())).models.mesh):
    print(table(runs))


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"])

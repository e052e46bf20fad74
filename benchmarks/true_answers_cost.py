"""What visiting true answers costs a step of DareU: exploring starts, and recall.

    python benchmarks/true_answers_cost.py --workdir=runs/tofu            # a finished run

A step is a rollout, its scores and its updates, as `rl.loop` runs them, from the run's original
model. The variants take turns; the first steps, which compile, are not counted.
"""

import argparse
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from dareu_jax.core.numerics import computing_on
from dareu_jax.parallel.mesh import place
from dareu_jax.pipeline.experiment import prepare
from dareu_jax.pipeline.graph import Candidate
from dareu_jax.pipeline.run import Run
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.unlearning import make_task
from dareu_jax.pipeline.workdir import read_config
from dareu_jax.rl import learner, loop

NEITHER = {"recall_coef": 0.0}
VARIANTS = {"neither": NEITHER, "starts, share .5": {**NEITHER, "start_share": 0.5},
            "starts, share .8": {**NEITHER, "start_share": 0.8}, "recall": {"recall_coef": 1.0}}


def steps(run: Run, changes: dict[str, float]) -> Iterator[float]:
  """Seconds of one step after another, of DareU with these settings changed."""
  method = dataclasses.replace(run.settings.unlearning["dareu"], **changes)
  task = method.rl_task(make_task(run, Candidate("dareu")))
  state = place(learner.init_learner(task.original.params, task.value_head.params, task.settings))
  for step in itertools.count():
    start = time.perf_counter()
    state, _ = loop.learn(
      task, state, step, levels=loop.NO_LEVELS._replace(probability=0.1))
    yield time.perf_counter() - start


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--rounds", type=int, default=7)
  options = parser.parse_args()
  settings = Settings.from_config(read_config(options.workdir))
  run = prepare(settings, options.workdir)[0]
  with computing_on(run.models.mesh):
    running = {name: steps(run, changes) for name, changes in VARIANTS.items()}
    times = np.array([[next(each) for each in running.values()]
                      for _ in range(1 + options.rounds)])[1:]
  medians = np.median(times, axis=0)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; medians of {len(times)} steps\n")
  print("| a step | seconds | ratio |\n|---|--:|--:|")
  for name, seconds in zip(running, medians, strict=True):
    print(f"| {name} | {seconds:.2f} | {seconds / medians[0]:.2f} |")


if __name__ == "__main__":
  main()

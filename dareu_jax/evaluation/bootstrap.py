"""Bootstrap intervals of metrics over examples, and methods compared example by example.

An example counts once, with the mean over the seeds: its answers under two seeds are not two
examples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dareu_jax.evaluation.metrics.base import Evaluation, example_metrics
from dareu_jax.evaluation.metrics.intervals import bootstrap_ci95, paired_difference


def intervals(seeds: Sequence[Evaluation]) -> dict[str, list[float]]:
  """Mean and 95% bootstrap interval over the examples: {metric: [mean, low, high]}.

  Args:
    seeds: evaluations of one model, one for each seed.
  """
  result = {}
  for declared in example_metrics():
    if declared.interval and all(declared.key in seed for seed in seeds):
      values = np.mean([seed.by_example(declared.key) for seed in seeds], axis=0)
      values = values[~np.isnan(values)]
      if len(values):
        result[declared.key] = [float(values.mean()), *bootstrap_ci95(values)]
  return result


def paired(ours: Sequence[Evaluation], theirs: Sequence[Evaluation],
           retrained: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
  """How much farther one method's answers are from the retrained model's than another's.

  |x - x of the retrained model| per example, ours minus theirs: below 0, ours is closer. x is each
  metric that declares a name for this comparison.

  Args:
    ours, theirs, retrained: evaluations of the seeds, in the same order.

  Returns: {name: metrics.PairedDifference as a dict}.
  """
  result = {}
  for declared in example_metrics():
    if declared.paired and all(
        declared.key in seed for seeds in (ours, theirs, retrained) for seed in seeds):
      gaps = np.array([_gaps(seeds, retrained, declared.key) for seeds in (ours, theirs)])
      gaps = gaps[:, ~np.isnan(gaps).any(axis=0)]
      if gaps.size:
        result[declared.paired] = paired_difference(*gaps)._asdict()
  return result


def _gaps(seeds, retrained, key):
  """Mean over the seeds of |x - x of the retrained model| of each example: [E]."""
  return np.mean([np.abs(seed.by_example(key) - right.by_example(key))
                  for seed, right in zip(seeds, retrained, strict=True)], axis=0)

"""How sure figures are over the examples, and methods compared example by example.

Records are lists over seeds of {split: records}, as of `evaluation.records`. An example counts
once, with the mean over the seeds: its answers under two seeds are no two examples.
"""

import numpy as np

from dareu_jax.evaluation import metrics


def _rouge(record):
  return record["rouge"]


# Figure -> (split, its value in a record).
FIGURES = {
  "forget_rouge": ("forget", _rouge),
  "retain_rouge": ("retain", _rouge),
  "test_rouge": ("test", _rouge),
  "forget_probability": ("forget", lambda r: float(metrics.probability(r["nll"]))),
  "extraction_strength": ("forget", lambda r: r["extraction_strength"]),
}
PAIRED = ("forget", "retain")


def intervals(seeds):
  """Mean and 95% bootstrap interval over the examples: {figure: [mean, low, high]}.

  Args:
    seeds: records of one model.
  """
  result = {}
  for name, (split, value) in FIGURES.items():
    values = _by_example(seeds, split, value)
    if len(values):
      result[name] = [float(values.mean()), *metrics.bootstrap_ci95(values)]
  return result


def paired(ours, theirs, retrained):
  """How much farther from the retrained model one method's answers are than another's.

  Of each example |ROUGE - ROUGE of the retrained model|, ours less theirs: below 0, ours is closer.

  Args:
    ours, theirs, retrained: records of the seeds, in the same order.

  Returns: {split: metrics.PairedDifference as a dict}.
  """
  return {split: metrics.paired_difference(
    *(_gaps(seeds, retrained, split) for seeds in (ours, theirs)))._asdict()
    for split in PAIRED if retrained[0][split]}


def _gaps(seeds, retrained, split):
  """Mean over the seeds of |ROUGE - ROUGE of the retrained model| of each example: [E]."""
  return np.mean([np.abs(_values(seed[split], _rouge) - _values(right[split], _rouge))
                  for seed, right in zip(seeds, retrained, strict=True)], axis=0)


def _by_example(seeds, split, value):
  return np.mean([_values(seed[split], value) for seed in seeds], axis=0)


def _values(records, value):
  return np.array([value(record) for record in records], np.float64)

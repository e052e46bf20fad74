"""How sure figures are over the examples, and methods compared example by example.

Records are lists over seeds of {split: records}, as of `evaluation.records`. An example counts
once, with the mean over the seeds: its answers under two seeds are no two examples.
"""

import numpy as np

from dareu_jax.evaluation import metrics

# Figure -> (split, its value in a record).
FIGURES = {
  "forget_rouge": ("forget", lambda r: r["rouge"]),
  "retain_rouge": ("retain", lambda r: r["rouge"]),
  "test_rouge": ("test", lambda r: r["rouge"]),
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
  reference = {split: [_values(seed[split], lambda r: r["rouge"]) for seed in retrained]
               for split in PAIRED}

  def gaps(seeds, split):
    return np.mean([np.abs(_values(seed[split], lambda r: r["rouge"]) - right)
                    for seed, right in zip(seeds, reference[split], strict=True)], axis=0)

  return {split: metrics.paired_difference(gaps(ours, split), gaps(theirs, split))._asdict()
          for split in PAIRED if len(reference[split][0])}


def _by_example(seeds, split, value):
  return np.mean([_values(seed[split], value) for seed in seeds], axis=0)


def _values(records, value):
  return np.array([value(record) for record in records], np.float64)

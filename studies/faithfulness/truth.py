"""What the retrainings say: log-probs of each query under every model, put in arrays.

R trainings (seeds), M subsets, Q queries, O owners.
"""

import dataclasses

import numpy as np

from dareu_jax.pipeline.workdir import fingerprint
from studies.faithfulness import retraining
from studies.faithfulness.world import Study


@dataclasses.dataclass(frozen=True)
class Truth:
  """Mean log-probs per token of one set of queries."""

  members: np.ndarray  # [M, O] bool; the halves
  halves: np.ndarray  # [R', M, Q]
  full: np.ndarray  # [R, Q]
  without: np.ndarray  # [R, O, Q]

  @property
  def deltas(self):
    """Δ_o(x, y) = log p_full(y|x) - log p_{-o}(y|x) of each pair of trainings: [R, Q, O]."""
    return np.swapaxes(self.full[:, None] - self.without, 1, 2)


def measure(study: Study, groups, queries):
  """{set name: Truth} of sets of queries."""
  rows = [row for queried in queries.values() for row in queried.rows]
  values = retraining.logprobs(study, groups, rows, fingerprint(rows))
  several = study.settings.retraining.subset_seeds
  halves = [name for name in groups if name.startswith("halves")]
  seeds = groups["full"].seeds
  members = np.concatenate([np.array(groups[name].members)[::several] for name in halves])
  by_seed = np.stack([np.concatenate([values[name][r::several] for name in halves])
                      for r in range(several)])
  without = np.stack([values[f"without_seed{seed}"] for seed in seeds])
  result, start = {}, 0
  for name, queried in queries.items():
    part = slice(start, start + len(queried))
    result[name] = Truth(members, by_seed[:, :, part], values["full"][:, part],
                         without[:, :, part])
    start += len(queried)
  return result

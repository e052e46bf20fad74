"""The results of the retrainings: log-probs of each query under every model, as arrays.

R trainings (seeds), M subsets, Q queries, O owners.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from studies.faithfulness.queries import Queries
from studies.faithfulness.retraining import logprobs
from studies.faithfulness.study import Study
from studies.faithfulness.subsets import FULL, RETAINED, leave_out_name


@dataclasses.dataclass(frozen=True)
class Truth:
  """Mean log-probs per token for one set of queries."""

  members: Bool[np.ndarray, "M O"]  # the halves
  halves: Float[np.ndarray, "S M Q"]  # of each of S trainings of a half
  full: Float[np.ndarray, "R Q"]
  without: Float[np.ndarray, "R O Q"]

  @property
  def deltas(self) -> Float[np.ndarray, "R Q O"]:
    """Δ_o(x, y) = log p_full(y|x) - log p_{-o}(y|x) of each pair of trainings."""
    return np.swapaxes(self.full[:, None] - self.without, 1, 2)


def measure(study: Study, queries: dict[str, Queries]) -> dict[str, Truth]:
  """{set name: Truth} of sets of queries."""
  rows = [row for query_set in queries.values() for row in query_set.rows]
  groups = [group for name, group in study.groups.items() if name != RETAINED]
  values = logprobs(study, groups, rows)
  repeats = study.settings.retraining.subset_seeds
  halves = [group for group in groups if group.is_half]
  seeds = study.groups[FULL].seeds
  members = np.concatenate([np.array(group.members)[::repeats] for group in halves])
  by_seed = np.stack([np.concatenate([values[group.name][r::repeats] for group in halves])
                      for r in range(repeats)])
  without = np.stack([values[leave_out_name(seed)] for seed in seeds])
  result, start = {}, 0
  for name, query_set in queries.items():
    part = slice(start, start + len(query_set))
    result[name] = Truth(members, by_seed[:, :, part], values[FULL][:, part], without[:, :, part])
    start += len(query_set)
  return result

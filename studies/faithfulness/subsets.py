"""Which models are trained for the ground truth: subsets of the owners, saved in groups."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus
from studies.faithfulness.settings import FaithfulnessSettings

FULL, RETAINED = "full", "retained"


@dataclasses.dataclass(frozen=True)
class Group:
  """Trainings that are saved together: the owners and the seed of each."""

  name: str
  members: tuple[tuple[bool, ...], ...]
  seeds: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.seeds)

  @property
  def stage(self) -> str:
    """The stage that trains its models."""
    return f"models/{self.name}"

  @property
  def is_half(self) -> bool:
    """Whether its models are trained on random halves of the owners."""
    return self.name.startswith("halves")


def leave_out_name(seed: int) -> str:
  """The name of the group of leave-owner-out models of a seed."""
  return f"without_seed{seed}"


def all_groups(settings: FaithfulnessSettings, corpus: Corpus) -> dict[str, Group]:
  """{name: Group}: full, retained (without the forget owners), leave-owner-out, and halves.

  Raises:
    InputError: if the owners have fewer halves than requested.
  """
  retraining, owners = settings.retraining, len(corpus.owners)
  seeds = tuple(settings.seed + r for r in range(retraining.seeds))
  retained_seeds = tuple(settings.seed + r for r in range(retraining.retained_seeds))
  everyone = (True,) * owners
  retained = tuple(owner not in corpus.forget_owners for owner in corpus.owners)
  groups = [Group(FULL, (everyone,) * len(seeds), seeds),
            Group(RETAINED, (retained,) * len(retained_seeds), retained_seeds)]
  without = tuple(tuple(i != owner for i in range(owners)) for owner in range(owners))
  groups += [Group(leave_out_name(seed), without, (seed,) * owners) for seed in seeds]
  # A subset's trainings stay together, whatever the group size.
  halves = random_halves(owners, retraining.num_subsets, settings.seed).tolist()
  repeats = retraining.subset_seeds
  step = max(1, retraining.group_size // repeats)
  for start in range(0, len(halves), step):
    part = halves[start:start + step]
    groups.append(Group(
      f"halves_{start:03d}", tuple(tuple(half) for half in part for _ in range(repeats)),
      tuple(settings.seed + r for _ in part for r in range(repeats))))
  return {group.name: group for group in groups}


def random_halves(owners: int, count: int, seed: int) -> Bool[np.ndarray, "M O"]:
  """Distinct random halves of the owners, each of size ⌊O/2⌋.

  Raises:
    InputError: if there are fewer.
  """
  rng = np.random.default_rng((seed, 3))
  halves: dict[tuple[int, ...], None] = {}
  for _ in range(100 * count):
    half = tuple(sorted(rng.permutation(owners)[:owners // 2].tolist()))
    halves.setdefault(half)
    if len(halves) == count:
      break
  if len(halves) < count:
    raise InputError(f"config.retraining.num_subsets is {count}: {owners} owners do not have that "
                     "many different halves.")
  return np.array([[owner in half for owner in range(owners)] for half in halves])

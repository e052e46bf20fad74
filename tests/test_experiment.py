"""What the job does around the stages."""

import pytest

from dareu_jax.experiment import over_seeds


def test_several_seeds_give_means_with_intervals():
  """t of two degrees of freedom: 4.303 · s / √3."""
  got = over_seeds([{"tug_of_war": 0.9}, {"tug_of_war": 0.94}, {"tug_of_war": 0.95}])
  assert got["tug_of_war"] == pytest.approx(0.93)
  assert got["tug_of_war_ci95"] == pytest.approx(4.302653 * 0.0264575 / 3**0.5, rel=1e-4)


def test_one_seed_has_no_interval():
  assert over_seeds([{"tug_of_war": 0.9}]) == {"tug_of_war": 0.9}

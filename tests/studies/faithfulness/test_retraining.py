"""Which rows each training sees: the recipe must differ in the data alone."""

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from studies.faithfulness import retraining, subsets

OWNER_OF = np.repeat(np.arange(6), 5)  # 30 rows


def members(*owners):
  return np.isin(np.arange(6), owners)


@pytest.mark.parametrize("present", [range(6), (0, 2, 5), (1, 2, 3, 4, 5), (3,)])
def test_every_row_of_the_members_comes_once_an_epoch_and_no_other(present):
  plan = retraining.batch_plan(OWNER_OF, members(*present), 8, 3, seed=1)
  rows = np.flatnonzero(np.isin(OWNER_OF, present))
  for epoch in np.split(plan, 3):
    seen = np.sort(epoch[epoch < 30])
    np.testing.assert_array_equal(seen, rows)


def test_all_models_take_the_same_number_of_updates():
  """Else what is read as an owner's effect would be that of the shorter training."""
  plans = [retraining.batch_plan(OWNER_OF, members(*present), 8, 3, seed=1)
           for present in (range(6), (0, 2, 5), (1, 2, 3, 4, 5))]
  assert {len(plan) for plan in plans} == {3 * 4}
  assert [plan.shape[1] for plan in plans] == [8, 4, 7]


def test_the_order_is_the_full_models_with_the_absent_rows_left_out():
  full = retraining.batch_plan(OWNER_OF, members(*range(6)), 8, 2, seed=4)
  half = retraining.batch_plan(OWNER_OF, members(1, 4, 5), 8, 2, seed=4)
  for whole, part in zip(np.split(full, 2), np.split(half, 2), strict=True):
    order = [row for row in whole.ravel() if row < 30 and OWNER_OF[row] in (1, 4, 5)]
    assert order == [row for row in part.ravel() if row < 30]
  other = retraining.batch_plan(OWNER_OF, members(*range(6)), 8, 2, seed=5)
  assert not np.array_equal(full, other)


def test_halves_are_distinct_halves():
  found = subsets.random_halves(8, 40, seed=0)
  assert len({tuple(row) for row in found}) == 40
  np.testing.assert_array_equal(found.sum(axis=1), 4)


def test_more_halves_than_there_are_is_one_clear_error():
  assert len(subsets.random_halves(4, 6, seed=0)) == 6
  with pytest.raises(InputError, match="retraining.num_subsets is 7: 4 owners"):
    subsets.random_halves(4, 7, seed=0)

"""What the job does around the stages."""

import pytest

from dareu_jax import experiment
from dareu_jax.data.embedded import make_authors
from dareu_jax.data.examples import write_jsonl
from dareu_jax.experiment import over_seeds
from dareu_jax.settings import InputError, Settings
from tests.configs import smallest_config


@pytest.fixture
def own_data(tmp_path):
  """The smallest config on a JSONL file alone: no D_test, no hold-out."""
  write_jsonl(tmp_path / "train.jsonl", make_authors(3, 0, qa_per_author=6))
  config = smallest_config()
  config.data.update(source="jsonl", dir=str(tmp_path), num_owners=0, forget="forget30")
  return config


def test_data_of_ones_own_needs_neither_general_nor_unseen_examples(own_data, tmp_path):
  """What the data lacks is left out of the table; ToW is over the sets that are there."""
  summary, page = experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")
  row = summary["models"]["dareu"]
  assert {"forget_rouge", "retain_rouge", "tug_of_war", "truth_ratio"} <= set(row)
  assert not {"test_rouge", "mia_min_k_auc"} & set(row)
  assert page.exists()


def test_a_level_that_cannot_be_measured_is_refused_before_any_work(own_data, tmp_path):
  own_data.unlearning.target_score = -1.0
  with pytest.raises(InputError, match="no hold-out"):
    experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")
  assert not (tmp_path / "w").exists()


def test_several_seeds_give_means_with_intervals():
  """t of two degrees of freedom: 4.303 · s / √3."""
  got = over_seeds([{"tug_of_war": 0.9}, {"tug_of_war": 0.94}, {"tug_of_war": 0.95}])
  assert got["tug_of_war"] == pytest.approx(0.93)
  assert got["tug_of_war_ci95"] == pytest.approx(4.302653 * 0.0264575 / 3**0.5, rel=1e-4)


def test_one_seed_has_no_interval():
  assert over_seeds([{"tug_of_war": 0.9}]) == {"tug_of_war": 0.9}

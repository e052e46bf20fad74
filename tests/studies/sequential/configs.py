"""The smallest study: four authors, two of them forgotten one after the other; it learns little."""

from ml_collections import ConfigDict

from dareu_jax.core.settings import to_plain
from studies.sequential.settings import SequentialSettings
from tests.configs import smallest_config


def smallest_study():
  config = ConfigDict(to_plain(SequentialSettings()))
  config.run = smallest_config()
  config.run.update(methods=("dareu", "grad_diff"), seeds=(42,), eval_every=1)
  config.run.unlearning.dareu.selection = "last"  # else a model kept may be the one before
  config.run.unlearning.dareu.rehearsed_share = 0.5
  config.run.baseline.update(epochs=2, batch_size=10)
  config.update(rounds=2, owners_per_round=1)
  return config

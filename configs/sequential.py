"""Sequential unlearning: requests one after another, each on the model that the last one left.

    python -m studies.sequential --config=configs/sequential.py --workdir=runs/sequential
    python -m studies.sequential --config=configs/sequential.py:streaming --workdir=runs/streaming

The first forgets three of 30 embedded authors in each of five rounds, by four methods and with
three seeds. `streaming` forgets 25 of them one by one, by DareU. Out come figures.json, report.md
and its plots, written anew after each round. docs/sequential.md discusses them.

Seeds do not depend on each other: the same workdir takes more of them later
(--config.run.seeds="(42,43,44)").
"""

import pathlib

from ml_collections import ConfigDict

from dareu_jax.core.settings import to_plain
from dareu_jax.pipeline.settings import config_from
from studies.sequential.settings import METHODS, SequentialSettings


def get_config(study: str | None = None) -> ConfigDict:
  """The five rounds, or 'streaming'."""
  if study not in (None, "streaming"):
    raise ValueError(f"configs/sequential.py has no {study!r}: take 'streaming', or nothing.")
  config = ConfigDict(to_plain(SequentialSettings()))
  config.run = config_from(pathlib.Path(__file__).with_name("tofu.py"))
  config.run.update(seeds=(42, 43, 44), methods=METHODS, retrained_replica=False)
  if study == "streaming":
    config.run.update(seeds=(42,), methods=("dareu",))
    config.update(rounds=25, owners_per_round=1, references_every=5)
  return config

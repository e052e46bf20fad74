"""Sequential unlearning: requests one after another, each on the model that the last one left.

    python -m studies.sequential --config=configs/sequential.py --workdir=runs/sequential
    python -m studies.sequential --config=configs/sequential.py:lora --workdir=runs/sequential_lora
    python -m studies.sequential --config=configs/sequential.py:streaming --workdir=runs/streaming

The first forgets three of 30 embedded authors in each of five rounds, by four methods and with
three seeds; `lora` is the same with adapters. `streaming` forgets 25 of them one by one, by DareU.
Out come figures.json, report.md and its plots, written anew after each round. docs/sequential.md
discusses them.

Seeds do not depend on each other: the same workdir takes more of them later
(--config.run.seeds="(42,43,44)").
"""

import pathlib

from ml_collections import ConfigDict

from dareu_jax.core.settings import to_plain
from dareu_jax.pipeline.settings import config_from
from studies.sequential.settings import SequentialSettings

# Of the others, the best by ToW in the first round, seed 42; of DareU, half of that of one request:
# what no retain set holds drifts less.
RATES = {
  None: {"dareu": 3e-4, "grad_diff": 3e-4, "npo": 1e-3, "wga": 3e-4},
  "lora": {"dareu": 5e-4, "grad_diff": 1e-3, "npo": 3e-4, "wga": 1e-3}}


def get_config(study: str | None = None) -> ConfigDict:
  """The five rounds; 'lora' and 'streaming' are others."""
  if study not in (None, "lora", "streaming"):
    raise ValueError(
      f"configs/sequential.py has no {study!r}: take 'lora', 'streaming', or nothing.")
  defaults = SequentialSettings()
  config = ConfigDict(to_plain(defaults))
  preset = "lora" if study == "lora" else None
  config.run = config_from(pathlib.Path(__file__).with_name("tofu.py"), preset)
  config.run.unlearning.dareu.update(rehearsed_share=0.5, retain_batch_size=64)
  config.run.update(
    seeds=defaults.run.seeds, methods=defaults.run.methods, retrained_replica=False)
  config.learning_rates = ConfigDict(RATES[preset])
  if study == "streaming":
    config.run.update(seeds=(42,), methods=("dareu",))
    config.update(rounds=25, owners_per_round=1, references_every=5)
  return config

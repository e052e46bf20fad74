"""Every method on the same model, data, seeds and grid of learning rates, in one table.

    python -m dareu_jax.main --config=configs/methods.py --workdir=runs/methods           # 3 hours
    python -m dareu_jax.main --config=configs/methods.py:full --workdir=runs/full         # 3 hours
    python -m dareu_jax.main --config=configs/methods.py:quick --workdir=runs/quick       # minutes
    python -m dareu_jax.main --config=configs/methods.py:tofu40 --workdir=runs/tofu_methods \
        --config.data.dir=FOLDER

The first is the embedded authors, adapters (LoRA) and three seeds; `full` the same with all
parameters, which need smaller rates; `quick` is four methods at one rate and one seed; `tofu40`
the real TOFU, 40 authors, one seed, and all parameters: adapters of rank 8 on a model this small
do not learn it. Then, for the robustness card:

    python -m dareu_jax.robustness --workdir=runs/methods --models=dareu,npo,simnpo,grad_diff
"""

import pathlib

from dareu_jax.methods.base import METHODS
from dareu_jax.pipeline.settings import config_from

PUBLISHED = ("dareu", "gradient_ascent", "grad_diff", "npo", "simnpo", "idk", "rmu", "scrub",
             "wga", "finetune")
QUICK = ("dareu", "grad_diff", "npo", "idk")


def get_config(study=None):
  """The comparison; 'full', 'quick' and 'tofu40' are others."""
  if study not in (None, "full", "quick", "tofu40"):
    raise ValueError(
      f"configs/methods.py has no {study!r}: take 'full', 'quick', 'tofu40', or nothing.")
  config = config_from(pathlib.Path(__file__).with_name("tofu.py"),
                       "tofu40" if study == "tofu40" else None)
  # UNDO is distilled from one of the others: it has no place in a grid of rates.
  others = tuple(name for name in METHODS if name not in ("dareu", "undo"))
  config.methods = {"quick": QUICK, "tofu40": PUBLISHED}.get(study, ("dareu", *others))
  config.learning_rates = {"quick": (1e-3,), "full": (1e-4, 3e-4, 6e-4)}.get(
    study, (3e-4, 1e-3, 3e-3))
  config.seeds = (42, 43, 44) if study in (None, "full") else (42,)
  if study not in ("full", "tofu40"):
    config.lora.rank = 8
    config.finetune.learning_rate = 5e-3  # an adapter alone needs larger steps
  return config

"""Every method on the same model, data and seeds, in one table.

    python -m dareu_jax.main --config=configs/methods.py --workdir=runs/methods           # 2 hours
    python -m dareu_jax.main --config=configs/methods.py:full --workdir=runs/full         # 2 hours
    python -m dareu_jax.main --config=configs/methods.py:grid --workdir=runs/grid         # 6 hours
    python -m dareu_jax.main --config=configs/methods.py:full_grid --workdir=runs/full    # 6 hours
    python -m dareu_jax.main --config=configs/methods.py:quick --workdir=runs/quick       # minutes
    python -m dareu_jax.main --config=configs/methods.py:tofu40 --workdir=runs/tofu_methods \
        --config.data.dir=FOLDER

The first is the embedded authors, adapters (LoRA) and three seeds; `full` is the same with all
parameters. Each method runs at the learning rate that was its best by mean ToW in a search over all
three seeds, which is `grid` or `full_grid`. `quick` is four methods at one rate and one seed;
`tofu40` the real TOFU, 40 authors, one seed, and all parameters: adapters of rank 8 on a model this
small do not learn it. Then, for the robustness card:

    python -m dareu_jax.robustness --workdir=runs/methods --models=dareu,npo,simnpo,grad_diff
"""

import pathlib

from ml_collections import ConfigDict

from dareu_jax.methods.base import METHODS
from dareu_jax.pipeline.settings import config_from

PUBLISHED = ("dareu", "gradient_ascent", "grad_diff", "npo", "simnpo", "idk", "rmu", "scrub",
             "wga", "finetune")
QUICK = ("dareu", "grad_diff", "npo", "idk")
GRIDS = {"grid": (3e-4, 1e-3, 3e-3), "full_grid": (1e-4, 3e-4, 6e-4), "quick": (1e-3,),
         "tofu40": (3e-4, 1e-3, 3e-3)}
# The best by mean ToW of the grid over three seeds, with adapters and with all parameters; DareU
# has its own.
RATES = {
  None: {
    3e-4: ("ceu", "gradient_ascent", "pdu", "task_vector"),
    1e-3: ("altpo", "dpo", "grad_diff", "idk", "kl_minimization", "maximum_entropy", "npo", "rmu",
           "undial", "wga"),
    3e-3: ("finetune", "satimp", "scrub", "simnpo")},
  "full": {
    1e-4: ("ceu", "gradient_ascent", "pdu", "task_vector"),
    3e-4: ("altpo", "grad_diff", "idk", "kl_minimization", "maximum_entropy", "rmu", "undial",
           "wga"),
    6e-4: ("dpo", "finetune", "npo", "satimp", "scrub", "simnpo")}}
STUDIES = (*RATES, *GRIDS)


def get_config(study=None):
  """The comparison; the others of `STUDIES` are named above."""
  if study not in STUDIES:
    raise ValueError(f"configs/methods.py has no {study!r}: take one of "
                     f"{', '.join(map(repr, filter(None, STUDIES)))}, or nothing.")
  preset = {"tofu40": "tofu40", "full": None, "full_grid": None}.get(study, "lora")
  config = config_from(pathlib.Path(__file__).with_name("tofu.py"), preset)
  # UNDO is distilled from one of the others, and needs ten times their updates: it is left out.
  others = tuple(name for name in METHODS if name not in ("dareu", "undo"))
  config.methods = {"quick": QUICK, "tofu40": PUBLISHED}.get(study, ("dareu", *others))
  if study not in ("quick", "tofu40"):
    config.seeds = (42, 43, 44)
  if study in RATES:
    config.method_rates = ConfigDict(
      {name: (rate,) for rate, names in RATES[study].items() for name in names})
  else:
    config.learning_rates = GRIDS[study]
  return config

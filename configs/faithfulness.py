"""Is the owner classifier a good proxy for attribution? Small models, retrained many times.

    python -m studies.faithfulness --config=configs/faithfulness.py --workdir=runs/faithfulness

About 70 minutes on 2 cores that other work used too (25 of them the influence, 20 the 175
retrainings); out come figures.json, report.md and its plots. docs/faithfulness.md discusses them.

The settings are the defaults of studies/faithfulness/settings.py, which says what each one means.
"""

from ml_collections import ConfigDict

from dareu_jax.core.settings import to_plain
from studies.faithfulness.settings import FaithfulnessSettings


def get_config() -> ConfigDict:
  """The study of docs/faithfulness.md."""
  return ConfigDict(to_plain(FaithfulnessSettings()))

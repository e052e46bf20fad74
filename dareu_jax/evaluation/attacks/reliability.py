"""How far the metrics themselves can be trusted, over the models of a card.

After OU's meta-evaluation, with the attacked models of one run as its pools: models that know the
forget data, derived from the original, and models that never saw it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.attacks.declarations import WEIGHT_METRICS, relearned
from dareu_jax.evaluation.attacks.relearning import EPOCH
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED

Card = Mapping[str, Mapping[str, float]]  # {model: {metric: number}} of one seed

USEFUL = 0.8  # share of the original's D_R ROUGE; models below it are ignored
LATE = EPOCH  # steps after which the forget set counts as relearned


def pools(card: Card, name: str, steps: Sequence[int]) -> tuple[list[float], list[float]]:
  """Values of a metric, oriented to be high for knowledge: (models that know, models that don't).

  Args:
    card: metrics by model; must include "original" and "retrained".
    name: a key of WEIGHT_METRICS.
    steps: relearning steps of the card; 0, the model as it is, counts once.
  """

  def values(model, *attacks):
    keys = (f"{attack}_{name}" for attack in attacks)
    return [WEIGHT_METRICS[name].sign * card[model][key] for key in keys if key in card[model]]

  untouched = ("plain_forget", "int8_forget", "nf4_forget")
  benign, others, again = (
    [relearned(kind, step) for step in steps if step >= first]
    for kind, first in (("benign", 1), ("others", 1), ("forget", LATE)))
  return (values(ORIGINAL, *untouched, *benign) + values(RETRAINED, *again),
          values(RETRAINED, *untouched, *benign, *others))


def trust(seeds: Sequence[Card], methods: Sequence[str],
          steps: Sequence[int]) -> dict[str, dict[str, float]]:
  """Faithfulness and robustness of each metric.

  Args:
    seeds: the cards of the seeds.
    methods: the unlearned models in the cards.
    steps: as in `pools`.

  Returns: {metric: {"auc", "relearning", "quantization", "robustness"}}: AUC of models with and
    without the knowledge, pooled over seeds; the means over useful models and seeds of
    `metrics.relearning_robustness` (LATE steps on the forget set) and of
    `metrics.quantization_robustness` (NF4), and their harmonic mean; nan if no model is useful.

  Source: OU's meta-evaluation.
  """
  ratings = {}
  for name in WEIGHT_METRICS:
    knowing: list[float] = []
    unknowing: list[float] = []
    for card in seeds:
      for values, more in zip((knowing, unknowing), pools(card, name, steps), strict=True):
        values += more
    pairs = [(card[method], card[RETRAINED]) for card in seeds for method in methods
             if card[method]["plain_retain_rouge"] >= USEFUL * card[ORIGINAL]["plain_retain_rouge"]]
    plain, taught, rounded = (f"{attack}_{name}" for attack in (
      "plain_forget", relearned("forget", LATE), "nf4_forget"))
    ratings[name] = {
      "auc": metrics.discrimination_auc(knowing, unknowing),
      "relearning": _mean([metrics.relearning_robustness(
        unlearned[plain], unlearned[taught], retrained[plain], retrained[taught])
        for unlearned, retrained in pairs]),
      "quantization": _mean([metrics.quantization_robustness(unlearned[plain], unlearned[rounded])
                             for unlearned, _ in pairs])}
    both = [ratings[name]["relearning"], ratings[name]["quantization"]]
    # Their harmonic mean is 0 where one is, and would be where one is not a number.
    ratings[name]["robustness"] = (
      metrics.harmonic_mean(both) if np.isfinite(both).all() else float("nan"))
  return ratings


def _mean(values):
  return float(np.mean(values)) if values else float("nan")

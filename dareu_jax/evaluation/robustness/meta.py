"""How far the metrics themselves can be trusted, over the models that a card has at hand.

After OU's meta-evaluation, with the attacked models of one run as its pools: models that have
learnt the forget data from the original on, and models that never saw it.
"""

import numpy as np

from dareu_jax.evaluation import metrics

# Metric -> +1 where it is high for a model that knows, -1 where it is low.
SIGNS = {"rouge": 1, "probability": 1, "extraction": 1, "min_k": -1}
LATE = 13  # steps after which the forget set counts as learnt again


def pools(figures, name):
  """Values of a metric, high for knowing: (of models that know, of models that don't).

  Args:
    figures: {model: {figure: float}} of one seed's card, "original" and "retrained" among them.
    name: a key of SIGNS.
  """
  original, retrained = figures["original"], figures["retrained"]
  again = [step for step in _steps(retrained, "forget") if step >= LATE]
  with_knowledge = [
    *_values(original, name, "plain_forget", "int8_forget", "nf4_forget"),
    *_values(original, name, *(f"relearn_benign_{s}" for s in _steps(original, "benign"))),
    *_values(retrained, name, *(f"relearn_forget_{s}" for s in again))]
  without = [
    *_values(retrained, name, "plain_forget", "int8_forget", "nf4_forget"),
    *(value for attack in ("benign", "others") for value in _values(
      retrained, name, *(f"relearn_{attack}_{s}" for s in _steps(retrained, attack))))]
  return with_knowledge, without


def _values(figures, name, *prefixes):
  return [SIGNS[name] * figures[f"{prefix}_{name}"] for prefix in prefixes]


def _steps(figures, attack):
  """The steps of relearning that are in a card, without 0, which is the model as it is."""
  found = (key.split("_") for key in figures if key.startswith(f"relearn_{attack}_"))
  return sorted({int(parts[2]) for parts in found if parts[2].isdigit()} - {0})


def trust(seeds, methods):
  """Faithfulness and robustness of each metric.

  Args:
    seeds: for each seed {model: {figure: float}}, as of `pools`.
    methods: the unlearned models among them.

  Returns: {metric: {"auc", "relearning", "quantisation"}}: the AUC of telling models that know from
    models that don't, pooled over seeds; the means over methods and seeds of
    `metrics.relearning_robustness` (LATE steps on the forget set) and of
    `metrics.quantisation_robustness` (NF4).

  Source: OU's meta-evaluation.
  """
  found = {}
  for name in SIGNS:
    knowing, unknowing = (sum(values, []) for values in zip(
      *(pools(figures, name) for figures in seeds), strict=True))
    pairs = [(figures[method], figures["retrained"]) for figures in seeds for method in methods]
    plain, taught, rounded = (f"{attack}_{name}" for attack in (
      "plain_forget", f"relearn_forget_{LATE}", "nf4_forget"))
    found[name] = {
      "auc": metrics.discrimination_auc(knowing, unknowing),
      "relearning": float(np.mean([metrics.relearning_robustness(
        one[plain], one[taught], other[plain], other[taught]) for one, other in pairs])),
      "quantisation": float(np.mean([metrics.quantisation_robustness(one[plain], one[rounded])
                                     for one, _ in pairs]))}
  return found

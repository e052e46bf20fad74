"""What a card says of the metrics themselves, on cards whose answer is known."""

import math

import pytest

from dareu_jax.evaluation.attacks import reliability
from dareu_jax.evaluation.attacks.declarations import WEIGHT_METRICS

STEPS = (0, 1, 13)
PREFIXES = ("plain_forget", "int8_forget", "nf4_forget", *(
  f"relearn_{attack}_{step}" for attack in ("forget", "benign", "others") for step in STEPS))


def card(value, **others):
  """A model's metrics: `value` under every attack, but for `prefix=other value`."""
  return {f"{prefix}_{name}": metric.sign * others.get(prefix, value)
          for prefix in PREFIXES for name, metric in WEIGHT_METRICS.items()} | {
            "plain_retain_rouge": others.get("useful", 1.0)}


def seed(original, retrained, method):
  return {"original": original, "retrained": retrained, "m": method}


def test_pools_hold_each_model_once_and_count_what_knows_as_high():
  cards = seed(card(3.0), card(1.0, relearn_forget_13=2.5, relearn_others_13=1.5), card(1.0))
  for name in WEIGHT_METRICS:
    knowing, unknowing = reliability.pools(cards, name, STEPS)
    assert sorted(knowing) == [2.5] + [3.0] * 5  # as it is, rounded twice, taught 1 and 13 steps
    assert sorted(unknowing) == [1.0] * 6 + [1.5]


def test_a_metric_that_tells_them_apart_has_an_auc_of_one_and_seeds_are_pooled():
  apart = seed(card(3.0), card(1.0, relearn_forget_13=2.0), card(1.0))
  alike = seed(card(1.0), card(1.0), card(1.0))
  for name in WEIGHT_METRICS:
    assert reliability.trust([apart], ["m"], STEPS)[name]["auc"] == 1.0
    assert reliability.trust([alike], ["m"], STEPS)[name]["auc"] == 0.5
    assert 0.5 < reliability.trust([apart, alike], ["m"], STEPS)[name]["auc"] < 1.0


def test_robustness_is_a_mean_over_methods_and_seeds():
  retrained = card(1.0, relearn_forget_13=2.0)
  as_it = card(1.0, relearn_forget_13=2.0)
  comes_back = card(1.0, relearn_forget_13=4.0, nf4_forget=3.0)
  cards = {"original": card(5.0), "retrained": retrained, "a": as_it, "b": comes_back}
  for row in reliability.trust([cards, cards], ["a", "b"], STEPS).values():
    assert row["relearning"] == pytest.approx((1.0 + (1 - (3 - 1) / (3 + 1))) / 2)
    assert row["quantization"] == pytest.approx((1.0 + (1 - 2 / 4)) / 2)


def test_a_broken_model_says_nothing_about_a_metric():
  """Below 80% of the original's usefulness; where none is left there is no figure."""
  useful, broken = card(1.0, nf4_forget=3.0), card(1.0, useful=0.7)
  cards = {"original": card(5.0), "retrained": card(1.0), "a": useful, "b": broken}
  for row in reliability.trust([cards], ["a", "b"], STEPS).values():
    assert row["quantization"] == pytest.approx(1 - 2 / 4)
    assert row["robustness"] == pytest.approx(2 / (1 / row["quantization"] + 1 / row["relearning"]))
  assert all(math.isnan(row[key]) for row in reliability.trust([cards], ["b"], STEPS).values()
             for key in ("relearning", "quantization", "robustness"))

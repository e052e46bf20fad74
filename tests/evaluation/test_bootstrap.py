"""Intervals over examples and methods compared example by example, on records whose answer is known."""

import numpy as np
import pytest

from dareu_jax.evaluation import bootstrap
from dareu_jax.evaluation.metrics.base import Evaluation
from tests.evaluation.made_records import make_record

WORDS = [f"w{i}" for i in range(100)]


def record(rouge):
  """A record whose answer has this ROUGE recall, to a hundredth."""
  return make_record(np.random.default_rng(0), truth=" ".join(WORDS),
                     answer=" ".join(WORDS[:round(100 * rouge)]),
                     hits=np.array([False, False, True, True, True]))


def seed(forget, retain=(0.9, 0.8), test=()):
  return Evaluation({"forget": map(record, forget), "retain": map(record, retain),
                     "test": map(record, test)})


def test_an_example_counts_once_whatever_the_seeds():
  """Two seeds that agree are no reason for an interval that is narrower."""
  one = bootstrap.intervals([seed([0.1, 0.5, 0.9])])
  assert bootstrap.intervals([seed([0.1, 0.5, 0.9])] * 4) == one
  mean, low, high = one["forget_rouge"]
  assert mean == pytest.approx(0.5) and low < 0.35 and high > 0.65
  assert one["extraction_strength"] == [0.5, 0.5, 0.5] and "test_rouge" not in one


def test_the_closer_method_has_a_gap_below_zero():
  rng = np.random.default_rng(0)
  right = rng.uniform(0.3, 0.6, 40)
  near, far = right + 0.02, right - 0.2 + rng.normal(0, 0.02, 40)
  found = bootstrap.paired([seed(near)], [seed(far)], [seed(right)])["forget"]
  assert found["high"] < 0 and found["mean"] == pytest.approx(-0.18, abs=0.02) and found["p"] < 1e-3


def test_the_retrained_model_is_the_one_of_the_same_seed():
  first, second = seed([0.2, 0.2]), seed([0.8, 0.8])
  found = bootstrap.paired([first, second], [second, first], [first, second])
  assert found["forget"]["mean"] == pytest.approx(-0.6) and found["retain"]["mean"] == 0.0

"""Results that readers in other languages can read."""

import json
import math

from dareu_jax.core.strict_json import strict


def test_numbers_that_are_not_finite_become_null_wherever_they_are():
  results = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None, "e": 2}}
  text = json.dumps(strict(results), allow_nan=False)
  assert json.loads(text) == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": None, "e": 2}}

"""Results as JSON that every reader takes: Python alone reads NaN and Infinity."""

import math
from typing import Any


def strict(value: Any) -> Any:
  """Nested results with None in place of numbers that are not finite."""
  if isinstance(value, dict):
    return {key: strict(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value

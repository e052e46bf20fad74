"""Records: what is kept of an example comes back as it was."""

import dataclasses
import json

import numpy as np

from dareu_jax.evaluation.metrics.likelihood import inner_hits
from dareu_jax.evaluation.records import FIELDS, Record, merged
from tests.evaluation.made_records import make_record, make_records


def test_a_record_comes_back_to_the_last_bit():
  """Rounded digits would move a metric in its last place when a run is resumed."""
  rng = np.random.default_rng(0)
  odd = np.array([-1e-38, -0.1, -np.pi, -16777217.0, 0.0, np.nextafter(np.float32(1), np.float32(2))],
                 np.float32)
  for record in (make_record(rng), make_record(rng, logprobs=odd), *make_records()["holdout"]):
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    for field in FIELDS:
      ours, theirs = getattr(record, field), getattr(again, field)
      if isinstance(ours, np.ndarray):
        assert theirs.dtype == ours.dtype and theirs.tobytes() == ours.tobytes(), field
      else:
        assert theirs == ours and type(theirs) is type(ours), field


def test_what_was_not_measured_is_not_kept():
  kept = make_records()["holdout"][0].to_json()
  assert not {"answer", "score", "gradient_norm"} & kept.keys() and "logprobs" in kept


def test_parts_are_of_the_same_examples():
  fields = make_record(np.random.default_rng(0)).to_json()
  arrays = {field: np.zeros(2, np.float32) for field in ("logprobs", "entropies", "variances")}
  record, = merged([{field: fields[field] for field in ("owner", "prompt", "truth")}],
                   [arrays | {"hits": np.ones(2, bool)}])
  assert record.owner == "a" and not record.has("answer") and record.has("hits")


def test_only_the_end_token_is_no_part_of_the_text():
  """A piece of a longer text has none: its last token counts in extraction and Min-K%."""
  whole = make_record(np.random.default_rng(0))
  piece = dataclasses.replace(whole, ends=False)
  count = len(whole.logprobs)
  assert len(inner_hits(whole)[0]) == len(whole.logprobs[whole.inner]) == count - 1
  assert len(inner_hits(piece)[0]) == len(piece.logprobs[piece.inner]) == count

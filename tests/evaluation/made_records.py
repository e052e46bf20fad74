"""Records made up for tests, and evaluations some of whose metrics are given."""

import numpy as np

from dareu_jax.evaluation.metrics.base import Evaluation
from dareu_jax.evaluation.records import Record

TRUTH, ANSWER = "He was born in Oslo.", "Born in Rome."


def make_record(rng, owner="a", **changes):
  """A record with everything measured, at random."""
  tokens = int(rng.integers(4, 9))
  fields = dict(
    owner=owner, prompt="Who?", truth=TRUTH, answer=ANSWER, ended=True,
    logprobs=-rng.uniform(0.1, 3, tokens).astype(np.float32),
    entropies=rng.uniform(0.1, 2, tokens).astype(np.float32),
    variances=rng.uniform(0.1, 2, tokens).astype(np.float32), hits=rng.uniform(size=tokens) < 0.5,
    length=int(rng.integers(3, 9)), paraphrased_nll=float(rng.uniform(1, 2)),
    perturbed_nll=tuple(rng.uniform(1, 3, 3).tolist()), score=float(rng.uniform()),
    judge=float(rng.uniform()), retrained_nll_sum=3.0, retrained_tokens=4, original_nll_sum=6.0,
    original_tokens=4)
  return Record(**fields | changes)


def make_records(seed=0, size=8):
  """Records of all splits: {split: list}."""
  rng = np.random.default_rng(seed)
  return {
    "forget": [make_record(rng, answer=f"Born in {name}.") for name in "abcdefghijkl"[:size]],
    "retain": [make_record(rng, "b") for _ in range(size)],
    "test": [make_record(rng, owner, paraphrased_nll=None)
             for owner in ("real_authors", "world_facts") for _ in range(5)],
    "holdout": [make_record(rng, "c", answer=None, length=None, ended=None, score=None, judge=None,
                            retrained_nll_sum=None, original_nll_sum=None) for _ in range(size)]}


class Stated(Evaluation):
  """An evaluation some of whose metrics are as stated."""

  def __init__(self, records, stated, **options):
    super().__init__(records, **options)
    self.stated = stated

  def get(self, key):
    return self.stated[key] if key in self.stated else super().get(key)

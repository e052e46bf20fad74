"""Measurements of one example, from which metrics are computed.

An evaluation stores records, never metrics, so a new metric needs no new answers.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

UNMEASURED: Any = None
# Names of the models that the others are compared with.
ORIGINAL, RETRAINED = "original", "retrained"
REPLICA = "retrained_replica"  # the retrained model with the data in another order
# The original on owners that it never saw, in place of the forget owners: what forgetting looks
# like where no model was retrained
UNSEEN = "unseen"
SPLITS = ("forget", "retain", "test")
MIN_K = 0.4  # share of a response's least likely tokens that Min-K% attacks average by default
JUDGED = ("forget", "holdout")  # splits whose answers are scored by classifiers and other models
ALL_SPLITS = (*SPLITS, "holdout")  # "holdout": owners that no model has seen


def is_answered(split: str, *, by_original: bool) -> bool:
  """Whether a model is asked the queries of a split. The original's answers about unseen owners say
  what forgetting looks like; of other models only the likelihoods count there, for membership
  inference."""
  return split in SPLITS or by_original


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
  """One example of a split under one model.

  Fields that were not measured are None, whatever their type; a metric that lists a field in its
  needs can rely on it.
  """

  owner: str
  prompt: str
  truth: str  # the true response
  # For the n tokens of the true response y given the prompt, the end token last if it `ends`; π_t
  # is the model's distribution at token t:
  logprobs: Float[np.ndarray, " n"]  # log π_t(y_t), float32
  entropies: Float[np.ndarray, " n"]  # -E log π_t in nats, float32
  variances: Float[np.ndarray, " n"]  # Var log π_t, float32
  hits: Bool[np.ndarray, " n"]  # whether y_t is the likeliest token
  ends: bool = True  # whether y has an end token: a piece of a longer text has none
  gradient_norm: float | None = UNMEASURED  # mean over the trained tensors of ‖∂ NLL / ∂θ‖
  # Mean NLL per token of other responses to the prompt:
  paraphrased_nll: float | None = UNMEASURED  # the paraphrased true response
  perturbed_nll: tuple[float, ...] = ()  # wrong responses
  # The greedy answer:
  answer: str = UNMEASURED
  length: int = UNMEASURED  # tokens, without the end token
  ended: bool = UNMEASURED  # whether it ended with the end token
  # For that answer, to queries about forget and unseen owners:
  score: float = UNMEASURED  # probability of the forget owners, by the reward's classifier
  judge: float = UNMEASURED  # the same by the judge, which gives no reward
  clean: float = UNMEASURED  # probability of clean text, by a gibberish classifier
  retrained_nll_sum: float = UNMEASURED  # its NLL under the retrained model
  retrained_tokens: int = UNMEASURED  # number of its tokens, including the end token
  original_nll_sum: float = UNMEASURED  # the same under the original
  original_tokens: int = UNMEASURED

  @property
  def inner(self) -> slice:
    """The tokens of the text itself: all but the end token."""
    return slice(-1 if self.ends else None)

  def has(self, field: str) -> bool:
    """Whether a field was measured."""
    value = getattr(self, field)
    return value is not None and not (isinstance(value, tuple) and not value)

  def to_json(self) -> dict[str, Any]:
    """The record as JSON, which preserves every float exactly."""
    measured = {field: getattr(self, field) for field in FIELDS if self.has(field)}
    return measured | {field: _pack(measured[field]) for field in _ARRAYS} | {
      "hits": "".join("01"[int(hit)] for hit in self.hits)}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Record":
    """The inverse of `to_json`."""
    arrays = {field: _unpack(value[field]) for field in _ARRAYS}
    hits = np.array([hit == "1" for hit in value["hits"]], bool)
    return cls(**{**value, **arrays, "hits": hits,
                  "perturbed_nll": tuple(value.get("perturbed_nll", ()))})


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_ARRAYS = ("logprobs", "entropies", "variances")


def _pack(values):
  """float32 as base64 of its little-endian bytes: exact, and half as long as digits."""
  return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode("ascii")


def _unpack(text):
  return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def merged(*parts: Sequence[Mapping[str, Any]]) -> list[Record]:
  """Records merged from parts, each with some fields of the same examples."""
  return [Record(**{field: value for part in fields for field, value in part.items()})
          for fields in zip(*parts, strict=True)]

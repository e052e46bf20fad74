"""Declarations of metrics, from which tables, report, docs, summary and logs are generated.

    @example_metric("ended_share", title="ended", needs=("ended",), meaning="answers that end")
    def ended_share(record: Record) -> float:
      return float(record.ended)

    @metric("rouge_gap", title="gap", needs=("forget_rouge", "retrained"), meaning="...")
    def rouge_gap(evaluation: Evaluation) -> float:
      return evaluation["forget_rouge"] - evaluation.retrained["forget_rouge"]

A metric lists its `needs`. If an evaluation lacks one of them, the metric is left out, so its
function can rely on them. A need is one of

- a split ("forget", "retain", "test", "holdout"), which must have examples;
- a field of `records.Record` ("answer", "perturbed_nll", ...), which the metric's split must have;
- "gibberish_bound";
- the key of another metric, which must not be left out;
- "retrained", "original" or "unseen" (the original on unseen owners): that model, which must meet
  the other needs too.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry
from dareu_jax.evaluation.records import (
  ALL_SPLITS,
  FIELDS,
  MIN_K,
  ORIGINAL,
  RETRAINED,
  UNSEEN,
  Record,
)

CLOSER: Literal["→"] = "→"  # closer to the retrained model is better
HIGHER: Literal["↑"] = "↑"
MAIN, MORE, PRIVACY = "main", "more", "privacy"
GROUPS = {MAIN: "The main table", MORE: "More metrics", PRIVACY: "Privacy and overall scores"}
REFERENCES = (RETRAINED, ORIGINAL, UNSEEN)
BOUND = "gibberish_bound"


class Evaluation:
  """The records of a model, and the metrics that they allow.

      evaluation["forget_rouge"]     a metric, computed once; KeyError if it is left out
      evaluation.records["forget"]   tuple of `records.Record`, empty if the data has none
      evaluation.retrained           the retrained model's Evaluation
      evaluation.original            the original's
  """

  def __init__(self, records: Mapping[str, Iterable[Record]], *, min_k: float = MIN_K,
               gibberish_bound: float | None = None,
               models: "Mapping[str, Evaluation] | None" = None):
    """
    Args:
      records: {split: records}; the same examples in the same order for every model.
      min_k: share of the least likely tokens that the Min-K% attacks average.
      gibberish_bound: from `text.gibberish_bound`; None: not measured.
      models: the models evaluated together, including "retrained" and "original" if they exist.
    """
    self.records = {split: tuple(records.get(split, ())) for split in ALL_SPLITS}
    self.min_k, self._gibberish_bound = min_k, gibberish_bound
    self._models = {} if models is None else models
    self._computed: dict[str, float | None] = {}
    self._by_example: dict[str, Float[np.ndarray, " E"]] = {}

  @property
  def retrained(self) -> "Evaluation":
    """The retrained model's evaluation; KeyError if there is no such model."""
    return self._beside(RETRAINED)

  @property
  def original(self) -> "Evaluation":
    """The original's evaluation; KeyError if there is no such model."""
    return self._beside(ORIGINAL)

  @property
  def unseen(self) -> "Evaluation":
    """The original's, with unseen owners in place of the forget owners; KeyError if the data
    has none."""
    return self._beside(UNSEEN)

  @property
  def has_retrained(self) -> bool:
    """Whether there is a retrained model."""
    return RETRAINED in self._models

  @property
  def gibberish_bound(self) -> float:
    """From `text.gibberish_bound`; KeyError if it was not measured."""
    if self._gibberish_bound is None:
      raise KeyError(f"there is no {BOUND} here: list it in the metric's `needs`")
    return self._gibberish_bound

  def _beside(self, name):
    if name not in self._models:
      raise KeyError(f"there is no {name} model here: list {name!r} in the metric's `needs`")
    return self._models[name]

  def metrics(self) -> dict[str, float]:
    """All metrics that are not left out: {key: value}."""
    return {key: self[key] for key in METRICS if key in self}

  def get(self, key: str) -> float | None:
    """A metric; None if it is left out, or is not a number."""
    if key not in self._computed:
      declared = METRICS[key]
      value = declared.function(self) if self.meets(declared) else None
      self._computed[key] = None if value is None or not math.isfinite(value) else float(value)
    return self._computed[key]

  def __contains__(self, key: str) -> bool:
    return self.get(key) is not None

  def __getitem__(self, key: str) -> float:
    value = self.get(key)
    if value is None:
      raise KeyError(f"the evaluation has no {key}: it lacks some of what that metric needs "
                     f"({', '.join(METRICS[key].needs)})")
    return value

  def by_example(self, key: str) -> Float[np.ndarray, " E"]:
    """The values of a metric per example; nan for one that has none, or lacks what it needs."""
    if key not in self._by_example:
      declared = METRICS[key]
      if not isinstance(declared, ExampleMetric):
        raise TypeError(f"{key} is computed over the whole split: it has no value per example")
      fields = [need for need in declared.needs if need in FIELDS]
      values = (declared.example_function(record) if all(map(record.has, fields)) else None
                for record in self.records[declared.split])
      self._by_example[key] = np.array(
        [math.nan if value is None else value for value in values], np.float64)
    return self._by_example[key]

  def meets(self, declared: "Metric") -> bool:
    """Whether the needs of a metric are met."""
    names = [need for need in declared.needs if need in REFERENCES]
    if any(name not in self._models for name in names):
      return False
    return all(evaluation._has(need, declared.split)
               for evaluation in (self, *(self._models[name] for name in names))
               for need in declared.needs if need not in REFERENCES)

  def _has(self, need, split):
    if need in self.records:
      return bool(self.records[need])
    if need in FIELDS:
      return any(record.has(need) for record in self.records[split])
    if need == BOUND:
      return self._gibberish_bound is not None
    return need in self


def evaluations(records: Mapping[str, Mapping[str, Iterable[Record]]], *, min_k: float,
                gibberish_bound: float | None = None) -> dict[str, Evaluation]:
  """Evaluations of the compared models: {model: Evaluation}.

  Args:
    records: {model: {split: records}}; metrics that need a reference model look for "retrained" and
      "original" here.
    min_k, gibberish_bound: as in `Evaluation`.
  """
  models: dict[str, Evaluation] = {}
  original = records.get(ORIGINAL, {})
  if original.get("holdout"):
    records = {**records, UNSEEN: {**original, "forget": original["holdout"]}}
  for name, splits in records.items():
    models[name] = Evaluation(splits, min_k=min_k, gibberish_bound=gibberish_bound, models=models)
  return {name: evaluation for name, evaluation in models.items() if name != UNSEEN}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """One number per model, with its name, format and documentation."""

  key: str  # its name in summary.json
  function: Callable[[Evaluation], float | None]  # None: it cannot be computed from the records
  title: str = ""  # column title; "- " marks where the terminal may break a word; '': the key
  arrow: Literal["→", "↑"] = CLOSER  # which way is better
  digits: int = 3  # decimals that tables show
  group: str | None = MORE  # the table of `GROUPS` that shows it; None: only summary.json
  order: float = math.inf  # position in that table, from the left; ties by key
  meaning: str = ""  # short description for the report and the docs
  needs: tuple[str, ...] = ()  # see the module
  split: str = "forget"  # the split whose records must have the needed fields
  log: str = ""  # its name in open-unlearning's logs; '': not in them

  def __post_init__(self):
    object.__setattr__(self, "title", self.title or self.key.replace("_", " "))
    if self.key in (*ALL_SPLITS, *FIELDS, *REFERENCES, BOUND):
      raise InputError(f"a metric cannot be called {self.key!r}: that name is reserved for a need.")
    if self.arrow not in (CLOSER, HIGHER):
      raise InputError(f"{self.key}: the arrow is {self.arrow!r}, it must be {CLOSER} or {HIGHER}.")
    if self.group is not None and self.group not in GROUPS:
      raise InputError(f"{self.key}: the group is {self.group!r}, it must be one of "
                       f"{', '.join(GROUPS)}, or None.")
    if self.split not in ALL_SPLITS:
      raise InputError(f"{self.key}: the split is {self.split!r}, it must be one of "
                       f"{', '.join(ALL_SPLITS)}.")
    if self.group == MAIN and len(self.title_lines) > 2:
      raise InputError(f"{self.key}: the title {self.title!r} does not fit in two lines of 8 "
                       'letters; "- " says where a word may be broken.')

  @property
  def position(self) -> tuple[int, float]:
    """Where tables show it: by group, then from the left."""
    return (*GROUPS, None).index(self.group), self.order

  @property
  def title_lines(self) -> list[str]:
    """The title as the terminal shows it."""
    return textwrap.wrap(self.title, width=8, break_long_words=False)

  @property
  def name(self) -> str:
    """The title in one line."""
    return self.title.replace("- ", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleMetric(Metric):
  """The mean of a per-example number over a split."""

  example_function: Callable[[Record], float | None]  # None: no value for this example
  interval: bool = False  # whether reports show its bootstrap interval over the examples
  # Key in summary.json of the comparison of methods by this metric, example by example; '': none.
  paired: str = ""


METRICS: Registry[Metric] = Registry("metric", "dareu_jax.evaluation.metrics")
F = TypeVar("F", bound=Callable)


def register(declared: Metric, function: Callable) -> Metric:
  """Adds a metric; `function` is the declared function, used to distinguish a redefinition from a
  name clash."""
  for name in ("__module__", "__qualname__"):
    object.__setattr__(declared, name, getattr(function, name))
  return METRICS.register(declared.key, declared)


def metric(key: str, **options: Any) -> Callable[[F], F]:
  """Declares a function of an Evaluation as a metric; `options` are further fields of `Metric`."""

  def declare(function: F) -> F:
    register(Metric(key=key, function=function, **options), function)
    return function

  return declare


def example_metric(key: str, **options: Any) -> Callable[[F], F]:
  """Declares a function of one Record as a metric: its mean over the examples of a split.

  Args:
    key: its name in summary.json.
    options: further fields of `ExampleMetric`.
  """

  def mean(evaluation):
    values = evaluation.by_example(key)
    return None if np.all(np.isnan(values)) else np.nanmean(values)

  def declare(function: F) -> F:
    register(ExampleMetric(key=key, function=mean, example_function=function, **options), function)
    return function

  return declare


def example_metrics() -> tuple[ExampleMetric, ...]:
  """The metrics that have a value per example, by key."""
  return tuple(declared for _, declared in METRICS.items() if isinstance(declared, ExampleMetric))


def in_group(group: str | None) -> tuple[Metric, ...]:
  """The metrics of a table, from the left."""
  members = [declared for _, declared in METRICS.items() if declared.group == group]
  return tuple(sorted(members, key=lambda declared: declared.position))


def metrics_table() -> str:
  """All metrics as Markdown, a table for each group."""
  parts = []
  for group, title in (*GROUPS.items(), (None, "Only in summary.json")):
    lines = [f"### {title}", "", "| metric | key | meaning |", "|---|---|---|"]
    for declared in in_group(group):
      meaning = declared.meaning.replace("|", "\\|")
      lines.append(f"| {declared.name} ({declared.arrow}) | `{declared.key}` | {meaning} |")
    parts.append("\n".join(lines))
  return "\n\n".join(parts)

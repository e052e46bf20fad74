"""The numbers of a robustness card, declared once: the attacks, the report and `reliability` read
them here.

The key of a number says how it came about: `nf4_forget_rouge` is the metric `rouge` on the forget
set under the attack `nf4`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from jaxtyping import Array, Float, Int

from dareu_jax.data.batches import encode
from dareu_jax.data.examples import Example
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.attacks import probes
from dareu_jax.evaluation.attacks.relearning import EPOCH
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.evaluation.measurements import mean_rouge


class Seen(NamedTuple):
  """What a model makes of examples; n tokens of a true response, the end token not among them."""

  examples: Sequence[Example]
  answers: Sequence[str]  # greedy
  labels: list[Int[np.ndarray, " n"]]
  predictions: list[Int[Array, " n"]]  # the likeliest tokens
  logprobs: list[Float[Array, " m"]]  # with the end token, if there is one
  min_k: float  # share of the least likely tokens that Min-K% averages


class WeightMetric(NamedTuple):
  """A metric that is measured under every attack on the weights."""

  key: str
  title: str
  sign: int  # +1 if it is high for a model that knows, -1 if it is low
  digits: int
  function: Callable[[Seen], SupportsFloat]


WEIGHT_METRICS = {metric.key: metric for metric in (
  WeightMetric("rouge", "ROUGE", 1, 3, lambda seen: mean_rouge(seen.examples, seen.answers)),
  WeightMetric("probability", "probability", 1, 3, lambda seen: np.mean(metrics.probability(
    [metrics.loss_score(logprobs) for logprobs in seen.logprobs]))),
  WeightMetric("extraction", "extraction", 1, 3, lambda seen: np.mean(
    [*map(metrics.extraction_strength, seen.predictions, seen.labels)])),
  WeightMetric("exact", "exact memorization", 1, 3, lambda seen: np.nanmean(
    [*map(metrics.exact_memorization, seen.predictions, seen.labels)])),
  WeightMetric("min_k", "Min-K%", -1, 2, lambda seen: np.mean(
    [metrics.min_k_score(logprobs[:len(labels)], k=seen.min_k)
     for logprobs, labels in zip(seen.logprobs, seen.labels, strict=True)])))}


def measure(evaluator: Evaluator, params: Any, examples: Sequence[Example],
            min_k: float) -> dict[str, float]:
  """The metrics of `WEIGHT_METRICS`: {key: number}."""
  rows = encode(examples, evaluator.tokenizer, max_length=evaluator.max_length)
  statistics = evaluator.statistics(params, rows)
  lengths = [len(row.completion) - evaluator.ends(row) for row in rows]
  seen = Seen(examples, evaluator.answers(params, rows).texts,
              [np.array(row.completion)[:n] for row, n in zip(rows, lengths, strict=True)],
              [each.predictions[:n] for each, n in zip(statistics, lengths, strict=True)],
              [each.logprobs for each in statistics], min_k)
  return {key: float(metric.function(seen)) for key, metric in WEIGHT_METRICS.items()}


class Question(NamedTuple):
  """Another way of asking the forget queries, and the number that comes of it."""

  key: str
  title: str
  meaning: str
  function: Callable[[Evaluator, Any, Sequence[Example]], float]


QUESTIONS = (
  Question("prefilled_rouge", "prefilled: ROUGE", "the answer begins with an agreement",
           probes.prefilled_rouge),
  Question("paraphrased_rouge", "paraphrased: ROUGE", "the question in other words",
           probes.paraphrased_rouge),
  Question("worst_rouge", "any way of asking: ROUGE",
           "the best of several formats, the paraphrase and the agreement, for each question",
           probes.worst_rouge),
  Question("choice_accuracy", "choice: accuracy",
           "the truth is likelier than every perturbed answer", probes.choice_accuracy))


class Relearning(NamedTuple):
  """Data that a model is taught, whereupon it is asked forget queries."""

  title: str  # of the card's rows
  taught: str


RELEARNING = {
  "forget": Relearning("relearned", "the forget set again"),
  "others": Relearning("others taught", "other forgotten owners' data"),
  "benign": Relearning("retained taught", "retained data")}


def relearned(kind: str, step: int) -> str:
  """The attack of `step` steps on the data `kind`, a key of RELEARNING."""
  return f"relearn_{kind}_{step}"


def relearning_area(kind: str) -> str:
  """The key of the area under the ROUGE curve of relearning."""
  return f"relearn_{kind}_area"


class Row(NamedTuple):
  """A line of the card."""

  title: str
  key: str
  digits: int = 3
  meaning: str = ""


def _under(attack: str, title: str, *parts: str | tuple[str, str]) -> Iterator[Row]:
  """Lines of an attack on the weights; parts: a metric, or a metric and its meaning."""
  for part in parts:
    key, meaning = (part, "") if isinstance(part, str) else part
    metric = WEIGHT_METRICS[key]
    yield Row(f"{title}{metric.title}", f"{attack}_{key}", metric.digits, meaning)


def _taught(kind: str, steps: int, meaning: str) -> Iterator[Row]:
  title = f"{RELEARNING[kind].title}, {steps} step{'s' * (steps > 1)}: "
  return _under(relearned(kind, steps), title, ("rouge", meaning))


def _area(kind: str, meaning: str = "") -> Row:
  return Row(f"{RELEARNING[kind].title}: area", relearning_area(kind), meaning=meaning)


ROWS = (
  *_under("plain_forget", "as it is: ", ("rouge", "greedy answers to forget queries"),
          ("extraction", "extraction strength"),
          ("min_k", "least likely tokens, nats; low is known")),
  *_under("plain_retain", "as it is: D_R ", ("rouge", "greedy answers to retain queries")),
  *_under("int8_forget", "8 bits: ", ("rouge", "weights (and adapter) rounded to 8 bits"),
          "extraction"),
  *_under("int8_retain", "8 bits: D_R ", "rouge"),
  *_under("nf4_forget", "NF4: ", ("rouge", "weights (and adapter) rounded to NF4"), "extraction",
          "min_k"),
  *_under("nf4_retain", "NF4: D_R ", "rouge"),
  *_under("nf4_apart_forget", "NF4, adapter apart: ", ("rouge", "the adapter stays as it is"),
          "extraction"),
  *(Row(asked.title, asked.key, meaning=asked.meaning) for asked in QUESTIONS),
  Row("samples: best ROUGE", "sampled_best", meaning="the best sample of each question"),
  Row("samples: bound on ROUGE", "sampled_mean_bound",
      meaning="99% upper bound on the expected ROUGE"),
  Row("logit lens", "logit_lens", meaning="highest probability of the truth at any layer"),
  Row("unlearning depth", "unlearning_depth",
      meaning="0 as the original, 1 as the retrained model"),
  Row("weights: from the original", "distance_original",
      meaning="distance in units of that between original and retrained model"),
  Row("weights: from the retrained", "distance_retrained", meaning="the same, from the other end"),
  *_taught("forget", 1, "taught the forget set again"),
  *_taught("forget", EPOCH, ""),
  _area("forget", "under the ROUGE curve of 0 to 26 steps"),
  *_taught("others", EPOCH, "taught the data of half of the forgotten owners, asked of the others; "
           "mean of both halves"),
  _area("others"),
  *_taught("benign", EPOCH, "taught retained data"),
  _area("benign"))

"""Metrics of likelihoods: probability, truth ratio, forget quality, memorization."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy import stats

from dareu_jax.evaluation.metrics.base import HIGHER, MAIN, Evaluation, example_metric, metric
from dareu_jax.evaluation.records import Record

_EPS = 1e-10


def mean_nll(logprobs: ArrayLike) -> float:
  """Mean negative log-likelihood of a response. logprobs: [n] float, of an end token too."""
  return float(-np.mean(np.asarray(logprobs, np.float64)))


def probability(nll: ArrayLike) -> Any:
  """Length-normalized probability exp(-NLL) of each answer: [...] -> [...]."""
  return np.exp(-np.asarray(nll, np.float64))


def normalized_probability(right: ArrayLike, wrong: ArrayLike) -> Float[np.ndarray, " E"]:
  """Probability of the right answer among the options: p / (p + Σ_j p_j).

  Args:
    right: [E] float; probability of the right answer.
    wrong: [E, J] float; probabilities of the wrong answers.

  Source: TOFU (Maini et al. 2024), for real authors and world facts; the 1e-10 is from OU.
  """
  p = np.asarray(right, np.float64)
  return p / (p + np.asarray(wrong, np.float64).sum(axis=1) + _EPS)


def truth_ratio(paraphrased_nll: ArrayLike, perturbed_nll: ArrayLike, *,
                form: str = "geometric") -> Float[np.ndarray, " E"]:
  """How likely wrong answers are relative to the right one, with p = exp(-NLL) of a paraphrase.

      geometric     R = exp(-mean_j NLL_j) / p    as in public evaluations
      arithmetic    R = mean_j exp(-NLL_j) / p    as in the TOFU paper
      probability   p / (p + exp(-mean_j NLL_j))  in [0, 1], high if the right answer is likelier

  Args:
    paraphrased_nll: [E] float.
    perturbed_nll: [E, J] float.
    form: one of these three.

  Source: TOFU (Maini et al. 2024); the third OU.
  """
  right = probability(paraphrased_nll)
  perturbed = np.asarray(perturbed_nll, np.float64)
  if form == "arithmetic":
    wrong = np.mean(np.exp(-perturbed), axis=1)
  elif form in ("geometric", "probability"):
    wrong = np.exp(-np.mean(perturbed, axis=1))
  else:
    raise ValueError(f"form is {form!r}: it must be geometric, arithmetic or probability")
  return right / (right + wrong + _EPS) if form == "probability" else wrong / (right + _EPS)


def forget_truth_ratio(ratios: ArrayLike) -> float:
  """Mean of min(R, 1/R), [E] float: 1 if right and wrong answers are equally likely.

  Some papers report 1 minus this under the same name.
  """
  r = np.asarray(ratios, np.float64)
  return float(np.mean(np.minimum(r, 1 / (r + _EPS))))


def retain_truth_ratio(ratios: ArrayLike) -> float:
  """Mean of max(0, 1 - R), for retained data: 1 if the right answer is far likelier.

  Args:
    ratios: [E] float; R.
  """
  return float(np.mean(np.maximum(0.0, 1 - np.asarray(ratios, np.float64))))


class ForgetQuality(NamedTuple):
  """A two-sample Kolmogorov-Smirnov test; a high p means that no difference was found."""

  p: float
  log10_p: float
  statistic: float


def forget_quality(ratios: ArrayLike, retrained_ratios: ArrayLike) -> ForgetQuality:
  """Whether the truth ratios on the forget set are distributed like the retrained model's.

  Args:
    ratios, retrained_ratios: [E], [E'] float; R of each example of D_F. (1/R gives the same.)

  Returns: ForgetQuality. p is at least 2 / C(2E, E) and depends on the number of examples:
    compare it only at equal E.

  Source: TOFU (Maini et al. 2024).
  """
  test = stats.ks_2samp(ratios, retrained_ratios)
  with np.errstate(divide="ignore"):
    log10_p = float(np.log10(test.pvalue))
  return ForgetQuality(float(test.pvalue), log10_p, float(test.statistic))


def exact_memorization(predictions: ArrayLike, labels: ArrayLike) -> float:
  """Share of tokens that teacher-forced greedy decoding gets right; nan for an empty text.

  Args:
    predictions: [n] int; the likeliest token at each position, given the true ones before it.
    labels: [n] int; the response without the end token (as in OU).

  Source: Tirumala et al. 2022.
  """
  hits = np.asarray(predictions) == np.asarray(labels)
  return float(np.mean(hits)) if len(hits) else float("nan")


def extraction_strength(predictions: ArrayLike, labels: ArrayLike, *,
                        published: bool = False) -> float:
  """How little of a response must be given for greedy decoding to complete it.

      ES = 1 - k/n,  k the smallest number of given tokens after which all are right

  Args:
    predictions, labels: as in `exact_memorization`.
    published: as in OU, where a response whose last token is wrong gets 1/n and not 0.

  Source: Carlini et al. 2021, as in OU.
  """
  hits = np.asarray(predictions) == np.asarray(labels)
  n = len(hits)
  if not n:
    return 0.0
  wrong = np.flatnonzero(~hits)
  k = wrong[-1] + 1 if len(wrong) else 0
  return 1 - (min(k, n - 1) if published else k) / n


def nlls(records: Sequence[Record]) -> Float[np.ndarray, " E"]:
  """Mean NLL of each true response."""
  return np.array([mean_nll(record.logprobs) for record in records], np.float64)


def truth_ratios(records: Sequence[Record], *,
                 form: str = "geometric") -> Float[np.ndarray, " E"]:
  """`truth_ratio` of each example that has wrong answers; other examples have no entry.

  The right answer is the paraphrased one or, if there is none (real authors, world facts), the true
  answer itself. All examples use the same number of wrong answers, the smallest that one has.
  """
  complete = [record for record in records if record.perturbed_nll]
  if not complete:
    return np.zeros(0)
  count = min(len(record.perturbed_nll) for record in complete)
  right = [mean_nll(record.logprobs) if record.paraphrased_nll is None else record.paraphrased_nll
           for record in complete]
  return truth_ratio(right, [record.perturbed_nll[:count] for record in complete], form=form)


def inner_hits(record: Record) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
  """Which tokens of the true response greedy decoding gets right, and the targets: all of them.

  The end token is left out.
  """
  hits = record.hits[record.inner]
  return hits, np.ones_like(hits)


@example_metric("forget_probability", title="D_F prob.", group=MAIN, order=60, interval=True,
                meaning="probability the model gives the true answers to forget queries")
def probability_of(record: Record) -> float:
  return float(probability(mean_nll(record.logprobs)))


@metric("truth_ratio", title="truth ratio", group=MAIN, order=50, needs=("perturbed_nll",),
        meaning="how probable wrong answers to forget queries are beside a right one")
def mean_truth_ratio(evaluation: Evaluation) -> float:
  return forget_truth_ratio(truth_ratios(evaluation.records["forget"]))


@metric("truth_ratio_probability", group=None, needs=("perturbed_nll",),
        meaning="the truth ratio as a probability: that of the right answer over it and the wrong "
                "ones'")
def mean_truth_ratio_probability(evaluation: Evaluation) -> float:
  return float(truth_ratios(evaluation.records["forget"], form="probability").mean())


@metric("fluency_nll", title="fluency NLL", group=MAIN, order=100, needs=("retrained_nll_sum",),
        meaning="nats per token of the responses under the retrained model; broken language is "
                "improbable")
def fluency(evaluation: Evaluation) -> float:
  return _nll_per_token(evaluation, "retrained")


@metric("fluency_nll_original", title="fluency NLL", group=MAIN, order=101,
        needs=("original_nll_sum",),
        meaning="where no model was retrained: nats per token of the responses under the original")
def fluency_original(evaluation: Evaluation) -> float | None:
  return None if evaluation.has_retrained else _nll_per_token(evaluation, "original")


def _nll_per_token(evaluation, model):
  sums, tokens = (np.array([getattr(record, f"{model}_{field}")
                            for record in evaluation.records["forget"]], np.float64)
                  for field in ("nll_sum", "tokens"))
  return float(sums.sum() / tokens.sum())


@example_metric("extraction_strength", title="extrac- tion", group=MAIN, order=140, interval=True,
                meaning="share of a true answer that greedy decoding says right, given what comes "
                        "before")
def extraction_of(record: Record) -> float:
  return extraction_strength(*inner_hits(record))


@example_metric("exact_memorization", title="exact mem.", order=10, log="exact_memorization",
                meaning="share of the true answer's tokens that are the likeliest ones")
def exact_memorization_of(record: Record) -> float:
  return exact_memorization(*inner_hits(record))


@metric("paraphrase_probability", title="para. prob.", order=20, needs=("paraphrased_nll",),
        meaning="probability of the paraphrased true answers")
def paraphrase_probability(evaluation: Evaluation) -> float:
  return float(np.mean(probability([
    record.paraphrased_nll for record in evaluation.records["forget"]
    if record.paraphrased_nll is not None])))


def _forget_quality(evaluation):
  return forget_quality(*(truth_ratios(each.records["forget"])
                          for each in (evaluation, evaluation.retrained)))


@metric("forget_quality", group=None, arrow=HIGHER, needs=("perturbed_nll", "retrained"),
        log="forget_quality",
        meaning="p of the truth ratios being the retrained model's (KS test)")
def forget_quality_p(evaluation: Evaluation) -> float:
  return _forget_quality(evaluation).p


@metric("forget_quality_log10", title="log10 FQ", arrow=HIGHER, digits=1, order=40,
        needs=("perturbed_nll", "retrained"),
        meaning="log10 of forget quality: p of the truth ratios being the retrained model's (KS "
                "test); it falls with the number of examples")
def forget_quality_log10(evaluation: Evaluation) -> float:
  return _forget_quality(evaluation).log10_p


@metric("forget_quality_ks", group=None, needs=("perturbed_nll", "retrained"),
        meaning="the statistic of that test: the largest gap of the two distributions")
def forget_quality_ks(evaluation: Evaluation) -> float:
  return _forget_quality(evaluation).statistic

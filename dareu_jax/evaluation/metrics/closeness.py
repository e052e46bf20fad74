"""Aggregates: closeness to the retrained model, utility, and published combinations of metrics."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from dareu_jax.evaluation.metrics.auc import auc
from dareu_jax.evaluation.metrics.base import HIGHER, MAIN, PRIVACY, Evaluation, metric
from dareu_jax.evaluation.metrics.likelihood import (
  nlls,
  normalized_probability,
  probability,
  retain_truth_ratio,
  truth_ratios,
)
from dareu_jax.evaluation.metrics.text import rouge_of
from dareu_jax.evaluation.records import SPLITS

MODEL_UTILITY_TERMS = tuple(
  f"{split}_{term}" for split in ("retain", "real_authors", "world_facts")
  for term in ("probability", "rouge", "truth_ratio"))


def harmonic_mean(values: ArrayLike) -> float:
  """n / Σ 1/x of [n] float; 0 if any is 0 or below."""
  x = np.asarray(values, np.float64)
  return float(len(x) / np.sum(1 / x)) if np.all(x > 0) else 0.0


def tug_of_war(rouge: ArrayLike, retrained_rouge: ArrayLike) -> float:
  """Closeness to the retrained model on all three sets at once.

      ToW = Π_s ( 1 - |ROUGE_s - ROUGE_s(retrained)| ),   s in {D_F, D_R, D_test}

  With the AUC of a membership attack in place of the first ROUGE, it is ToW-MIA of the same source.

  Args:
    rouge, retrained_rouge: [S] float; mean ROUGE-L recalls in [0, 1], in the same order.

  Source: Zhao et al. 2024 (RUM), with ROUGE-L recall in place of accuracy, as DareU takes it.
  """
  gaps = np.abs(np.asarray(rouge, np.float64) - np.asarray(retrained_rouge, np.float64))
  return float(np.prod(1.0 - gaps))


def model_utility(terms: Mapping[str, float]) -> float:
  """Harmonic mean of the nine terms of TOFU.

  Args:
    terms: one for each of `MODEL_UTILITY_TERMS`: probability (normalized on real
      authors and world facts), ROUGE-L recall and `retain_truth_ratio` of each split.

  Source: TOFU (Maini et al. 2024).
  """
  return harmonic_mean([terms[name] for name in MODEL_UTILITY_TERMS])


def memorization(extraction: float, exact: float, paraphrase_probability: float,
                 truth_ratio: float) -> float:
  """HM(1 - ES, 1 - EM, 1 - P(paraphrase), 1 - TR): high if little is left.

  Args:
    extraction, exact: means of the extraction strength and of the exact memorization.
    paraphrase_probability: mean probability of the paraphrased answers.
    truth_ratio: mean of `truth_ratio(form="probability")`.

  Source: OU's meta-evaluation. Not relative to the retrained model: it rewards over-forgetting.
  """
  return harmonic_mean([1 - extraction, 1 - exact, 1 - paraphrase_probability, 1 - truth_ratio])


def closeness(value: float, retrained: float, original: float) -> float:
  """1 if a metric equals the retrained model's, 0 if it is as far off as the original's or farther.

  Source: OU's meta-evaluation, for the AUC of a membership attack; here for any metric.
  """
  span = abs(original - retrained)
  if span == 0:
    return 1.0 if value == retrained else 0.0
  return float(max(0.0, 1 - abs(value - retrained) / span))


def utility(model_utility_score: float, fluency: float) -> float:
  """HM(model utility, fluency); fluency is the share of forget answers that are not gibberish.

  Source: OU's meta-evaluation, where a classifier detects gibberish.
  """
  return harmonic_mean([model_utility_score, fluency])


def overall(memorization_score: float, privacy_score: float, utility_score: float,
            original_utility: float) -> float:
  """HM(memorization, privacy, utility / the original's utility). Source: OU's meta-evaluation."""
  relative = utility_score / original_utility if original_utility else 0.0
  return harmonic_mean([memorization_score, privacy_score, relative])


def discrimination_auc(with_knowledge: ArrayLike, without: ArrayLike) -> float:
  """How well a metric separates models that know from models that don't: AUC, .5 is chance.

  Args:
    with_knowledge, without: [M], [M'] float; the metric for the two kinds of models, high for
    knowledge.

  Source: the faithfulness of a metric in OU's meta-evaluation.
  """
  return auc(with_knowledge, without)


def relearning_robustness(before: float, after: float, retrained_before: float,
                          retrained_after: float) -> float:
  """1 if an attack changes a metric as much as it changes the retrained model's.

      R = 1 - |Δ - Δ_retrained| / (|Δ| + |Δ_retrained|),   Δ = before - after

  Source: the symmetric form of OU's meta-evaluation.
  """
  return _alike(before - after, retrained_before - retrained_after)


def quantization_robustness(before: float, after: float) -> float:
  """1 if quantization does not change a metric: 1 - |before - after| / (|before| + |after|)."""
  return _alike(before, after)


def _alike(a, b):
  return float(1 - abs(a - b) / (abs(a) + abs(b) + 1e-10))


# Attacks and kinds of memorization in the aggregates.
ATTACKS = ("mia_loss_auc", "mia_zlib_auc", "mia_min_k_auc", "mia_min_k_plus_plus_auc")
MEMORIZATION = ("extraction_strength", "exact_memorization", "paraphrase_probability",
                "truth_ratio_probability")
BESIDE = ("retrained", "original")


def _rouges(evaluation):
  return [f"{split}_rouge" for split in SPLITS if f"{split}_rouge" in evaluation.retrained]


def _tug_of_war(evaluation, keys):
  return tug_of_war(*([each[key] for key in keys] for each in (evaluation, evaluation.retrained)))


@metric("tug_of_war", title="ToW", arrow=HIGHER, group=MAIN, order=40,
        needs=("forget_rouge", "retrained"),
        meaning="tug of war: (1-|ΔD_F|)·(1-|ΔD_R|)·(1-|ΔD_test|), Δ the ROUGE minus the retrained "
                "model's; it does not detect answers that are cut short, so check the length too")
def tug_of_war_of(evaluation: Evaluation) -> float:
  return _tug_of_war(evaluation, _rouges(evaluation))


@metric("tug_of_war_unseen", title="ToW unseen", arrow=HIGHER, group=MAIN, order=45,
        needs=("forget_rouge", "unseen"),
        meaning="where no model was retrained: ToW with the original's ROUGE on unseen owners, on "
                "D_R and on D_test in place of the retrained model's")
def tug_of_war_unseen(evaluation: Evaluation) -> float | None:
  if evaluation.has_retrained:
    return None
  unseen = evaluation.unseen
  keys = [f"{split}_rouge" for split in SPLITS if f"{split}_rouge" in unseen]
  return tug_of_war(*([each[key] for key in keys] for each in (evaluation, unseen)))


@metric("tug_of_war_mia", title="ToW MIA", arrow=HIGHER, group=PRIVACY, order=70,
        needs=("forget_rouge", "mia_min_k_auc", "retrained"),
        meaning="ToW with Min-K% in place of the D_F ROUGE")
def tug_of_war_mia(evaluation: Evaluation) -> float:
  return _tug_of_war(evaluation, ["mia_min_k_auc", *_rouges(evaluation)[1:]])


def utility_terms(evaluation: Evaluation) -> dict[str, float]:
  """The terms of model utility available in the data: nine on TOFU.

  Retained data gives three, and so does each owner of D_test (TOFU: real authors and world facts),
  for which the probability is normalized over the options.
  """
  groups = {"retain": [r for r in evaluation.records["retain"] if r.perturbed_nll]}
  for record in evaluation.records["test"]:
    if record.perturbed_nll:
      groups.setdefault(record.owner, []).append(record)
  terms: dict[str, float] = {}
  for name, group in groups.items():
    if not group:
      continue
    right = probability(nlls(group))
    if name != "retain":
      count = min(len(record.perturbed_nll) for record in group)
      right = normalized_probability(
        right, probability([record.perturbed_nll[:count] for record in group]))
    terms |= {f"{name}_probability": float(right.mean()),
              f"{name}_rouge": float(np.nanmean([rouge_of(record) for record in group])),
              f"{name}_truth_ratio": retain_truth_ratio(truth_ratios(group))}
  return terms


@metric("model_utility", title="utility", arrow=HIGHER, order=50,
        meaning="harmonic mean of probability, ROUGE and truth ratio on retained data (TOFU: nine "
                "terms)")
def model_utility_of(evaluation: Evaluation) -> float | None:
  terms = utility_terms(evaluation)
  return harmonic_mean(list(terms.values())) if terms else None


def _closeness(evaluation, keys):
  return harmonic_mean([
    closeness(*(each[key] for each in (evaluation, evaluation.retrained, evaluation.original)))
    for key in keys])


@metric("privacy", arrow=HIGHER, group=PRIVACY, order=80, needs=(*ATTACKS, *BESIDE),
        meaning="harmonic mean over attacks of the closeness to the retrained model, 0 as the "
                "original")
def privacy(evaluation: Evaluation) -> float:
  return _closeness(evaluation, ATTACKS)


@metric("memorization", title="memo- rization", arrow=HIGHER, order=80, needs=MEMORIZATION,
        meaning="harmonic mean of 1 - extraction, 1 - exact memorization, 1 - paraphrase "
                "probability, 1 - truth ratio; not relative to the retrained model, so "
                "it rewards over-forgetting")
def memorization_of(evaluation: Evaluation) -> float:
  return memorization(*(evaluation[key] for key in MEMORIZATION))


@metric("memorization_closeness", title="memo. close", arrow=HIGHER, order=90,
        needs=(*MEMORIZATION, *BESIDE),
        meaning="harmonic mean over the parts of memorization of the closeness to the retrained "
                "model, 0 as the original: over-forgetting lowers it")
def memorization_closeness(evaluation: Evaluation) -> float:
  return _closeness(evaluation, MEMORIZATION)


@metric("utility", title="utility with fluency", arrow=HIGHER, group=None,
        needs=("model_utility", "gibberish_share"),
        meaning="harmonic mean of model utility and of the share of answers that are not gibberish")
def utility_of(evaluation: Evaluation) -> float:
  return utility(evaluation["model_utility"], 1 - evaluation["gibberish_share"])


@metric("utility_closeness", arrow=HIGHER, group=None, needs=("utility", "retrained"),
        meaning="1 minus the gap of utility to the retrained model's")
def utility_closeness(evaluation: Evaluation) -> float:
  return 1 - abs(evaluation["utility"] - evaluation.retrained["utility"])


@metric("overall", arrow=HIGHER, group=PRIVACY, order=90,
        needs=("memorization", "privacy", "utility", "original"),
        meaning="harmonic mean of memorization, privacy and (utility with fluency) over the "
                "original's")
def overall_of(evaluation: Evaluation) -> float:
  return overall(evaluation["memorization"], evaluation["privacy"], evaluation["utility"],
                 evaluation.original["utility"])


@metric("overall_closeness", title="overall close", arrow=HIGHER, group=PRIVACY, order=100,
        needs=("memorization_closeness", "privacy", "utility_closeness"),
        meaning="harmonic mean of the closeness in memorization, privacy, and 1 minus the gap of "
                "utility to the retrained model's")
def overall_closeness(evaluation: Evaluation) -> float:
  return harmonic_mean([evaluation[key] for key in (
    "memorization_closeness", "privacy", "utility_closeness")])

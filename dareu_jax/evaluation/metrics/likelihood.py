"""Metrics of likelihoods: probability, truth ratio, forget quality, memorization."""

from typing import NamedTuple

import numpy as np
from scipy import stats

_EPS = 1e-10


def probability(nll):
  """Length-normalised probability exp(-NLL) of each answer: [E] -> [E]."""
  return np.exp(-np.asarray(nll, np.float64))


def normalized_probability(right, wrong):
  """Probability of the right answer among the options: p / (p + Σ_j p_j).

  Args:
    right: [E] float; probability of the right answer.
    wrong: [E, J] float; of the wrong ones.

  Returns: [E] float64.

  Source: TOFU (Maini et al. 2024), for real authors and world facts; the 1e-10 is OU's.
  """
  right = np.asarray(right, np.float64)
  return right / (right + np.asarray(wrong, np.float64).sum(axis=1) + _EPS)


def truth_ratio(paraphrased_nll, perturbed_nll, *, form="geometric"):
  """How the wrong answers compare with the right one. p = exp(-NLL), of a paraphrased right answer.

      geometric     R = exp(-mean_j NLL_j) / p    what public evaluations print
      arithmetic    R = mean_j exp(-NLL_j) / p    as the TOFU paper writes it
      probability   p / (p + exp(-mean_j NLL_j))  in [0, 1], high where the right one is likelier

  Args:
    paraphrased_nll: [E] float.
    perturbed_nll: [E, J] float.

  Returns: [E] float64.

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


def forget_truth_ratio(ratios):
  """Mean of min(R, 1/R): 1 where right and wrong answers are equally likely. [E] -> float.

  Some papers print 1 minus this under the same name.
  """
  ratios = np.asarray(ratios, np.float64)
  return float(np.mean(np.minimum(ratios, 1 / (ratios + _EPS))))


def retain_truth_ratio(ratios):
  """Mean of max(0, 1 - R), of what is to be kept: 1 where the right answer is far likelier."""
  return float(np.mean(np.maximum(0.0, 1 - np.asarray(ratios, np.float64))))


class ForgetQuality(NamedTuple):
  """Of a two-sample Kolmogorov-Smirnov test: a high p, no difference was found."""

  p: float
  log10_p: float
  statistic: float


def forget_quality(ratios, retrained_ratios):
  """Whether the truth ratios on the forget set could be the retrained model's.

  Args:
    ratios, retrained_ratios: [E], [E'] float; R of each example of D_F. (1/R gives the same.)

  Returns: ForgetQuality. p cannot fall below 2 / C(2E, E), and depends on how many examples there
    are: compare it at one E alone.

  Source: TOFU (Maini et al. 2024).
  """
  test = stats.ks_2samp(ratios, retrained_ratios)
  with np.errstate(divide="ignore"):
    log10_p = float(np.log10(test.pvalue))
  return ForgetQuality(float(test.pvalue), log10_p, float(test.statistic))


def exact_memorization(predictions, labels):
  """Share of tokens that teacher-forced greedy decoding gets right; nan for a text of none.

  Args:
    predictions: [n] int; the likeliest token at each position, given the true ones before it.
    labels: [n] int; the response, the end token left out (as OU does).

  Source: Tirumala et al. 2022.
  """
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  return float(np.mean(predictions == labels)) if len(labels) else float("nan")


def extraction_strength(predictions, labels, *, published=False):
  """How little of a response must be given for greedy decoding to say the rest.

      ES = 1 - k/n,  k the smallest number of given tokens from which on all are right

  Args:
    predictions, labels: as of `exact_memorization`.
    published: as OU computes it, where a response none of whose end is right gets 1/n and not 0.

  Source: Carlini et al. 2021, as OU.
  """
  hits = np.asarray(predictions) == np.asarray(labels)
  n = len(hits)
  if not n:
    return 0.0
  wrong = np.flatnonzero(~hits)
  k = wrong[-1] + 1 if len(wrong) else 0
  return 1 - (min(k, n - 1) if published else k) / n

"""Many figures as one: closeness to the retrained model, utility, and the field's aggregates."""

import numpy as np
from sklearn.metrics import roc_auc_score

MODEL_UTILITY_TERMS = tuple(
  f"{split}_{term}" for split in ("retain", "real_authors", "world_facts")
  for term in ("probability", "rouge", "truth_ratio"))


def harmonic_mean(values):
  """n / Σ 1/x; 0 if any is 0 or below."""
  values = np.asarray(values, np.float64)
  return float(len(values) / np.sum(1 / values)) if np.all(values > 0) else 0.0


def tug_of_war(rouge, retrained_rouge):
  """Closeness to the retrained model on all three sets at once.

      ToW = Π_s ( 1 - |ROUGE_s - ROUGE_s(retrained)| ),   s in {D_F, D_R, D_test}

  With the AUC of a membership attack in place of the first it is the ToW-MIA of the same source.

  Args:
    rouge, retrained_rouge: sequences of mean ROUGE-L recalls in [0, 1], in the same order.

  Source: Zhao et al. 2024 (RUM), with ROUGE-L recall in place of accuracy, as DareU takes it.
  """
  gaps = np.abs(np.asarray(rouge, np.float64) - np.asarray(retrained_rouge, np.float64))
  return float(np.prod(1.0 - gaps))


def model_utility(terms):
  """Harmonic mean of the nine terms of TOFU.

  Args:
    terms: {name: float}, one of each of `MODEL_UTILITY_TERMS`: probability (normalised on real
      authors and world facts), ROUGE-L recall and `retain_truth_ratio` of each split.

  Source: TOFU (Maini et al. 2024).
  """
  return harmonic_mean([terms[name] for name in MODEL_UTILITY_TERMS])


def memorization(extraction, exact, paraphrase_probability, truth_ratio):
  """HM(1 - ES, 1 - EM, 1 - P(paraphrase), 1 - TR): high where little is left.

  Args:
    truth_ratio: mean of `truth_ratio(form="probability")`.

  Source: OU's meta-evaluation. Not referred to the retrained model: over-forgetting is rewarded.
  """
  return harmonic_mean([1 - extraction, 1 - exact, 1 - paraphrase_probability, 1 - truth_ratio])


def closeness(value, retrained, original):
  """1 where a figure is the retrained model's, 0 where it is as far off as the original's, or more.

  Source: OU's meta-evaluation, of the AUC of a membership attack; it goes for any figure.
  """
  span = abs(original - retrained)
  if span == 0:
    return 1.0 if value == retrained else 0.0
  return float(max(0.0, 1 - abs(value - retrained) / span))


def utility(model_utility_score, fluency):
  """HM(model utility, fluency), fluency the share of sound answers to forget queries.

  Source: OU's meta-evaluation, where a classifier of gibberish says what is sound.
  """
  return harmonic_mean([model_utility_score, fluency])


def overall(memorization_score, privacy_score, utility_score, original_utility):
  """HM(memorization, privacy, utility / the original's utility). Source: OU's meta-evaluation."""
  relative = utility_score / original_utility if original_utility else 0.0
  return harmonic_mean([memorization_score, privacy_score, relative])


def discrimination_auc(with_knowledge, without):
  """How well a metric tells models that know from models that don't: AUC, .5 is chance.

  Args:
    with_knowledge, without: [M], [M'] float; the metric of models of either kind, high for knowing.

  Source: the faithfulness of a metric in OU's meta-evaluation.
  """
  labels = np.r_[np.ones(len(with_knowledge)), np.zeros(len(without))]
  return float(roc_auc_score(labels, np.r_[with_knowledge, without]))


def relearning_robustness(before, after, retrained_before, retrained_after):
  """1 where an attack moves a metric as much as it moves the retrained model's.

      R = 1 - |Δ - Δ_retrained| / (|Δ| + |Δ_retrained|),   Δ = before - after

  Source: the symmetric form of OU's meta-evaluation.
  """
  return _alike(before - after, retrained_before - retrained_after)


def quantisation_robustness(before, after):
  """1 where quantising the weights leaves a metric: 1 - |before - after| / (|before| + |after|)."""
  return _alike(before, after)


def _alike(a, b):
  return float(1 - abs(a - b) / (abs(a) + abs(b) + 1e-10))

"""Membership inference: could an attacker tell that a text was trained on?

Each attack scores one text: high means less likely a member. Signs and edge cases as OU.
"""

import zlib

import numpy as np
from sklearn.metrics import roc_auc_score


def loss_score(logprobs):
  """Mean NLL of the response. logprobs: [n] float, the end token included."""
  return float(-np.mean(np.asarray(logprobs, np.float64)))


def zlib_score(nll, text):
  """Mean NLL over the bytes that zlib compresses the response to (Carlini et al. 2021)."""
  return float(nll) / len(zlib.compress(text.encode("utf-8")))


def reference_score(nll, reference_nll):
  """Mean NLL less that of a reference model, such as the retrained one (Carlini et al. 2021)."""
  return float(nll) - float(reference_nll)


def min_k_score(logprobs, *, k):
  """Min-K%: minus the mean of the lowest max(1, ⌊k n⌋) token log-probs.

  Args:
    logprobs: [n] float, the end token left out.
    k: share in (0, 1].

  Source: Shi et al. 2024.
  """
  return -_mean_of_lowest(logprobs, k)


def min_k_plus_plus_score(logprobs, means, variances, *, k):
  """Min-K%++: the same of log-probs standardised by the distribution at their position.

      z_t = (log p(y_t) - μ_t) / sqrt(max(σ²_t, 1e-6)),  μ = Σ_v p log p,  σ² = Σ_v p log² p - μ²

  Args:
    logprobs, means, variances: [n] float; log p(y_t), μ_t and σ²_t, the end token left out.
    k: share in (0, 1].

  Source: Zhang et al. 2025.
  """
  logprobs, means, variances = (
    np.asarray(x, np.float64) for x in (logprobs, means, variances))
  return -_mean_of_lowest((logprobs - means) / np.sqrt(np.maximum(variances, 1e-6)), k)


def _mean_of_lowest(values, k):
  values = np.sort(np.asarray(values, np.float64))
  return float(np.mean(values[:max(1, int(k * len(values)))]))


def mia_auc(forget_scores, holdout_scores):
  """AUC of telling hold-out texts (label 1) from forget texts (label 0) by their scores.

  1: the forget texts are far likelier than unseen ones; .5: no difference; 0: far less likely.
  """
  labels = np.r_[np.zeros(len(forget_scores)), np.ones(len(holdout_scores))]
  return float(roc_auc_score(labels, np.r_[forget_scores, holdout_scores]))


def privleak(auc, reference_auc=0.5):
  """Leakage against a model that never saw the data, in percent: 0 is ideal.

      ( (1 - AUC) - (1 - AUC_ref) ) / (1 - AUC_ref) · 100

  Args:
    auc: of Min-K%.
    reference_auc: the retrained model's.

  Returns: -100 where nothing is forgotten; far above 0 where forget data became too unlikely.

  Source: MUSE (Shi et al. 2025), as OU.
  """
  return float((reference_auc - auc) / (1 - reference_auc + 1e-10) * 100)

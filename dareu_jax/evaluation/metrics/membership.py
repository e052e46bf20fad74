"""Membership inference: could an attacker tell that a text was trained on?

Each attack scores one text: high means less likely a member. Signs and edge cases as in OU.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from dareu_jax.evaluation.metrics.auc import auc
from dareu_jax.evaluation.metrics.base import (
  MAIN,
  PRIVACY,
  Evaluation,
  Metric,
  metric,
  register,
)
from dareu_jax.evaluation.metrics.likelihood import mean_nll, nlls


def loss_score(logprobs: ArrayLike) -> float:
  """Mean NLL of the response. logprobs: [n] float, the end token included."""
  return mean_nll(logprobs)


def zlib_score(nll: float, text: str) -> float:
  """Mean NLL over the bytes that zlib compresses the response to (Carlini et al. 2021)."""
  return float(nll) / len(zlib.compress(text.encode("utf-8")))


def reference_score(nll: float, reference_nll: float) -> float:
  """Mean NLL minus that of a reference model, such as the retrained one (Carlini et al. 2021)."""
  return float(nll) - float(reference_nll)


def min_k_score(logprobs: ArrayLike, *, k: float) -> float:
  """Min-K%: minus the mean of the lowest max(1, ⌊k n⌋) token log-probs.

  Args:
    logprobs: [n] float, without the end token.
    k: share in (0, 1].

  Source: Shi et al. 2024.
  """
  return -_mean_of_lowest(logprobs, k)


def min_k_plus_plus_score(logprobs: ArrayLike, means: ArrayLike, variances: ArrayLike, *,
                          k: float) -> float:
  """Min-K%++: the same for log-probs standardized by the distribution at their position.

      z_t = (log p(y_t) - μ_t) / sqrt(max(σ²_t, 1e-6)),  μ = Σ_v p log p,  σ² = Σ_v p log² p - μ²

  Args:
    logprobs, means, variances: [n] float; log p(y_t), μ_t and σ²_t, the end token left out.
    k: share in (0, 1].

  Source: Zhang et al. 2025.
  """
  logp, mean, variance = (np.asarray(x, np.float64) for x in (logprobs, means, variances))
  return -_mean_of_lowest((logp - mean) / np.sqrt(np.maximum(variance, 1e-6)), k)


def _mean_of_lowest(values, k):
  values = np.sort(np.asarray(values, np.float64))
  return float(np.mean(values[:max(1, int(k * len(values)))]))


def mia_auc(forget_scores: ArrayLike, holdout_scores: ArrayLike) -> float:
  """AUC of separating hold-out texts (label 1) from forget texts (label 0) by their scores.

  1: forget texts are far likelier than unseen ones; .5: no difference; 0: far less likely; nan if
  a score is not finite, as a model's that diverged.
  """
  return auc(holdout_scores, forget_scores)


def privleak(auc: float, reference_auc: float = 0.5) -> float:
  """Leakage against a model that never saw the data, in percent: 0 is ideal.

      ( (1 - AUC) - (1 - AUC_ref) ) / (1 - AUC_ref) · 100

  Args:
    auc: AUC of Min-K%.
    reference_auc: the same for the retrained model.

  Returns: -100 if nothing is forgotten; far above 0 if forget data became too unlikely.

  Source: MUSE (Shi et al. 2025), as in OU.
  """
  return float((reference_auc - auc) / (1 - reference_auc + 1e-10) * 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(Metric):
  """AUC of separating hold-out from forget examples by scores that are high for the former."""

  scores: Callable[[Evaluation, str], Sequence[float]]  # for the examples of a split


S = TypeVar("S", bound=Callable[[Evaluation, str], Sequence[float]])


def attack(key: str, *, needs: tuple[str, ...] = (), **options: Any) -> Callable[[S], S]:
  """Declares scores of a split's examples as a membership attack; its AUC is the metric.

  Args:
    key: key of the metric.
    needs: its needs besides a hold-out.
    options: further fields of `Metric`.
  """

  def declare(scores: S) -> S:

    def separation(evaluation):
      both = [scores(evaluation, split) for split in ("forget", "holdout")]
      return mia_auc(*both) if all(map(len, both)) else None

    register(Attack(key=key, function=separation, scores=scores, needs=("holdout", *needs),
                    **{"group": PRIVACY, **options}), scores)
    return scores

  return declare


@attack("mia_loss_auc", title="MIA loss", order=10, log="mia_loss",
        meaning="AUC of membership inference by loss")
def loss_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [loss_score(record.logprobs) for record in evaluation.records[split]]


@attack("mia_zlib_auc", title="MIA zlib", order=20, log="mia_zlib",
        meaning="by loss over compressed size")
def zlib_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [zlib_score(loss_score(record.logprobs), record.truth)
          for record in evaluation.records[split]]


@attack("mia_reference_auc", title="MIA ref.", order=30, needs=("retrained",),
        meaning="by loss minus the retrained model's")
def reference_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [reference_score(*pair) for pair in zip(
    nlls(evaluation.records[split]), nlls(evaluation.retrained.records[split]), strict=True)]


@attack("mia_min_k_auc", title="Min-K% MIA AUC", group=MAIN, order=70, log="mia_min_k",
        meaning="membership inference: 0.5 if forget data cannot be distinguished from unseen data")
def min_k_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [min_k_score(record.logprobs[record.inner], k=evaluation.min_k)
          for record in evaluation.records[split] if len(record.logprobs[record.inner])]


@attack("mia_min_k_plus_plus_auc", title="Min-K%++", order=40, log="mia_min_k_plus_plus",
        meaning="by the least likely tokens, standardized")
def min_k_plus_plus_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [min_k_plus_plus_score(record.logprobs[record.inner], -record.entropies[record.inner],
                                record.variances[record.inner], k=evaluation.min_k)
          for record in evaluation.records[split] if len(record.logprobs[record.inner])]


@attack("mia_gradnorm_auc", title="MIA grad.", order=50, needs=("gradient_norm",),
        log="mia_gradnorm", meaning="by the norm of the gradient")
def gradient_norm_attack(evaluation: Evaluation, split: str) -> list[float]:
  return [record.gradient_norm for record in evaluation.records[split]
          if record.gradient_norm is not None]


@metric("privleak", title="Priv- Leak", digits=1, group=PRIVACY, order=60, log="privleak",
        needs=("mia_min_k_auc", "retrained"),
        meaning="Min-K% against the retrained model's, in percent: -100 where nothing is "
                "forgotten, above 0 where forget data became too unlikely")
def privleak_of(evaluation: Evaluation) -> float:
  return privleak(evaluation["mia_min_k_auc"], evaluation.retrained["mia_min_k_auc"])

"""Metrics of unlearning: pure functions of numbers and texts, independent of models and files.

Each file holds the formulas of one topic and, below them, their declarations: see `base`.

NLLs are mean negative log-likelihoods in nats per response token, including the end token if there
is one, unless noted otherwise. E examples, J perturbed answers, n response tokens.
"""

from dareu_jax.evaluation.metrics.base import (
  CLOSER,
  HIGHER,
  MAIN,
  METRICS,
  MORE,
  PRIVACY,
  Evaluation,
  evaluations,
  example_metric,
  metric,
)
from dareu_jax.evaluation.metrics.closeness import (
  MODEL_UTILITY_TERMS,
  closeness,
  discrimination_auc,
  harmonic_mean,
  memorization,
  model_utility,
  overall,
  quantization_robustness,
  relearning_robustness,
  tug_of_war,
  utility,
)
from dareu_jax.evaluation.metrics.intervals import (
  PairedDifference,
  bootstrap_ci95,
  mean_and_ci95,
  paired_difference,
)
from dareu_jax.evaluation.metrics.likelihood import (
  ForgetQuality,
  exact_memorization,
  extraction_strength,
  forget_quality,
  forget_truth_ratio,
  normalized_probability,
  probability,
  retain_truth_ratio,
  truth_ratio,
)
from dareu_jax.evaluation.metrics.membership import (
  attack,
  loss_score,
  mia_auc,
  min_k_plus_plus_score,
  min_k_score,
  privleak,
  reference_score,
  zlib_score,
)
from dareu_jax.evaluation.metrics.text import (
  gibberish_bound,
  is_degenerate,
  is_gibberish,
  repeated_share,
  rouge_l_f1,
  rouge_l_recall,
  unknown_word_share,
  words,
)
from dareu_jax.evaluation.records import SPLITS

"""Metrics of unlearning: numbers and texts in, numbers out. They know no model and no file.

NLLs are mean negative log-likelihoods in nats per response token, the end token included, unless
said otherwise. E examples, J perturbed answers.
"""

import functools

import numpy as np
from rouge_score import rouge_scorer
from sklearn.metrics import roc_auc_score

_EPS = 1e-10


@functools.cache
def _rouge():
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(truth, answer):
  """ROUGE-L recall, with stemming as TOFU takes it: longest common subsequence / |truth|."""
  return float(_rouge().score(truth, answer)["rougeL"].recall)


def rouge_l_f1(truth, answer):
  """ROUGE-L F1, with stemming."""
  return float(_rouge().score(truth, answer)["rougeL"].fmeasure)


def probability(nll):
  """Length-normalised probability exp(-NLL) of each answer: [E] -> [E]."""
  return np.exp(-np.asarray(nll, np.float64))


def truth_ratio(paraphrased_nll, perturbed_nll):
  """How the wrong answers compare with the right one, geometric form.

      R = exp(-mean_j NLL(perturbed_j)) / exp(-NLL(paraphrased))

  Args:
    paraphrased_nll: [E] float.
    perturbed_nll: [E, J] float.

  Returns: [E] float64.

  Source: TOFU (Maini et al. 2024), with the geometric mean of its public evaluations.
  """
  paraphrased_nll = np.asarray(paraphrased_nll, np.float64)
  perturbed = np.exp(-np.mean(np.asarray(perturbed_nll, np.float64), axis=1))
  return perturbed / (np.exp(-paraphrased_nll) + _EPS)


def forget_truth_ratio(ratios):
  """Mean of min(R, 1/R): 1 where right and wrong answers are equally likely. [E] -> float."""
  ratios = np.asarray(ratios, np.float64)
  return float(np.mean(np.minimum(ratios, 1 / (ratios + _EPS))))


def min_k_score(logprobs, *, k):
  """Min-K% membership score of one text: higher means less likely a member.

      - mean of the lowest max(1, ⌊k n⌋) token log-probs

  Args:
    logprobs: [n] float, the end token left out.
    k: share in (0, 1].

  Source: Shi et al. 2024, signed as open-unlearning does.
  """
  logprobs = np.sort(np.asarray(logprobs, np.float64))
  return float(-np.mean(logprobs[:max(1, int(k * len(logprobs)))]))


def mia_auc(forget_scores, holdout_scores):
  """AUC of telling hold-out texts (label 1) from forget texts (label 0) by their scores.

  1: the forget texts are far likelier than unseen ones; .5: no difference; 0: far less likely.
  """
  labels = np.r_[np.zeros(len(forget_scores)), np.ones(len(holdout_scores))]
  return float(roc_auc_score(labels, np.r_[forget_scores, holdout_scores]))


def tug_of_war(rouge, retrained_rouge):
  """Closeness to the retrained model on all three sets at once.

      ToW = Π_s ( 1 - |ROUGE_s - ROUGE_s(retrained)| ),   s in {D_F, D_R, D_test}

  Args:
    rouge, retrained_rouge: sequences of mean ROUGE-L recalls in [0, 1], in the same order.

  Source: Zhao et al. 2024 (RUM), with ROUGE-L recall in place of accuracy, as DareU takes it.
  """
  gaps = np.abs(np.asarray(rouge, np.float64) - np.asarray(retrained_rouge, np.float64))
  return float(np.prod(1.0 - gaps))


def is_degenerate(answer, *, ngram=3, repeats=3):
  """Whether an answer is empty or says some run of `ngram` words `repeats` times or more."""
  words = answer.lower().split()
  if not any(character.isalnum() for character in answer):
    return True
  runs = list(zip(*(words[i:] for i in range(ngram)), strict=False))
  return any(runs.count(run) >= repeats for run in set(runs))


def mean_and_ci95(values):
  """Mean over seeds and half the width of its 95% t-interval (nan for one value)."""
  from scipy import stats

  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float(values.mean()), float("nan")
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean()), float(half)

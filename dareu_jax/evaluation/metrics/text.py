"""Metrics of texts alone: overlap with the truth, repetition, gibberish."""

import functools
import re

import numpy as np
from rouge_score import rouge_scorer


@functools.cache
def _rouge():
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(truth, answer):
  """ROUGE-L recall, with stemming as TOFU takes it: longest common subsequence / |truth|.

  The tokenizer of rouge-score knows a-z and 0-9 alone: other letters part words.
  """
  return float(_rouge().score(truth, answer)["rougeL"].recall)


def rouge_l_f1(truth, answer):
  """ROUGE-L F1, with stemming."""
  return float(_rouge().score(truth, answer)["rougeL"].fmeasure)


def _runs(answer, ngram):
  words = answer.lower().split()
  return list(zip(*(words[i:] for i in range(ngram)), strict=False))


def is_degenerate(answer, *, ngram=3, repeats=3):
  """Whether an answer is empty or says some run of `ngram` words `repeats` times or more."""
  if not any(character.isalnum() for character in answer):
    return True
  runs = _runs(answer, ngram)
  return any(runs.count(run) >= repeats for run in set(runs))


def repeated_share(answer, *, ngram=2):
  """Share of an answer's runs of `ngram` words that it has said before; 0 where there is none."""
  runs = _runs(answer, ngram)
  return 1 - len(set(runs)) / len(runs) if runs else 0.0


def words(text):
  """The words of a text in lower case: runs of letters and apostrophes; numbers are none."""
  return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower())


def unknown_word_share(answer, vocabulary):
  """Share of an answer's `words` that are not in `vocabulary`, a set; 0 where there is no word."""
  found = words(answer)
  return float(np.mean([word not in vocabulary for word in found])) if found else 0.0


def gibberish_bound(usual_nlls, *, share=0.01):
  """The NLL a token that only `share` of ordinary texts exceed.

  Args:
    usual_nlls: [E] float; of responses that the original model sampled itself (at temperature 1, to
      queries it knows nothing about), each under that model.
  """
  return float(np.quantile(np.asarray(usual_nlls, np.float64), 1 - share))


def is_gibberish(answer, nll, bound):
  """Whether an answer is empty, repeats itself, or is such as the original would hardly ever say.

  Args:
    nll: of the answer under the original model.
    bound: of `gibberish_bound`.
  """
  return is_degenerate(answer) or nll > bound

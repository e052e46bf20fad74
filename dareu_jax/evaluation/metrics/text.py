"""Metrics of texts alone: overlap with the truth, repetition, gibberish."""

import functools
import re
import unicodedata
from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike
from rouge_score import rouge_scorer

from dareu_jax.evaluation.metrics.base import MAIN, Evaluation, example_metric, metric
from dareu_jax.evaluation.records import Record

# Scripts without spaces, in which each character counts as a word: Thai to Khmer, kana, Han.
_UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff])")


def _spaced(text: str) -> str:
  """A text with spaces around each character of the scripts that are written without them."""
  return _UNSPACED.sub(r" \1 ", text)


class _Words:
  """The words of any script, for rouge-score, whose own tokenizer knows only a-z and 0-9."""

  def tokenize(self, text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text).lower()
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    return _spaced("".join(kept)).split()


@functools.cache
def _scorer(is_english):
  tokenizer = None if is_english else _Words()
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=is_english, tokenizer=tokenizer)


@functools.lru_cache(maxsize=2**16)  # models often give the same answer, and tables repeat calls
def _rouge_l(truth, answer):
  letters = [character for character in truth if character.isalpha()]
  is_english = 2 * sum(letter.isascii() for letter in letters) >= len(letters)
  return _scorer(is_english).score(truth, answer)["rougeL"]


def rouge_l_recall(truth: str, answer: str) -> float:
  """ROUGE-L recall with stemming, as in TOFU: longest common subsequence / |truth|.

  The tokenizer of rouge-score knows only a-z and 0-9: other letters split words. A truth most of
  whose letters are others is read by words of any script, without stemming; in scripts without
  spaces each character is a word.
  """
  return float(_rouge_l(truth, answer).recall)


def rouge_l_f1(truth: str, answer: str) -> float:
  """ROUGE-L F1, with stemming."""
  return float(_rouge_l(truth, answer).fmeasure)


def _runs(answer, ngram):
  words = _spaced(answer.lower()).split()
  return list(zip(*(words[i:] for i in range(ngram)), strict=False))


def is_degenerate(answer: str, *, ngram: int = 3, repeats: int = 3) -> bool:
  """Whether an answer is empty or repeats some `ngram` words `repeats` times or more."""
  if not any(character.isalnum() for character in answer):
    return True
  runs = _runs(answer, ngram)
  return any(runs.count(run) >= repeats for run in set(runs))


def repeated_share(answer: str, *, ngram: int = 2) -> float:
  """Share of an answer's n-grams (`ngram` words) that occurred before in it; 0 if it has none."""
  runs = _runs(answer, ngram)
  return 1 - len(set(runs)) / len(runs) if runs else 0.0


def words(text: str) -> list[str]:
  """The words of a text in lower case: runs of letters and apostrophes; numbers are excluded."""
  return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", _spaced(text.lower()))


def unknown_word_share(answer: str, vocabulary: Collection[str]) -> float:
  """Share of an answer's `words` that are not in `vocabulary`, a set; 0 if it has no words."""
  answer_words = words(answer)
  return float(np.mean([word not in vocabulary for word in answer_words])) if answer_words else 0.0


def gibberish_bound(usual_nlls: ArrayLike, *, share: float = 0.01) -> float:
  """The NLL per token that only a share of ordinary texts exceeds.

  Args:
    usual_nlls: [E] float; NLLs under the original model of its own samples (at temperature 1, in
      answer to queries about which it knows nothing).
    share: share of these texts.
  """
  return float(np.quantile(np.asarray(usual_nlls, np.float64), 1 - share))


def is_gibberish(answer: str, nll: float, bound: float) -> bool:
  """Whether an answer is empty, repeats itself, or is very unlikely under the original.

  Args:
    answer: the text.
    nll: its NLL per token under the original model.
    bound: from `gibberish_bound`.
  """
  return is_degenerate(answer) or nll > bound


@example_metric("test_rouge", split="test", title="D_test ROUGE", group=MAIN, order=30,
                needs=("answer",), interval=True, meaning="ROUGE of the answers to test queries")
@example_metric("retain_rouge", split="retain", title="D_R ROUGE", group=MAIN, order=20,
                needs=("answer",), interval=True, paired="retain",
                meaning="ROUGE of the answers to retain queries")
@example_metric("forget_rouge", title="D_F ROUGE", group=MAIN, order=10, needs=("answer",),
                interval=True, paired="forget", meaning="ROUGE of the answers to forget queries")
def rouge_of(record: Record) -> float:
  return rouge_l_recall(record.truth, record.answer)


@example_metric("test_accuracy", split="test", title="D_test accuracy", order=15,
                needs=("answer",),
                meaning="share of the test queries whose answer contains all words of the true "
                        "answer, in order")
def is_right(record: Record) -> float:
  return float(rouge_l_recall(record.truth, record.answer) == 1.0)


@example_metric("attribution_score", title="attribution", group=MAIN, order=80, needs=("score",),
                meaning="probability, by the owner classifier, that the responses to forget "
                        "queries come from the forget owners; the target is the retrained model's "
                        "floor, not zero")
def attribution_of(record: Record) -> float:
  return record.score


@example_metric("judge_score", title="judge", group=MAIN, order=90, needs=("judge",),
                meaning="the same by other classifiers, which give no reward: if it stays high, "
                        "the reward was fooled")
def judgement_of(record: Record) -> float:
  return record.judge


@metric("distinct_share", title="distinct", digits=2, group=MAIN, order=110, needs=("answer",),
        meaning="share of distinct responses: 1 if no response is given twice")
def distinct_share(evaluation: Evaluation) -> float:
  answers = [record.answer for record in evaluation.records["forget"]]
  return len(set(answers)) / len(answers)


@example_metric("response_length", title="length (tokens)", digits=1, group=MAIN, order=120,
                needs=("length",), meaning="mean length of the responses")
def length_of(record: Record) -> int:
  return record.length


@metric("gibberish_share", title="gibber- ish", digits=2, group=MAIN, order=130,
        needs=("answer", "original_nll_sum", "gibberish_bound"),
        meaning="share of responses that are empty, repeat themselves, or are less likely than 99% "
                "of the original's own samples")
def gibberish_share(evaluation: Evaluation) -> float:
  return float(np.mean([
    is_gibberish(record.answer, record.original_nll_sum / max(1, record.original_tokens),
                 evaluation.gibberish_bound)
    for record in evaluation.records["forget"]]))


@example_metric("clean_probability", title="clean", order=30, needs=("clean",),
                meaning="probability of clean text by the classifier of "
                        "config.evaluation.gibberish_model")
def cleanness_of(record: Record) -> float:
  return record.clean


@example_metric("repeated_share", title="re- peated", order=60, needs=("answer",),
                meaning="share of an answer's word pairs that occurred before in it")
def repetition_of(record: Record) -> float:
  return repeated_share(record.answer)


@metric("unknown_word_share", title="unknown words", order=70, needs=("answer",),
        meaning="share of an answer's words that occur in no text of the data")
def unknown_words(evaluation: Evaluation) -> float:
  vocabulary = {word for split in evaluation.records.values() for record in split
                for word in words(f"{record.prompt} {record.truth}")}
  return float(np.mean([unknown_word_share(record.answer, vocabulary)
                        for record in evaluation.records["forget"]]))

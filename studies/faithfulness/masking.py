"""The masking experiment: the score of responses as words are masked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dareu_jax.evaluation.metrics import rouge_l_recall
from studies.faithfulness.study import Study

SHARES = tuple(i / 10 for i in range(11))
WAYS = {"dropped": "the masked words are left out",
        "replaced": "each masked word gives way to a word drawn from general text"}
DRAWS = 5  # random draws of the masked words


def measure(study: Study) -> dict[str, list[dict[str, Any]]]:
  """Mean score and ROUGE of forget owners' responses by the share of their words that is masked.

  The score is that of the forget owners together, as in the reward. Every response is masked
  `DRAWS` times at each share; a larger share masks the same words and more.

  Returns: {way: [{"share", "score", "score_interval", "own", "rouge"}]}; `own` is the score of the
    response's own owner; the interval draws responses.
  """
  examples = tuple(
    e for e, o in zip(study.examples, study.owner_of, strict=True) if study.is_forget[o])
  vocabulary = sorted({word for e in study.data.corpus.general for word in e.response.split()})
  result: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
  for way in WAYS:
    for share in SHARES:
      rng = np.random.default_rng((study.settings.seed, 7))  # the same words first at every share
      masked = [[mask(e.response, share, way, vocabulary, rng) for e in examples]
                for _ in range(DRAWS)]
      scores, own, rouge = (np.zeros((DRAWS, len(examples))) for _ in range(3))
      for i, texts in enumerate(masked):
        rows = study.data.rows(examples, texts)
        every = study.owner_scores("classifier", rows)
        scores[i] = every @ study.is_forget
        own[i] = every[np.arange(len(rows)), [row.owner for row in rows]]
        rouge[i] = [rouge_l_recall(e.response, text)
                    for e, text in zip(examples, texts, strict=True)]
      result[way].append({
        "share": share, "score": float(scores.mean()), "own": float(own.mean()),
        "score_interval": _interval(
          scores.mean(axis=0), study.settings.bootstrap, study.settings.seed),
        "rouge": float(rouge.mean())})
  return result


def mask(text: str, share: float, way: str, vocabulary: Sequence[str],
         rng: np.random.Generator) -> str:
  """A text with a share of its words masked; a larger share masks the same words and more.

  Args:
    text: text of a response.
    share: share of the words, in [0, 1].
    way: a key of WAYS.
    vocabulary: replacement words.
    rng: random generator; the number of draws does not depend on the share.
  """
  words = text.split()
  order = rng.permutation(len(words))
  replacements = rng.integers(0, len(vocabulary), len(words))
  masked = set(order[:round(share * len(words))].tolist())
  if way == "dropped":
    return " ".join(word for i, word in enumerate(words) if i not in masked)
  return " ".join(
    vocabulary[replacements[i]] if i in masked else word for i, word in enumerate(words))


def _interval(values, resamples, seed):
  rng = np.random.default_rng(seed)
  draws = rng.integers(0, len(values), (resamples, len(values)))
  return np.percentile(values[draws].mean(axis=1), [2.5, 97.5]).tolist()

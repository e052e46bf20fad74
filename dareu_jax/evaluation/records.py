"""What is measured of each example of a split: a dict an example, from which all figures are made.

A record holds `prompt`, `truth` and `owner`, and what was measured: of answers `answer`, `rouge`,
`length`, ...; of likelihoods `nll`, `min_k`, ... Lists of records are as long as their split.
"""

import numpy as np

from dareu_jax.data.batches import encode
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.evaluator import Evaluator


def plain(examples):
  """Records of the texts alone."""
  return [{"owner": e.owner, "prompt": e.prompt, "truth": e.response} for e in examples]


def merged(*parts):
  """Records of the same examples as one list."""
  return [{key: value for record in records for key, value in record.items()}
          for records in zip(*parts, strict=True)]


def rouges(examples, texts):
  """ROUGE-L recall of a text for each example: list of floats."""
  return [metrics.rouge_l_recall(example.response, text)
          for example, text in zip(examples, texts, strict=True)]


def mean_rouge(examples, texts):
  """Mean ROUGE-L recall of a text for each example."""
  return float(np.mean(rouges(examples, texts)))


def of_answers(examples, given):
  """Of greedy answers (evaluation.evaluator.Answers)."""
  return [{"answer": text, "rouge": recall, "rouge_f1": metrics.rouge_l_f1(example.response, text),
           "length": int(length), "ended": bool(ended)}
          for example, text, recall, length, ended in zip(
            examples, given.texts, rouges(examples, given.texts), given.text_lengths, given.ended,
            strict=True)]


def of_answers_under(evaluator: Evaluator, trainable, rows, given, key):
  """NLL of answers under another model: its sum as `<key>_nll_sum`, and `<key>_tokens`."""
  logprobs = evaluator.logprobs(trainable, given.as_completions(rows))
  return [{f"{key}_nll_sum": -float(values.sum(dtype=np.float64)), f"{key}_tokens": len(values)}
          for values in logprobs]


def of_likelihoods(evaluator: Evaluator, trainable, examples, *, min_k, gradient_norm=False):
  """Of the true responses under the model: likelihood, memorization, membership scores."""
  rows = encode(examples, evaluator.tokenizer, max_length=evaluator.max_length)
  records = []
  for example, row, seen in zip(
      examples, rows, evaluator.statistics(trainable, rows), strict=True):
    nll = metrics.loss_score(seen.logprobs)
    # The end token is left out where the field does so.
    inner, labels = slice(0, -1), np.array(row.completion)
    hits = seen.predictions[inner], labels[inner]
    record = {
      "nll": nll, "zlib": metrics.zlib_score(nll, example.response),
      "exact_memorization": metrics.exact_memorization(*hits),
      "extraction_strength": metrics.extraction_strength(*hits),
      "extraction_strength_published": metrics.extraction_strength(*hits, published=True)}
    if len(labels) > 1:
      record["min_k"] = metrics.min_k_score(seen.logprobs[inner], k=min_k)
      record["min_k_plus_plus"] = metrics.min_k_plus_plus_score(
        seen.logprobs[inner], -seen.entropies[inner], seen.variances[inner], k=min_k)
    records.append(record)
  if gradient_norm:
    for record, norm in zip(records, evaluator.gradient_norms(trainable, rows), strict=True):
      record["gradnorm"] = float(norm)
  return records


def of_other_answers(evaluator: Evaluator, trainable, examples):
  """`paraphrased_nll` and `perturbed_nll` (a list) of what each example has of them."""
  records = [{} for _ in examples]
  asked = [(i, "paraphrased_nll", e.paraphrased_response) for i, e in enumerate(examples)
           if e.paraphrased_response]
  asked += [(i, "perturbed_nll", text) for i, e in enumerate(examples)
            for text in e.perturbed_responses]
  if not asked:
    return records
  indices, keys, texts = zip(*asked, strict=True)
  nlls = evaluator.nll(trainable, [examples[i] for i in indices], list(texts))
  for index, key, nll in zip(indices, keys, nlls, strict=True):
    if key == "perturbed_nll":
      records[index].setdefault(key, []).append(float(nll))
    else:
      records[index][key] = float(nll)
  return records

"""Measures a model on examples: fields of `records.Record`, a dict for each example."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dareu_jax.data.batches import Row, encode
from dareu_jax.data.examples import Example
from dareu_jax.evaluation.evaluator import Answers, Evaluator
from dareu_jax.evaluation.metrics import rouge_l_recall
from dareu_jax.evaluation.records import Record, merged

Fields = dict[str, Any]


def measure(evaluator: Evaluator, params: Any, examples: Sequence[Example], *,
            answered: bool = True, gradient_norm: bool = False,
            of_others: Callable[[Answers], list[list[Fields]]] | None = None) -> list[Record]:
  """Records of a model on examples.

  Args:
    evaluator: Evaluator.
    params: params of the model.
    examples: one record each.
    answered: whether to ask the model, or only measure the likelihood of the true responses.
    gradient_norm: compute the gradient norm of each example: one backward pass each.
    of_others: gives further fields from the answers, those that need other models.
  """
  rows = encode(examples, evaluator.tokenizer, max_length=evaluator.max_length)
  parts = [texts(examples), likelihoods(evaluator, params, rows, gradient_norm=gradient_norm),
           other_responses(evaluator, params, examples)]
  if answered:
    answers = evaluator.answers(params, rows)
    parts += [of_answers(answers), *(of_others(answers) if of_others is not None else ())]
  return merged(*parts)


def texts(examples: Sequence[Example]) -> list[Fields]:
  """The texts of the examples."""
  return [{"owner": e.owner, "prompt": e.prompt, "truth": e.response} for e in examples]


def likelihoods(evaluator: Evaluator, params: Any, rows: Sequence[Row], *,
                gradient_norm: bool = False) -> list[Fields]:
  """The likelihood of the true responses, token by token."""
  measured: list[Fields] = [
    {"logprobs": seen.logprobs, "entropies": seen.entropies, "variances": seen.variances,
     "hits": seen.predictions == np.array(row.completion), "ends": evaluator.ends(row)}
    for row, seen in zip(rows, evaluator.statistics(params, rows), strict=True)]
  if gradient_norm:
    norms = evaluator.gradient_norms(params, rows)
    measured = [fields | {"gradient_norm": float(norm)}
                for fields, norm in zip(measured, norms, strict=True)]
  return measured


def other_responses(evaluator: Evaluator, params: Any,
                    examples: Sequence[Example]) -> list[Fields]:
  """Mean NLLs of the paraphrased and perturbed responses of an example."""
  measured: list[Fields] = [{} for _ in examples]
  asked = [(i, "paraphrased_nll", e.paraphrased_response) for i, e in enumerate(examples)
           if e.paraphrased_response]
  asked += [(i, "perturbed_nll", text) for i, e in enumerate(examples)
            for text in e.perturbed_responses]
  if not asked:
    return measured
  indices, fields, responses = zip(*asked, strict=True)
  nlls = evaluator.nll(params, [examples[i] for i in indices], list(responses))
  for index, field, nll in zip(indices, fields, nlls, strict=True):
    if field == "perturbed_nll":
      measured[index][field] = (*measured[index].get(field, ()), float(nll))
    else:
      measured[index][field] = float(nll)
  return measured


def of_answers(answers: Answers) -> list[Fields]:
  """The greedy answers."""
  return [{"answer": text, "length": int(length), "ended": bool(ended)}
          for text, length, ended in zip(
            answers.texts, answers.text_lengths, answers.ended, strict=True)]


def answers_under(evaluator: Evaluator, params: Any, rows: Sequence[Row], answers: Answers,
                  name: str) -> list[Fields]:
  """NLLs of answers under another model: `<name>_nll_sum` and `<name>_tokens`."""
  logprobs = evaluator.logprobs(params, answers.as_completions(rows))
  return [{f"{name}_nll_sum": -float(values.sum(dtype=np.float64)), f"{name}_tokens": len(values)}
          for values in logprobs]


def rouges(examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
  """ROUGE-L recall of an answer to each example."""
  return [rouge_l_recall(example.response, answer)
          for example, answer in zip(examples, answers, strict=True)]


def mean_rouge(examples: Sequence[Example], answers: Sequence[str]) -> float:
  """Mean ROUGE-L recall of an answer to each example."""
  return float(np.mean(rouges(examples, answers)))

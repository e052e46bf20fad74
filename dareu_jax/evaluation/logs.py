"""Evaluation logs in open-unlearning's layout: read, recomputed from their examples, written.

`TOFU_EVAL.json` maps a metric to {"agg_value": float, "value_by_index": {index: {...}}};
`TOFU_SUMMARY.json` maps it to the number alone.
"""

import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.metrics.base import METRICS, Evaluation, ExampleMetric
from dareu_jax.evaluation.metrics.likelihood import inner_hits
from dareu_jax.evaluation.metrics.membership import Attack

# Split of the log -> its name among the nine terms of model utility.
UTILITY_SPLITS = {"retain": "retain", "ra": "real_authors", "wf": "world_facts"}
PARAPHRASED = ("forget", "retain")  # splits whose right answers have paraphrases
# Keys of a TOFU_SUMMARY.json, besides the attacks.
SUMMARIZED = ("forget_quality", "model_utility", "privleak", "exact_memorization",
              "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio")
Log = dict[str, Any]


def read(path: str | pathlib.Path) -> Log:
  """A log as a dict.

  Raises:
    InputError: if the file is not a log.
  """
  path = pathlib.Path(path)
  try:
    log = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise InputError(f"{path} cannot be read ({error.strerror}): name a TOFU_EVAL.json.") from None
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error}): name a TOFU_EVAL.json.") from None
  if not isinstance(log, dict) or not any(
      isinstance(entry, dict) and "agg_value" in entry for entry in log.values()):
    raise InputError(f"{path} is not an evaluation log: it has no metric with an agg_value. Name a "
                     "TOFU_EVAL.json (the TOFU_SUMMARY.json beside it has no examples).")
  return log


def recompute(log: Log, retain_log: Log | None = None) -> dict[str, float]:
  """Every metric that can be recomputed from the examples of a log.

  Args:
    log: the log, from `read`.
    retain_log: log of the retrained model, for forget quality and PrivLeak; without it PrivLeak is
      relative to chance, an AUC of one half, as in published logs.

  Returns: {metric: float}, named as in the log; "forget_quality_log10" and "forget_quality_ks"
    beside "forget_quality".
  """
  results: dict[str, float] = {}
  for split in ("forget", *UTILITY_SPLITS):
    results |= _split_metrics(log, split)
  for name in ("exact_memorization", "extraction_strength"):
    if name in log:
      results[name] = float(np.mean(_column(log, name, "score")))
  for name in log:
    if _is_attack(log, name):
      results[name] = metrics.mia_auc(*(
        _column(log[name], part, "score") for part in ("forget", "holdout")))
  terms = _utility_terms(results)
  if terms.keys() == set(metrics.MODEL_UTILITY_TERMS):
    results["model_utility"] = metrics.model_utility(terms)
  if "mia_min_k" in results:
    results["privleak"] = metrics.privleak(results["mia_min_k"])
  if retain_log is not None:
    results |= _against_retrained(log, results, retain_log)
  return results


def _is_attack(log, name):
  return (name.startswith("mia_") and isinstance(log[name], dict)
          and {"forget", "holdout"} <= log[name].keys())


def _split_metrics(log, split):
  results = {f"{split}_{kind}": float(metrics.probability(
    _column(log, f"{split}_{kind}", "avg_loss")).mean())
    for kind in ("Q_A_Prob", "Q_A_PARA_Prob", "Q_A_PERT_Prob") if f"{split}_{kind}" in log}
  if f"{split}_Q_A_Prob_normalised" in log:
    right, wrong = (metrics.probability(losses) for losses in _paired(
      log, f"{split}_Q_A_Prob", f"{split}_Q_A_PERT_Prob"))
    results[f"{split}_Q_A_Prob_normalised"] = float(
      metrics.normalized_probability(right, wrong).mean())
  if f"{split}_Q_A_ROUGE" in log:
    truths, answers = (_texts(log, f"{split}_Q_A_ROUGE", key)
                       for key in ("ground_truth", "generation"))
    results[f"{split}_Q_A_ROUGE"] = float(np.mean(
      [metrics.rouge_l_recall(*pair) for pair in zip(truths, answers, strict=True)]))
  ratios = truth_ratios(log, split)
  if ratios is not None:
    name = "forget_truth_ratio" if split == "forget" else f"{split}_Truth_Ratio"
    aggregate = metrics.forget_truth_ratio if split == "forget" else metrics.retain_truth_ratio
    results[name] = aggregate(ratios)
  return results


def truth_ratios(log: Log, split: str) -> Float[np.ndarray, " E"] | None:
  """R of each example of a split; None if the log lacks the data.

  The right answer is the paraphrased one; for real authors and world facts, which have none, it is
  the answer itself.
  """
  right = f"{split}_Q_A_PARA_Prob" if split in PARAPHRASED else f"{split}_Q_A_Prob"
  wrong = f"{split}_Q_A_PERT_Prob"
  if right not in log or wrong not in log:
    return None
  return metrics.truth_ratio(*_paired(log, right, wrong))


def _utility_terms(results):
  names: dict[str, str] = {}
  for split, name in UTILITY_SPLITS.items():
    options = f"{split}_Q_A_Prob_normalised"
    names |= {f"{name}_probability": options if options in results else f"{split}_Q_A_Prob",
              f"{name}_rouge": f"{split}_Q_A_ROUGE",
              f"{name}_truth_ratio": f"{split}_Truth_Ratio"}
  return {term: results[name] for term, name in names.items() if name in results}


def _against_retrained(log, results, retain_log):
  compared = {}
  ours, theirs = (truth_ratios(each, "forget") for each in (log, retain_log))
  if ours is not None and theirs is not None:
    quality = metrics.forget_quality(ours, theirs)
    compared = {"forget_quality": quality.p, "forget_quality_log10": quality.log10_p,
                "forget_quality_ks": quality.statistic}
  reference = recompute(retain_log)
  if "mia_min_k" in results and "mia_min_k" in reference:
    compared["privleak"] = metrics.privleak(results["mia_min_k"], reference["mia_min_k"])
  return compared


def _paired(log, right, wrong):
  """avg_loss of the examples of two metrics, which must be the same ones: ([E], [E, J])."""
  entries = [_examples(log, name) for name in (right, wrong)]
  missing = entries[0].keys() ^ entries[1].keys()
  if missing:
    raise InputError(f"the log's {right} and {wrong} are not of the same examples: example "
                     f"{min(missing, key=int)} is in only one of them.")
  return _column(log, right, "avg_loss"), _column(log, wrong, "avg_loss")


def _examples(log, name):
  """The entries of a metric by index, in order."""
  entry = log[name]
  entries = entry.get("value_by_index") if isinstance(entry, dict) else None
  if not isinstance(entries, dict) or not entries or not all(map(str.isdecimal, entries)):
    raise InputError(f"the log's {name} has no value_by_index with an entry for each example, "
                     "numbered: it cannot be recomputed.")
  return {index: entries[index] for index in sorted(entries, key=int)}


def _values(log, name, key):
  try:
    return [example[key] for example in _examples(log, name).values()]
  except (KeyError, TypeError) as error:
    raise _missing(name, key, error) from None


def _missing(name, key, error):
  return InputError(f"the log's {name} has no {key!r} for every example "
                    f"({type(error).__name__}: {error}): it cannot be recomputed.")


def _texts(log, name, key):
  texts = _values(log, name, key)
  if not all(isinstance(text, str) for text in texts):
    raise InputError(f"the log's {name} has a {key!r} that is not a text: it cannot be recomputed.")
  return texts


def _column(log, name, key):
  try:
    values = np.array(_values(log, name, key), np.float64)
  except (TypeError, ValueError) as error:
    raise _missing(name, key, error) from None
  if not np.isfinite(values).all():
    raise InputError(f"the log's {name} has a {key!r} that is null or not a number: it cannot be "
                     "recomputed.")
  return values


def from_evaluation(evaluation: Evaluation) -> Log:
  """The evaluation of a run as a log that other tools can read.

  It has every metric that declares a name in these logs and is a finite number: a model that
  diverged has no likelihoods.
  """
  # D_test's owners are the splits "ra" and "wf" of TOFU; other data has no such splits.
  groups = {split: evaluation.records[split] for split in ("forget", "retain")}
  for split in ("ra", "wf"):
    groups[split] = tuple(record for record in evaluation.records["test"]
                          if record.owner == UTILITY_SPLITS[split])
  log: Log = {}
  for split, group in groups.items():
    if group:
      log |= _split_entries(split, group)
  for key, declared in METRICS.items():
    if declared.log and key in evaluation:
      log[declared.log] = _metric_entry(evaluation, declared)
  # As readers of these files expect: 1/n where nothing is right.
  log["extraction_strength"] = _entry(
    {"score": metrics.extraction_strength(*inner_hits(record), published=True)}
    for record in evaluation.records["forget"])
  terms = _utility_terms(published(log))
  if terms.keys() == set(metrics.MODEL_UTILITY_TERMS):
    log["model_utility"] = {"agg_value": metrics.model_utility(terms)}
  return log


def _metric_entry(evaluation, declared):
  if isinstance(declared, Attack):
    parts = {part: _entry({"score": score} for score in declared.scores(evaluation, part))
             for part in ("forget", "holdout")}
    auc = evaluation[declared.key]
    return parts | {"auc": auc, "agg_value": auc}
  if isinstance(declared, ExampleMetric):
    values = evaluation.by_example(declared.key)
    return _entry({"score": float(value)} for value in values[np.isfinite(values)])
  return {"agg_value": evaluation[declared.key]}


def _split_entries(split, group):
  losses = _losses(split, group)
  log = {name: _entry(({"prob": metrics.probability(nll).tolist(), "avg_loss": nll}
                       for nll in column), "prob") for name, column in losses.items()}
  log[f"{split}_Q_A_ROUGE"] = _entry((
    {"rougeL_recall": metrics.rouge_l_recall(r.truth, r.answer),
     "rougeL_f1": metrics.rouge_l_f1(r.truth, r.answer), "input": r.prompt,
     "ground_truth": r.truth, "generation": r.answer} for r in group), "rougeL_recall")
  ratios = truth_ratios(log, split)
  if split not in PARAPHRASED and ratios is not None:
    right, wrong = (metrics.probability(losses[f"{split}_Q_A_{kind}"])
                    for kind in ("Prob", "PERT_Prob"))
    log[f"{split}_Q_A_Prob_normalised"] = _entry(
      ({"prob": float(p)} for p in metrics.normalized_probability(right, wrong)), "prob")
  if ratios is not None:
    tail = "truth_ratio" if split == "forget" else "Truth_Ratio"
    aggregate = metrics.forget_truth_ratio if split == "forget" else metrics.retain_truth_ratio
    log[f"{split}_{tail}"] = _entry({"score": float(r)} for r in ratios) | {
      "agg_value": aggregate(ratios)}
  return log


def _losses(split, group):
  """{entry: NLLs of each example} of those that are measured and finite."""
  losses: dict[str, list[Any]] = {
    f"{split}_Q_A_Prob": [metrics.loss_score(record.logprobs) for record in group]}
  wanted = ("perturbed_nll", *(("paraphrased_nll",) if split in PARAPHRASED else ()))
  if all(record.has(field) for record in group for field in wanted):
    count = min(len(record.perturbed_nll) for record in group)  # a log needs one number
    losses[f"{split}_Q_A_PERT_Prob"] = [list(record.perturbed_nll[:count]) for record in group]
    if split in PARAPHRASED:
      losses[f"{split}_Q_A_PARA_Prob"] = [record.paraphrased_nll for record in group]
  return {name: column for name, column in losses.items() if np.isfinite(column).all()}


def _entry(values, key="score"):
  values = list(values)
  return {"agg_value": float(np.mean([value[key] for value in values])) if values else None,
          "value_by_index": {str(i): value for i, value in enumerate(values)}}


def published(log: Log) -> dict[str, float]:
  """The aggregates in the log's layout."""
  return {name: entry["agg_value"] for name, entry in log.items()
          if isinstance(entry, dict) and entry.get("agg_value") is not None}


def summary(results: dict[str, float]) -> dict[str, float]:
  """The metrics of TOFU_SUMMARY.json, sorted by name."""
  return {name: results[name] for name in sorted(results)
          if name in SUMMARIZED or name.startswith("mia_")}

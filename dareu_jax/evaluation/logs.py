"""Evaluation logs in open-unlearning's layout: read, recomputed from their examples, written.

`TOFU_EVAL.json` maps a metric to {"agg_value": float, "value_by_index": {index: {...}}};
`TOFU_SUMMARY.json` maps it to the number alone.
"""

import json
import pathlib

import numpy as np

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation import metrics

ATTACKS = ("loss", "zlib", "reference", "min_k", "min_k_plus_plus", "gradnorm")
# Split of the log -> its name among the nine terms of model utility.
UTILITY_SPLITS = {"retain": "retain", "ra": "real_authors", "wf": "world_facts"}


def read(path):
  """A log as a dict.

  Raises:
    InputError: if the file is none.
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
    raise InputError(f"{path} is no evaluation log: it has no metric with an agg_value. Name a "
                     "TOFU_EVAL.json (the TOFU_SUMMARY.json beside it has no examples).")
  return log


def recompute(log, retain_log=None):
  """Every figure that the examples of a log allow, from the examples alone.

  Args:
    log: of `read`.
    retain_log: of the retrained model, for forget quality and PrivLeak; without it PrivLeak is
      against chance, an AUC of one half, as published logs have it.

  Returns: {metric: float}, named as in the log; "forget_quality_log10" and "forget_quality_ks"
    beside "forget_quality".
  """
  figures = {}
  for split in ("forget", *UTILITY_SPLITS):
    figures |= _split_figures(log, split)
  for name in ("exact_memorization", "extraction_strength"):
    if name in log:
      figures[name] = float(np.mean(_column(log, name, "score")))
  for attack in ATTACKS:
    name = f"mia_{attack}"
    if name in log:
      figures[name] = metrics.mia_auc(
        *(_scores(log[name][part]) for part in ("forget", "holdout")))
  terms = _utility_terms(figures)
  if terms.keys() == set(metrics.MODEL_UTILITY_TERMS):
    figures["model_utility"] = metrics.model_utility(terms)
  if "mia_min_k" in figures:
    figures["privleak"] = metrics.privleak(figures["mia_min_k"])
  if retain_log is not None:
    figures |= _against_retrained(log, figures, retain_log)
  return figures


def _split_figures(log, split):
  figures = {f"{split}_{kind}": float(metrics.probability(
    _column(log, f"{split}_{kind}", "avg_loss")).mean())
    for kind in ("Q_A_Prob", "Q_A_PARA_Prob", "Q_A_PERT_Prob") if f"{split}_{kind}" in log}
  if f"{split}_Q_A_Prob_normalised" in log:
    right, wrong = (metrics.probability(losses) for losses in _paired(
      log, f"{split}_Q_A_Prob", f"{split}_Q_A_PERT_Prob"))
    figures[f"{split}_Q_A_Prob_normalised"] = float(
      metrics.normalized_probability(right, wrong).mean())
  if f"{split}_Q_A_ROUGE" in log:
    figures[f"{split}_Q_A_ROUGE"] = float(np.mean([
      metrics.rouge_l_recall(example["ground_truth"], example["generation"])
      for example in _examples(log, f"{split}_Q_A_ROUGE")]))
  ratios = truth_ratios(log, split)
  if ratios is not None:
    name = "forget_truth_ratio" if split == "forget" else f"{split}_Truth_Ratio"
    aggregate = metrics.forget_truth_ratio if split == "forget" else metrics.retain_truth_ratio
    figures[name] = aggregate(ratios)
  return figures


def truth_ratios(log, split):
  """R of each example of a split, [E]; None where the log does not hold what it takes.

  The right answer is the paraphrased one; real authors and world facts have none, and take the
  answer itself.
  """
  right = f"{split}_Q_A_PARA_Prob" if split in ("forget", "retain") else f"{split}_Q_A_Prob"
  wrong = f"{split}_Q_A_PERT_Prob"
  if right not in log or wrong not in log:
    return None
  return metrics.truth_ratio(*_paired(log, right, wrong))


def _utility_terms(figures):
  names = {}
  for split, name in UTILITY_SPLITS.items():
    options = f"{split}_Q_A_Prob_normalised"
    names |= {f"{name}_probability": options if options in figures else f"{split}_Q_A_Prob",
              f"{name}_rouge": f"{split}_Q_A_ROUGE",
              f"{name}_truth_ratio": f"{split}_Truth_Ratio"}
  return {term: figures[name] for term, name in names.items() if name in figures}


def _against_retrained(log, figures, retain_log):
  result = {}
  ours, theirs = (truth_ratios(each, "forget") for each in (log, retain_log))
  if ours is not None and theirs is not None:
    quality = metrics.forget_quality(ours, theirs)
    result = {"forget_quality": quality.p, "forget_quality_log10": quality.log10_p,
              "forget_quality_ks": quality.statistic}
  reference = recompute(retain_log)
  if "mia_min_k" in figures and "mia_min_k" in reference:
    result["privleak"] = metrics.privleak(figures["mia_min_k"], reference["mia_min_k"])
  return result


def _paired(log, right, wrong):
  """avg_loss of the examples of two metrics, which must be the same ones: ([E], [E, J])."""
  missing = log[right]["value_by_index"].keys() ^ log[wrong]["value_by_index"].keys()
  if missing:
    raise InputError(f"the log's {right} and {wrong} are not of the same examples: example "
                     f"{min(missing, key=int)} is in one of them alone.")
  return _column(log, right, "avg_loss"), _column(log, wrong, "avg_loss")


def _examples(log, name):
  entries = log[name]["value_by_index"]
  return [entries[index] for index in sorted(entries, key=int)]


def _column(log, name, key):
  try:
    values = np.array([example[key] for example in _examples(log, name)], np.float64)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"the log's {name} has no {key!r} for every example "
                     f"({type(error).__name__}: {error}): it cannot be recomputed.") from None
  if not np.isfinite(values).all():
    raise InputError(f"the log's {name} has a {key!r} that is null or no number: it cannot be "
                     "recomputed.")
  return values


def _scores(part):
  entries = part["value_by_index"]
  return [entries[index]["score"] for index in sorted(entries, key=int)]


def from_records(records, figures):
  """A run's own evaluation as a log, so that others' tools read it.

  Args:
    records: {split: records}, as of `evaluation.records`.
    figures: of the model, for what takes the retrained model beside it.
  """
  # D_test's owners are the splits "ra" and "wf" of TOFU; other data has none that the log knows.
  groups = {"forget": records["forget"], "retain": records["retain"]}
  for split in ("ra", "wf"):
    groups[split] = [r for r in records["test"] if r["owner"] == UTILITY_SPLITS[split]]
  log = {}
  for split, group in groups.items():
    if not group:
      continue
    log |= _split_entries(split, group)
  for name in ("exact_memorization", "extraction_strength"):
    # As the readers of these files expect it: 1/n where nothing is right.
    key = "extraction_strength_published" if name == "extraction_strength" else name
    log[name] = _entry({"score": r[key]} for r in records["forget"])
  for attack in ATTACKS:
    key = "nll" if attack == "loss" else attack
    parts = {part: _entry({"score": r[key]} for r in records[split] if key in r)
             for part, split in (("forget", "forget"), ("holdout", "holdout"))}
    if all(entry["value_by_index"] for entry in parts.values()):
      auc = metrics.mia_auc(*map(_scores, parts.values()))
      log[f"mia_{attack}"] = parts | {"auc": auc, "agg_value": auc}
  for name in ("forget_quality", "privleak"):
    if name in figures:
      log[name] = {"agg_value": figures[name]}
  terms = _utility_terms(published(log))
  if terms.keys() == set(metrics.MODEL_UTILITY_TERMS):
    log["model_utility"] = {"agg_value": metrics.model_utility(terms)}
  return log


def _split_entries(split, group):
  def nlls(key):
    return [{"prob": metrics.probability(r[key]).tolist(), "avg_loss": r[key]} for r in group]

  log = {f"{split}_Q_A_Prob": _entry(nlls("nll"), "prob"),
         f"{split}_Q_A_ROUGE": _entry((
           {"rougeL_recall": r["rouge"], "rougeL_f1": r["rouge_f1"], "input": r["prompt"],
            "ground_truth": r["truth"], "generation": r["answer"]} for r in group),
           "rougeL_recall")}
  tail = "truth_ratio" if split == "forget" else "Truth_Ratio"
  wanted = {"perturbed_nll"} | ({"paraphrased_nll"} if split in ("forget", "retain") else set())
  if not all(r.keys() >= wanted for r in group):
    return log
  count = min(len(r["perturbed_nll"]) for r in group)  # a log's columns have one width
  group = [r | {"perturbed_nll": r["perturbed_nll"][:count]} for r in group]
  log[f"{split}_Q_A_PERT_Prob"] = _entry(nlls("perturbed_nll"), "prob")
  if "paraphrased_nll" in wanted:
    log[f"{split}_Q_A_PARA_Prob"] = _entry(nlls("paraphrased_nll"), "prob")
  else:
    right = metrics.probability([r["nll"] for r in group])
    wrong = metrics.probability([r["perturbed_nll"] for r in group])
    log[f"{split}_Q_A_Prob_normalised"] = _entry(
      ({"prob": float(p)} for p in metrics.normalized_probability(right, wrong)), "prob")
  ratios = truth_ratios(log, split)
  aggregate = metrics.forget_truth_ratio if split == "forget" else metrics.retain_truth_ratio
  log[f"{split}_{tail}"] = _entry({"score": float(r)} for r in ratios) | {
    "agg_value": aggregate(ratios)}
  return log


def _entry(values, key="score"):
  values = list(values)
  return {"agg_value": float(np.mean([value[key] for value in values])) if values else None,
          "value_by_index": {str(i): value for i, value in enumerate(values)}}


def published(log):
  """The aggregates as the log has them: {metric: float}."""
  return {name: entry["agg_value"] for name, entry in log.items()
          if isinstance(entry, dict) and entry.get("agg_value") is not None}


def summary(figures):
  """As TOFU_SUMMARY.json has it: the metrics that its readers know, in order of their names."""
  known = {"forget_quality", "model_utility", "privleak", "exact_memorization",
           "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio",
           *(f"mia_{attack}" for attack in ATTACKS)}
  return {name: figures[name] for name in sorted(known & figures.keys())}

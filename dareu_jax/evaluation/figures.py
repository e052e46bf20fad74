"""From records to the figures of the table: pure functions, of one model and of two."""

import numpy as np

from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.metrics import SPLITS

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")
# Attacks whose closeness to the retrained model makes the figure `privacy`.
PRIVACY = ("loss", "zlib", "min_k", "min_k_plus_plus")
MEMORIZATION = ("extraction_strength", "exact_memorization", "paraphrase_probability",
                "truth_ratio_probability")


def of_model(records, *, gibberish_bound):
  """Figures of a model by itself.

  Args:
    records: {split: records} of "forget", "retain", "test" and "holdout", as of
      `evaluation.records`; empty where the data has no such split.
    gibberish_bound: of `metrics.gibberish_bound`.

  Returns: {figure: float}, without what the data does not allow.
  """
  figures = {f"{split}_rouge": _mean(records[split], "rouge")
             for split in SPLITS if records[split]}
  forget, vocabulary = records["forget"], _vocabulary(records)
  answers = [record["answer"] for record in forget]
  figures |= {
    "attribution_score": _mean(forget, "score"),
    "judge_score": _mean(forget, "judge"),
    "response_length": _mean(forget, "length"),
    "distinct_share": len(set(answers)) / len(answers),
    "fluency_nll": _per_token(forget, "retrained"),
    "gibberish_share": float(np.mean([
      metrics.is_gibberish(r["answer"], r["original_nll_sum"] / max(1, r["original_tokens"]),
                           gibberish_bound) for r in forget])),
    "repeated_share": float(np.mean([metrics.repeated_share(text) for text in answers])),
    "unknown_word_share": float(np.mean([
      metrics.unknown_word_share(text, vocabulary) for text in answers])),
    "forget_probability": float(metrics.probability(_column(forget, "nll")).mean()),
    "exact_memorization": _mean(forget, "exact_memorization"),
    "extraction_strength": _mean(forget, "extraction_strength")}
  if "clean" in forget[0]:
    figures["clean_probability"] = _mean(forget, "clean")
  ratios = truth_ratios(forget)
  if len(ratios):
    figures["truth_ratio"] = metrics.forget_truth_ratio(ratios)
    figures["truth_ratio_probability"] = float(truth_ratios(forget, form="probability").mean())
    figures["paraphrase_probability"] = float(np.mean(metrics.probability(
      [record["paraphrased_nll"] for record in forget if "paraphrased_nll" in record])))
  for attack in ATTACKS:
    scores = [[r[_key(attack)] for r in records[split] if _key(attack) in r]
              for split in ("forget", "holdout")]
    if all(scores):
      figures[f"mia_{attack}_auc"] = metrics.mia_auc(*scores)
  terms = utility_terms(records)
  if terms:
    figures["model_utility"] = metrics.harmonic_mean(list(terms.values()))
  return figures


def _vocabulary(records):
  """The words of all prompts and true responses."""
  return {word for split in records.values() for record in split
          for word in metrics.words(f"{record['prompt']} {record['truth']}")}


def _key(attack):
  return "nll" if attack == "loss" else attack


def _column(records, key):
  return np.array([record[key] for record in records], np.float64)


def _mean(records, key):
  return float(np.nanmean(_column(records, key)))


def _per_token(records, key):
  return float(_column(records, f"{key}_nll_sum").sum() / _column(records, f"{key}_tokens").sum())


def truth_ratios(records, *, form="geometric"):
  """`metrics.truth_ratio` of each example that has wrong answers and a right one: [E'].

  The right one is the paraphrased one, or (real authors, world facts) the answer itself.
  """
  complete = [r for r in records if r.get("perturbed_nll")]
  if not complete:
    return np.zeros(0)
  count = min(len(r["perturbed_nll"]) for r in complete)
  return metrics.truth_ratio([r.get("paraphrased_nll", r["nll"]) for r in complete],
                             [r["perturbed_nll"][:count] for r in complete], form=form)


def utility_terms(records):
  """The terms of model utility that the data allows: nine on TOFU.

  Retained data gives three; so does each owner of D_test (TOFU: real authors and world facts),
  whose probability is that among the options.
  """
  groups = {"retain": [r for r in records["retain"] if r.get("perturbed_nll")]}
  for record in records["test"]:
    if record.get("perturbed_nll"):
      groups.setdefault(record["owner"], []).append(record)
  terms = {}
  for name, group in groups.items():
    if not group:
      continue
    probability = metrics.probability(_column(group, "nll"))
    if name != "retain":
      count = min(len(r["perturbed_nll"]) for r in group)
      probability = metrics.normalized_probability(
        probability, metrics.probability([r["perturbed_nll"][:count] for r in group]))
    terms |= {f"{name}_probability": float(probability.mean()),
              f"{name}_rouge": _mean(group, "rouge"),
              f"{name}_truth_ratio": metrics.retain_truth_ratio(truth_ratios(group))}
  return terms


def against_retrained(figures, records, retrained_figures, retrained_records, original_figures):
  """What takes the retrained model (and for shares of the way back the original) beside it.

  Args:
    figures, records: of the model.

  Returns: {figure: float}, without what the data does not allow.
  """
  names = [f"{split}_rouge" for split in SPLITS if f"{split}_rouge" in retrained_figures]
  result = {"tug_of_war": metrics.tug_of_war(
    *([each[name] for name in names] for each in (figures, retrained_figures)))}
  ratios = [truth_ratios(each["forget"]) for each in (records, retrained_records)]
  if all(map(len, ratios)):
    quality = metrics.forget_quality(*ratios)
    result |= {"forget_quality": quality.p, "forget_quality_log10": quality.log10_p,
               "forget_quality_ks": quality.statistic}
  if "mia_min_k_auc" in figures:
    result |= {
      "mia_reference_auc": metrics.mia_auc(*(
        [metrics.reference_score(ours["nll"], theirs["nll"])
         for ours, theirs in zip(records[split], retrained_records[split], strict=True)]
        for split in ("forget", "holdout"))),
      "privleak": metrics.privleak(figures["mia_min_k_auc"], retrained_figures["mia_min_k_auc"]),
      "tug_of_war_mia": metrics.tug_of_war(
        *([each[name] for name in ["mia_min_k_auc", *names[1:]]]
          for each in (figures, retrained_figures)))}
  return result | _aggregates(figures, retrained_figures, original_figures)


def _aggregates(figures, retrained, original):
  """Memorization, privacy, utility and overall; and the same by closeness to the retrained model,
  which over-forgetting does not raise."""
  everything = figures, retrained, original

  def closeness(names):
    return metrics.harmonic_mean([
      metrics.closeness(*(each[name] for each in everything)) for name in names])

  result = {}
  if "mia_min_k_auc" in figures:
    result["privacy"] = closeness([f"mia_{attack}_auc" for attack in PRIVACY])
  if "truth_ratio_probability" in figures:
    result |= {"memorization": metrics.memorization(*(figures[name] for name in MEMORIZATION)),
               "memorization_closeness": closeness(MEMORIZATION)}
  if "model_utility" in figures:
    utility = [metrics.utility(each["model_utility"], 1 - each["gibberish_share"])
               for each in everything]
    result |= {"utility": utility[0], "utility_closeness": 1 - abs(utility[0] - utility[1])}
  if {"privacy", "memorization", "utility"} <= result.keys():
    result |= {
      "overall": metrics.overall(
        result["memorization"], result["privacy"], utility[0], utility[2]),
      "overall_closeness": metrics.harmonic_mean(
        [result["memorization_closeness"], result["privacy"], result["utility_closeness"]])}
  return result

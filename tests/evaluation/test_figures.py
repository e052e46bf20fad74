"""Figures from records: what they are at the retrained model, and what the log of them gives back."""

import copy

import numpy as np
import pytest

from dareu_jax.evaluation import figures, logs, metrics


def record(rng, owner, **more):
  nll = float(rng.uniform(0.1, 2))
  return {"owner": owner, "prompt": "Who?", "truth": "He was born in Oslo.", "answer": "Born in Rome.",
          "rouge": metrics.rouge_l_recall("He was born in Oslo.", "Born in Rome."), "rouge_f1": 0.5, "length": int(rng.integers(3, 9)),
          "nll": nll, "zlib": nll / 30, "min_k": nll * 2, "min_k_plus_plus": nll * 3,
          "exact_memorization": float(rng.uniform()), "extraction_strength": 0.25,
          "extraction_strength_published": 0.25, "paraphrased_nll": float(rng.uniform(1, 2)),
          "perturbed_nll": rng.uniform(1, 3, 3).tolist(), "score": float(rng.uniform()),
          "judge": float(rng.uniform()), "retrained_nll_sum": 3.0, "retrained_tokens": 4,
          "original_nll_sum": 6.0, "original_tokens": 4} | more


@pytest.fixture
def found():
  rng = np.random.default_rng(0)
  test = [{k: v for k, v in record(rng, owner).items() if k != "paraphrased_nll"}
          for owner in ("real_authors", "world_facts") for _ in range(5)]
  records = {"forget": [record(rng, "a") for _ in range(8)],
             "retain": [record(rng, "b") for _ in range(8)], "test": test,
             "holdout": [record(rng, "c") for _ in range(8)]}
  for one, name in zip(records["forget"], "abcdefgh", strict=True):
    one["answer"] = f"Born in {name}."
  return records


def test_the_retrained_model_is_close_to_itself(found):
  own = figures.of_model(found, gibberish_bound=2.0)
  beside = figures.against_retrained(own, found, own, found, own | {
    f"mia_{attack}_auc": 0.99 for attack in figures.PRIVACY})
  assert beside["tug_of_war"] == beside["tug_of_war_mia"] == beside["forget_quality"] == 1.0
  assert beside["privleak"] == 0.0 and beside["mia_reference_auc"] == 0.5
  assert beside["privacy"] == 1.0


def test_utility_has_the_nine_terms_of_tofu(found):
  terms = figures.utility_terms(found)
  assert len(terms) == 9 and terms.keys() == {
    f"{s}_{t}" for s in ("retain", "real_authors", "world_facts")
    for t in ("probability", "rouge", "truth_ratio")}
  assert all(0 <= value <= 1 for value in terms.values())


def test_a_log_of_the_records_gives_the_same_figures_back(found):
  """Names, splits and aggregates as the readers of published logs take them."""
  own = figures.of_model(found, gibberish_bound=2.0)
  log = logs.from_records(found, own)
  again = logs.recompute(log)
  for ours, theirs in (("forget_probability", "forget_Q_A_Prob"),
                       ("truth_ratio", "forget_truth_ratio"), ("model_utility", "model_utility"),
                       ("mia_min_k_auc", "mia_min_k"), ("mia_zlib_auc", "mia_zlib"),
                       ("exact_memorization", "exact_memorization")):
    assert again[theirs] == pytest.approx(own[ours], abs=1e-9), ours
  published = logs.published(log)
  for name in again.keys() & published.keys() - {"forget_Q_A_ROUGE", "retain_Q_A_ROUGE",
                                                "ra_Q_A_ROUGE", "wf_Q_A_ROUGE"}:
    assert again[name] == pytest.approx(published[name], abs=1e-9), name


def test_gibberish_counts_what_the_original_would_not_say(found):
  assert figures.of_model(found, gibberish_bound=2.0)["gibberish_share"] == 0.0
  found["forget"][0]["original_nll_sum"] = 9.0
  found["forget"][1]["answer"] = ""
  assert figures.of_model(found, gibberish_bound=2.0)["gibberish_share"] == 0.25


def test_data_without_general_unseen_or_wrong_answers_has_fewer_figures(found):
  less = copy.deepcopy(found) | {"test": [], "holdout": []}
  for split in ("forget", "retain"):
    for one in less[split]:
      del one["perturbed_nll"], one["paraphrased_nll"]
  own = figures.of_model(less, gibberish_bound=2.0)
  assert {"forget_rouge", "retain_rouge", "extraction_strength"} <= own.keys()
  assert not {"test_rouge", "truth_ratio", "mia_min_k_auc", "model_utility"} & own.keys()
  beside = figures.against_retrained(own, less, own, less, own)
  assert beside == {"tug_of_war": 1.0}


def test_a_collapsed_model_has_no_truth_left():
  """1 / (1 + R) is near 1 where all answers are impossible: R's own epsilon rules there."""
  rows = [{"nll": 40.0, "paraphrased_nll": 40.0, "perturbed_nll": [40.0, 40.0]}]
  assert figures.truth_ratios(rows, form="probability")[0] < 1e-6


def test_over_forgetting_raises_memorization_but_not_its_closeness(found):
  original = figures.of_model(found, gibberish_bound=2.0)
  known, little, none = (dict.fromkeys(figures.MEMORIZATION, value) for value in (0.9, 0.3, 0.01))
  original, retrained, gone = original | known, original | little, original | none
  for figure in figures.PRIVACY:
    original[f"mia_{figure}_auc"] = 0.99
  ours = figures.against_retrained(gone, found, retrained, found, original)
  right = figures.against_retrained(retrained, found, retrained, found, original)
  assert ours["memorization"] > right["memorization"]
  assert ours["memorization_closeness"] < right["memorization_closeness"] == 1.0
  assert right["overall_closeness"] == 1.0 > right["overall"]


def test_without_a_hold_out_memorization_stays(found):
  del found["holdout"][:]
  own = figures.of_model(found, gibberish_bound=2.0)
  beside = figures.against_retrained(own, found, own, found, own)
  assert "memorization" in beside and "privacy" not in beside and "overall" not in beside


def test_a_log_takes_unequal_numbers_of_wrong_answers(found):
  found["forget"][0]["perturbed_nll"].pop()
  log = logs.from_records(found, {})
  values = log["forget_Q_A_PERT_Prob"]["value_by_index"].values()
  assert {len(value["avg_loss"]) for value in values} == {2}

"""The declared metrics: what they are at the retrained model, and what the log of them gives back."""

import dataclasses

import numpy as np
import pytest

from dareu_jax.evaluation import logs
from dareu_jax.evaluation.metrics import METRICS
from dareu_jax.evaluation.metrics.base import Evaluation, evaluations
from dareu_jax.evaluation.metrics.closeness import ATTACKS, MEMORIZATION, utility_terms
from dareu_jax.evaluation.metrics.likelihood import truth_ratios
from tests.evaluation.made_records import Stated, make_record, make_records

BOUND = {"min_k": 0.4, "gibberish_bound": 2.0}


@pytest.fixture
def records():
  return make_records()


def compared(records, retrained=None, original=None, **others):
  """Evaluations of models with the same records, some of whose metrics are stated: {model: ...}."""
  models = {}
  for name, stated in {"retrained": retrained, "original": original, **others}.items():
    models[name] = Stated(records, stated or {}, models=models, **BOUND)
  return models


def test_the_retrained_model_is_close_to_itself(records):
  models = compared(records, original=dict.fromkeys(ATTACKS, 0.99))
  own = models["retrained"]
  assert own["tug_of_war"] == own["tug_of_war_mia"] == own["forget_quality"] == 1.0
  assert own["privleak"] == 0.0 and own["mia_reference_auc"] == 0.5
  assert own["privacy"] == 1.0


def test_utility_has_the_nine_terms_of_tofu(records):
  terms = utility_terms(Evaluation(records))
  assert len(terms) == 9 and terms.keys() == {
    f"{s}_{t}" for s in ("retain", "real_authors", "world_facts")
    for t in ("probability", "rouge", "truth_ratio")}
  assert all(0 <= value <= 1 for value in terms.values())


def test_a_log_of_the_records_gives_the_same_metrics_back(records):
  """Names, splits and aggregates as the readers of published logs take them."""
  own = Evaluation(records, **BOUND)
  log = logs.from_evaluation(own)
  again = logs.recompute(log)
  for ours, theirs in (("forget_probability", "forget_Q_A_Prob"),
                       ("truth_ratio", "forget_truth_ratio"), ("model_utility", "model_utility"),
                       ("mia_min_k_auc", "mia_min_k"), ("mia_zlib_auc", "mia_zlib"),
                       ("exact_memorization", "exact_memorization")):
    assert again[theirs] == pytest.approx(own[ours], abs=1e-9), ours
  published = logs.published(log)
  for name in again.keys() & published.keys():
    assert again[name] == pytest.approx(published[name], abs=1e-9), name


def test_a_log_has_every_metric_that_declares_a_name_of_it(records):
  models = compared(records)
  log = logs.from_evaluation(models["retrained"])
  for key, declared in METRICS.items():
    if declared.log and key in models["retrained"]:
      assert log[declared.log]["agg_value"] == pytest.approx(models["retrained"][key], abs=1e-9)
  assert {"privleak", "forget_quality", "mia_loss", "exact_memorization"} <= log.keys()


def test_gibberish_counts_what_the_original_would_not_say(records):
  assert Evaluation(records, **BOUND)["gibberish_share"] == 0.0
  forget = records["forget"]
  forget[0] = dataclasses.replace(forget[0], original_nll_sum=9.0)
  forget[1] = dataclasses.replace(forget[1], answer="")
  assert Evaluation(records, **BOUND)["gibberish_share"] == 0.25


def test_data_without_general_unseen_or_wrong_answers_has_fewer_metrics(records):
  less = {split: [dataclasses.replace(record, perturbed_nll=(), paraphrased_nll=None)
                  for record in records[split]] for split in ("forget", "retain")}
  models = compared(less)
  own = models["retrained"].metrics()
  assert {"forget_rouge", "retain_rouge", "extraction_strength"} <= own.keys()
  assert not {"test_rouge", "truth_ratio", "mia_min_k_auc", "model_utility"} & own.keys()
  beside = {key for key in own if {"retrained", "original"} & set(METRICS[key].needs)}
  assert beside == {"tug_of_war"} and own["tug_of_war"] == 1.0


def test_an_answer_is_right_if_it_has_all_words_of_the_truth_in_order(records):
  """Short facts in sentences are right; ROUGE alone would also credit half an answer."""
  answers = ["It is Paris, France.", "France: Paris", "Paris", "", "paris in the middle of FRANCE"]
  test = [dataclasses.replace(records["test"][0], truth="Paris, France", answer=answer) for answer in answers]
  own = Evaluation(records | {"test": test})
  assert own["test_accuracy"] == 2 / 5
  assert "test_accuracy" not in Evaluation(records | {"test": []})


def test_wrong_answers_without_paraphrases_give_no_figure_that_is_not_a_number(records):
  """The truth ratio then compares with the answer itself, or is left out."""
  less = {split: [dataclasses.replace(record, paraphrased_nll=None) for record in rows]
          for split, rows in records.items()}
  own = compared(less)["retrained"]
  assert all(np.isfinite(value) for value in own.metrics().values())
  logs.recompute(logs.from_evaluation(own))


def test_a_model_alone_has_what_takes_no_other(records):
  """Whoever unlearns a model that is at hand has no retrained one."""
  own = Evaluation(records).metrics()
  assert {"forget_rouge", "truth_ratio", "memorization", "mia_zlib_auc"} <= own.keys()
  assert not {"tug_of_war", "privleak", "privacy", "forget_quality", "gibberish_share"} & own.keys()


def test_a_collapsed_model_has_no_truth_left():
  """1 / (1 + R) is near 1 where all answers are impossible: R's own epsilon rules there."""
  row = make_record(np.random.default_rng(0), logprobs=np.full(3, -40.0), paraphrased_nll=40.0,
                    perturbed_nll=(40.0, 40.0))
  assert truth_ratios([row], form="probability")[0] < 1e-6


def test_over_forgetting_raises_memorization_but_not_its_closeness(records):
  known, little, none = (dict.fromkeys(MEMORIZATION, value) for value in (0.9, 0.3, 0.01))
  models = compared(records, retrained=little, gone=none,
                    original=known | dict.fromkeys(ATTACKS, 0.99))
  ours, right = models["gone"], models["retrained"]
  assert ours["memorization"] > right["memorization"]
  assert ours["memorization_closeness"] < right["memorization_closeness"] == 1.0
  assert right["overall_closeness"] == 1.0 > right["overall"]


def test_without_a_hold_out_memorization_stays(records):
  own = compared(records | {"holdout": []})["retrained"]
  assert "memorization" in own and "privacy" not in own and "overall" not in own


def test_a_log_takes_unequal_numbers_of_wrong_answers(records):
  first = records["forget"][0]
  records["forget"][0] = dataclasses.replace(first, perturbed_nll=first.perturbed_nll[:-1])
  log = logs.from_evaluation(Evaluation(records))
  values = log["forget_Q_A_PERT_Prob"]["value_by_index"].values()
  assert {len(value["avg_loss"]) for value in values} == {2}


def test_min_k_is_a_choice_of_the_metric_not_of_the_records():
  """Were it kept with the records, another share would need a new evaluation."""
  few, all_of_them = (evaluations({"m": make_records(1)}, min_k=k)["m"] for k in (0.1, 1.0))
  assert few["mia_min_k_auc"] != all_of_them["mia_min_k_auc"]
  assert few["mia_loss_auc"] == all_of_them["mia_loss_auc"]


def test_unknown_words_are_a_mean_over_the_answers(records):
  """The words of prompts and true responses are known, of every split."""
  known = records["retain"][0].truth.split()[0]
  answers = [f"{known} flurb", known, "zilch flurb"]
  records["forget"] = [dataclasses.replace(record, answer=answer)
                       for record, answer in zip(records["forget"], answers, strict=False)]
  assert len(records["forget"]) == 3
  assert Evaluation(records)["unknown_word_share"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_means_over_the_forget_set_are_what_their_definitions_say(records):
  forget, evaluation = records["forget"], Evaluation(records)
  right = np.exp([-record.paraphrased_nll for record in forget])
  wrong = np.exp([-np.mean(record.perturbed_nll) for record in forget])
  assert evaluation["paraphrase_probability"] == pytest.approx(right.mean())
  assert evaluation["truth_ratio_probability"] == pytest.approx(
    (right / (right + wrong)).mean(), rel=1e-6)
  assert evaluation["forget_probability"] == pytest.approx(
    np.mean([np.exp(record.logprobs.mean(dtype=np.float64)) for record in forget]))
  assert evaluation["fluency_nll"] == pytest.approx(3.0 / 4)
  assert evaluation["attribution_score"] == pytest.approx(np.mean([r.score for r in forget]))
  assert evaluation["judge_score"] == pytest.approx(np.mean([r.judge for r in forget]))
  assert evaluation["response_length"] == pytest.approx(np.mean([r.length for r in forget]))


def test_privleak_is_beside_the_retrained_models_own(records):
  """Beside it the other way round, the sign would be another."""
  models = compared(records, retrained={"mia_min_k_auc": 0.6}, other={"mia_min_k_auc": 0.9})
  assert models["other"]["privleak"] == pytest.approx(100 * ((1 - 0.9) - (1 - 0.6)) / (1 - 0.6))


def test_utility_counts_answers_that_are_not_gibberish_and_overall_is_relative_to_the_original(records):
  models = compared(
    records, original={"utility": 0.8},
    a={"model_utility": 0.6, "gibberish_share": 0.25, "memorization": 0.5, "privacy": 0.9})
  utility = 2 / (1 / 0.6 + 1 / 0.75)
  assert models["a"]["utility"] == pytest.approx(utility)
  assert models["a"]["overall"] == pytest.approx(3 / (1 / 0.5 + 1 / 0.9 + 0.8 / utility))


def test_an_answer_of_one_token_counts_for_min_k(records):
  """Its end token is left out, as everybody's."""
  rng = np.random.default_rng(1)
  short = dataclasses.replace(make_record(rng), logprobs=np.float32([-0.5, -9.0]))
  records["forget"] = [short] * 4
  records["holdout"] = [dataclasses.replace(record, logprobs=np.full(4, -2.0, np.float32))
                        for record in records["holdout"]]
  assert Evaluation(records)["mia_min_k_auc"] == 1.0

"""Published evaluation logs, recomputed from their examples."""

import dataclasses
import json
import math

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation import logs
from dareu_jax.evaluation.metrics import evaluations
from tests.evaluation.made_records import make_records

ORIGINAL, RETRAINED = "llama-3.2-1b_full_forget10", "llama-3.2-1b_retain90"


@pytest.fixture(scope="module")
def published_logs(data_dir):
  """(log, summary) of each published model."""
  folder = data_dir / "tofu_eval_logs"
  return {name: (logs.read(folder / name / "TOFU_EVAL.json"),
                 json.loads((folder / name / "TOFU_SUMMARY.json").read_text()))
          for name in (ORIGINAL, RETRAINED)}


@pytest.mark.parametrize("name", [ORIGINAL, RETRAINED])
def test_every_figure_of_a_published_log_comes_out_again(published_logs, name):
  log, _ = published_logs[name]
  figures = logs.recompute(log, published_logs[RETRAINED][0])
  stated = logs.published(log)
  # The retrained model's own log has forget quality too; PrivLeak is of another reference there.
  recomputable = stated.keys() - {"forget_quality", "privleak", "mia_reference"}
  assert recomputable <= figures.keys()
  for name in recomputable:
    assert figures[name] == pytest.approx(stated[name], abs=1e-6), name


def test_forget_quality_and_privleak_against_the_retrained_log(published_logs):
  """p is 4e-22 here: only its logarithm shows whether it is the same test."""
  (log, stated), (retrained, _) = published_logs[ORIGINAL], published_logs[RETRAINED]
  figures = logs.recompute(log, retrained)
  assert figures["forget_quality_log10"] == pytest.approx(
    math.log10(stated["forget_quality"]), rel=1e-6)
  assert figures["privleak"] == pytest.approx(stated["privleak"], abs=1e-6)
  same = logs.recompute(retrained, retrained)
  assert (same["forget_quality"], same["forget_quality_ks"]) == (1.0, 0.0)


def test_the_retrained_log_alone_has_privleak_against_chance(published_logs):
  """Without a reference log the published figure takes an AUC of one half."""
  log, stated = published_logs[RETRAINED]
  figures = logs.recompute(log)
  assert "forget_quality" not in figures
  assert figures["privleak"] == pytest.approx(stated["privleak"], abs=1e-6)


def test_a_summary_has_what_the_published_one_has(published_logs):
  log, stated = published_logs[ORIGINAL]
  figures = logs.summary(logs.recompute(log, published_logs[RETRAINED][0]))
  assert stated.keys() <= figures.keys()


@pytest.mark.parametrize(("text", "said"), [
  ("[1, 2", "is not JSON"), ("{\"privleak\": 3.0}", "no metric with an agg_value")])
def test_what_is_no_log_is_refused(tmp_path, text, said):
  (tmp_path / "log.json").write_text(text)
  with pytest.raises(InputError, match=said):
    logs.read(tmp_path / "log.json")


def test_a_log_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(InputError, match="cannot be read"):
    logs.read(tmp_path / "no.json")


def test_a_log_that_lacks_a_column_is_refused_by_name():
  log = {"forget_Q_A_Prob": {"agg_value": 1.0, "value_by_index": {"0": {"prob": 1.0}}}}
  with pytest.raises(InputError, match="forget_Q_A_Prob has no 'avg_loss'"):
    logs.recompute(log)


def test_metrics_of_other_examples_are_not_paired():
  """By position the truth ratio of example 3 would take the wrong answers of example 2."""

  def entry(indices, loss):
    return {"agg_value": 0.5, "value_by_index": {str(i): {"avg_loss": loss} for i in indices}}

  log = {"forget_Q_A_PARA_Prob": entry((0, 1, 3), 1.0),
         "forget_Q_A_PERT_Prob": entry((0, 1, 2), [1.0, 2.0])}
  with pytest.raises(InputError, match="example 2 is in only one of them"):
    logs.recompute(log)


def test_a_loss_that_is_null_is_refused():
  log = {"forget_Q_A_Prob": {"agg_value": 1.0, "value_by_index": {"0": {"avg_loss": None}}}}
  with pytest.raises(InputError, match="null or not a number"):
    logs.recompute(log)


@pytest.mark.parametrize(("entry", "said"), [
  ({"agg_value": 1.0}, "has no value_by_index"),
  ({"agg_value": 1.0, "value_by_index": {"first": {"avg_loss": 1.0}}}, "has no value_by_index"),
  ({"agg_value": 1.0, "value_by_index": {}}, "has no value_by_index"),
  ({"agg_value": 1.0, "value_by_index": ["a"]}, "has no value_by_index"),
  ({"agg_value": 1.0, "value_by_index": {"0": None}}, "TypeError"),
  (3.0, "has no value_by_index"),
])
@pytest.mark.parametrize("name", ["forget_Q_A_Prob", "retain_Q_A_ROUGE", "extraction_strength"])
def test_a_partial_or_foreign_log_is_refused_by_name(name, entry, said):
  """Logs of other tools and broken copies of logs: one error each, no traceback."""
  with pytest.raises(InputError, match=f"{name}.*({said})"):
    logs.recompute({name: entry})


def test_an_attack_without_scores_is_refused_by_name():
  part = {"agg_value": 0.5, "value_by_index": {"0": {"score": 1.0}}}
  with pytest.raises(InputError, match="holdout has no 'score'"):
    logs.recompute({"mia_loss": {"forget": part, "holdout": {"value_by_index": {"0": {}}}}})
  with pytest.raises(InputError, match="holdout has no value_by_index"):
    logs.recompute({"mia_loss": {"forget": part, "holdout": 0.5}})


def test_answers_that_are_no_texts_are_refused():
  entry = {"value_by_index": {"0": {"ground_truth": "a", "generation": None}}}
  with pytest.raises(InputError, match="'generation' that is not a text"):
    logs.recompute({"forget_Q_A_ROUGE": entry})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_log_of_a_model_that_diverged_has_its_finite_figures(loss):
  """One model's loss must not end the run of all."""
  whole = make_records()
  broken = {split: [dataclasses.replace(
    record, logprobs=np.full_like(record.logprobs, -loss), perturbed_nll=(loss,) * 3,
    paraphrased_nll=record.paraphrased_nll and loss) for record in records]
    for split, records in whole.items()}
  some = whole | {"forget": [
    dataclasses.replace(whole["forget"][0], paraphrased_nll=loss), *whole["forget"][1:]]}
  of = {name: logs.from_evaluation(evaluation) for name, evaluation in evaluations(
    {"retrained": whole, "broken": broken, "some": some}, min_k=0.4).items()}
  for log in of.values():
    json.dumps(log, allow_nan=False)
    assert logs.recompute(log).keys() <= logs.published(log).keys()  # it can be read again
  assert {"forget_Q_A_ROUGE", "extraction_strength", "exact_memorization"} <= of["broken"].keys()
  assert not any("Prob" in name or "truth" in name.lower() or name.startswith("mia_")
                 for name in of["broken"])
  lacking = of["retrained"].keys() - of["some"].keys() - {"forget_quality"}
  assert lacking == {"forget_Q_A_PARA_Prob", "forget_truth_ratio"}

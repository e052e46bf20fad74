"""Declaring a metric: one declaration is all that tables, intervals and docs take."""

import dataclasses
import pathlib

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation import bootstrap
from dareu_jax.evaluation.metrics import base
from dareu_jax.evaluation.metrics.base import METRICS, Evaluation, evaluations
from dareu_jax.report import method_tables, tables
from tests.configs import ROOT
from tests.evaluation.made_records import make_records


@pytest.fixture(autouse=True)
def declared_here(monkeypatch):
  """What a test declares is gone after it."""
  monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))


def test_a_metric_of_examples_has_value_interval_comparison_and_columns():
  @base.example_metric("short_share", title="short", group=base.MAIN, needs=("length",),
                       interval=True, paired="short", meaning="answers of under six tokens")
  def short(record):
    return float(record.length < 6)

  models = evaluations({name: make_records(seed) for seed, name in enumerate(
    ("retrained", "npo", "dareu"))}, min_k=0.4)
  want = np.mean([record.length < 6 for record in models["npo"].records["forget"]])
  assert models["npo"].metrics()["short_share"] == want
  assert bootstrap.intervals([models["npo"]])["short_share"][0] == want
  gap = bootstrap.paired([models["npo"]], [models["dareu"]], [models["retrained"]])["short"]
  rows = {name: evaluation.metrics() for name, evaluation in models.items()}
  for text in (tables.text_table(rows), tables.markdown_table(rows)):
    assert "short" in text and f"{want:.3f}" in text
  summary = {"models": rows, "stages": {}, "chosen": {"npo": "npo", "dareu": "dareu"}, "examples": {
    "best": "dareu", "intervals": {"npo": bootstrap.intervals([models["npo"]])},
    "paired": {"npo": {"short": gap}}}}
  methods, examples = method_tables.of_summary(summary)
  assert "Δshort to dareu" in methods.header and "short" in examples.header
  assert "| short (→) | `short_share` | answers of under six tokens |" in base.metrics_table()


def test_a_metric_may_take_others_and_other_models():
  @base.metric("rouge_gap", title="gap", needs=("forget_rouge", "retrained"))
  def gap(evaluation):
    return evaluation["forget_rouge"] - evaluation.retrained["forget_rouge"]

  models = evaluations({"retrained": make_records(1), "npo": make_records(2)}, min_k=0.4)
  assert models["retrained"]["rouge_gap"] == 0.0
  assert models["npo"]["rouge_gap"] == (
    models["npo"]["forget_rouge"] - models["retrained"]["forget_rouge"])
  assert "rouge_gap" not in Evaluation(make_records(2))


@pytest.mark.parametrize("need", [
  "holdout", "test", "gradient_norm", "clean", "retrained", "gibberish_bound", "tug_of_war"])
def test_a_metric_whose_needs_are_not_met_is_left_out_and_never_called(need):
  """A function that is called all the same must guard itself, in every metric again."""

  @base.metric("picky", needs=("answer", need))
  def picky(evaluation):
    raise AssertionError("called")

  evaluation = Evaluation({split: make_records()[split] for split in ("forget", "retain")})
  assert "picky" not in evaluation and "picky" not in evaluation.metrics()
  with pytest.raises(KeyError, match=f"no picky: it lacks some of what that metric needs .*{need}"):
    evaluation["picky"]


def test_what_is_needed_of_a_model_is_needed_of_the_retrained_too():
  @base.metric("both", needs=("holdout", "retrained"))
  def both(evaluation):
    return len(evaluation.retrained.records["holdout"])

  whole, less = make_records(), make_records() | {"holdout": []}
  assert evaluations({"npo": whole, "retrained": whole}, min_k=0.4)["npo"]["both"] == 8
  assert "both" not in evaluations({"npo": whole, "retrained": less}, min_k=0.4)["npo"]


def test_a_metric_is_computed_once():
  calls = []

  @base.metric("counted")
  def counted(evaluation):
    calls.append(1)
    return 0.0

  evaluation = Evaluation(make_records())
  assert evaluation["counted"] == evaluation.metrics()["counted"] == 0.0 and calls == [1]


def test_an_example_without_a_value_is_left_out_of_the_mean():
  @base.example_metric("first_token", split="retain", interval=True)
  def first(record):
    return None if record.hits[0] else 1.0

  @base.example_metric("nothing")
  def nothing(record):
    return None

  evaluation = Evaluation(make_records())
  hits = [record.hits[0] for record in evaluation.records["retain"]]
  assert any(hits) and not all(hits)
  assert evaluation["first_token"] == 1.0 and "nothing" not in evaluation
  assert bootstrap.intervals([evaluation])["first_token"] == [1.0, 1.0, 1.0]


def test_an_example_that_lacks_what_a_metric_needs_has_no_value():
  """Half of the data may have paraphrases; the function would be given None for the other half."""
  @base.example_metric("paraphrased", needs=("paraphrased_nll",))
  def paraphrased(record):
    return 0.0 * record.paraphrased_nll + 1.0

  records = make_records()
  records["forget"] = [dataclasses.replace(record, paraphrased_nll=None if i % 2 else 3.0)
                       for i, record in enumerate(records["forget"])]
  evaluation = Evaluation(records)
  assert evaluation["paraphrased"] == 1.0
  assert np.isnan(evaluation.by_example("paraphrased")[1::2]).all()


def test_a_cell_that_runs_again_declares_anew_and_another_metric_of_that_name_is_refused():
  def cell(value):
    @base.metric("mine")
    def mine(evaluation):
      return value

  cell(1.0)
  cell(2.0)
  assert Evaluation(make_records())["mine"] == 2.0
  with pytest.raises(InputError, match="cannot be metric 'mine'"):
    @base.metric("mine")
    def other(evaluation):
      return 0.0


@pytest.mark.parametrize(("options", "said"), [
  ({"key": "answer"}, "reserved for a need"), ({"group": "mine"}, "one of main, more, privacy"),
  ({"arrow": "down"}, "it must be → or ↑"), ({"split": "all"}, "the split is 'all'"),
  ({"group": "main", "title": "a title of many words"}, "does not fit in two lines")])
def test_a_declaration_that_cannot_be_shown_is_refused(options, said):
  with pytest.raises(InputError, match=said):
    base.metric(**{"key": "mine"} | options)(lambda evaluation: 0.0)


def test_a_need_that_is_none_is_named():
  base.metric("mine", needs=("forget_roug",))(lambda evaluation: 0.0)
  with pytest.raises(InputError, match="there is no metric 'forget_roug'"):
    Evaluation(make_records()).metrics()


def test_the_main_table_is_what_it_always_was():
  """Titles, order and arrows by which reports of earlier runs are read."""
  unlike = ("tug_of_war_unseen", "fluency_nll_original")  # where no model was retrained
  models = {"retrained": {key: 1.0 for key in METRICS if key not in unlike}}
  assert [f"{column.name} {column.arrow}" for column in tables.main_columns(models)] == [
    "D_F ROUGE →", "D_R ROUGE →", "D_test ROUGE →", "ToW ↑", "truth ratio →", "D_F prob. →",
    "Min-K% MIA AUC →", "attribution →", "judge →", "fluency NLL →", "distinct →",
    "length (tokens) →", "gibberish →", "extraction →"]


def test_every_metric_says_what_it_means():
  for key, declared in METRICS.items():
    assert declared.meaning, key


def test_the_docs_hold_the_table_of_the_declarations():
  page = pathlib.Path(ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
  assert base.metrics_table() in page, "run: python -m tests.evaluation.update_docs"

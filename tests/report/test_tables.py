"""The tables say what was measured, which way is better, and no more."""

import re

import pytest

from dareu_jax.evaluation.metrics.base import METRICS
from dareu_jax.report import tables

ORIGINAL = {"forget_rouge": 0.95, "retain_rouge": 0.96, "tug_of_war": 0.45, "response_length": 21.3}
RETRAINED = {"forget_rouge": 0.38, "retain_rouge": 0.95, "tug_of_war": 1.0, "response_length": 20.1}
DAREU = {"forget_rouge": 0.4, "retain_rouge": 0.94, "tug_of_war": 0.96, "response_length": 19.5}
NPO = {"forget_rouge": 0.2, "retain_rouge": 0.948, "tug_of_war": 0.7, "response_length": 60.0}
MODELS = {"original": ORIGINAL, "retrained": RETRAINED, "dareu": DAREU}


def column(key):
  return METRICS[key]


def markdown_cells(text):
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def row_of(models, name, key):
  """The Markdown cell of a model under a metric, found by the header's title."""
  header, _, *rows = markdown_cells(tables.markdown_table(models))
  title = f"{column(key).title} ({column(key).arrow})"
  return next(row for row in rows if row[0] == name)[header.index(title)]


def test_absent_metric_is_a_dash_and_zero_is_not():
  """Fails where `if value` takes 0.0 for absent, or None is printed."""
  models = {**MODELS, "dareu": {**DAREU, "truth_ratio": 0.0, "retain_rouge": None}}
  assert row_of(models, "dareu", "truth_ratio") == "0.000"
  assert row_of(models, "original", "truth_ratio") == tables.DASH
  assert row_of(models, "dareu", "retain_rouge") == tables.DASH
  assert "not measured" in tables.text_table(models)


def test_a_metric_that_no_model_has_has_no_column():
  """A column of dashes says nothing; without a retrained model there would be several."""
  header = markdown_cells(tables.markdown_table(MODELS))[0]
  assert not any("Min-K%" in title for title in header)
  assert "not measured" not in tables.text_table(MODELS)


def test_without_a_retrained_model_the_row_of_unseen_owners_is_the_target():
  rows = {"original": {"forget_rouge": 0.9, "tug_of_war_unseen": 0.3},
          "unseen": {"forget_rouge": 0.3, "tug_of_war_unseen": 1.0},
          "npo": {"forget_rouge": 0.1, "tug_of_war_unseen": 0.8},
          "dareu": {"forget_rouge": 0.32, "tug_of_war_unseen": 0.98}}
  assert list(dict(tables.model_cells(rows))) == ["original", "unseen", "npo", "dareu"]
  assert tables.best_models(rows, column("forget_rouge")) == {"dareu"}
  assert tables.best_first(["npo", "dareu"], rows) == ["dareu", "npo"]
  assert "closer to the row of unseen owners" in tables.legend(rows)


def test_nan_is_shown_and_never_best():
  models = {**MODELS, "npo": NPO, "broken": {"tug_of_war": float("nan")}}
  assert row_of(models, "broken", "tug_of_war") == "nan"
  assert tables.best_models(models, column("tug_of_war")) == {"dareu"}


def test_only_tow_points_up():
  """Fails where attribution or a ROUGE is marked as lower or higher is better."""
  arrows = {column.key: column.arrow for column in tables.main_columns(MODELS)}
  assert arrows.pop("tug_of_war") == "↑"
  assert set(arrows.values()) == {"→"}
  header = markdown_cells(tables.markdown_table(MODELS))[0]
  assert "ToW (↑)" in header and "D_F ROUGE (→)" in header
  assert tables.text_table(MODELS).splitlines()[2].split() == ["model"] + [
    f"({column.arrow})" for column in tables.main_columns(MODELS)
  ]


def test_best_is_closest_to_retrained_not_lowest():
  """npo has the lowest forget ROUGE (.2), dareu the closest to .38; the original is out."""
  models = {**MODELS, "npo": NPO}
  assert tables.best_models(models, column("forget_rouge")) == {"dareu"}
  assert tables.best_models(models, column("retain_rouge")) == {"npo"}
  assert tables.best_models(models, column("tug_of_war")) == {"dareu"}
  assert row_of(models, "dareu", "forget_rouge") == "**0.400**"
  assert "0.400*" in tables.text_table(models)


def test_equal_at_the_printed_decimals_is_equally_good():
  """.400 and .360 are both .020 away, up to rounding errors."""
  models = {**MODELS, "npo": {**NPO, "forget_rouge": 0.36}}
  assert tables.best_models(models, column("forget_rouge")) == {"dareu", "npo"}


@pytest.mark.parametrize("left_out", ["npo", "retrained"])
def test_nothing_is_best_without_a_rival_or_a_reference(left_out):
  models = {name: m for name, m in {**MODELS, "npo": NPO}.items() if name != left_out}
  assert tables.best_models(models, column("forget_rouge")) == set()


def test_confidence_interval_is_shown_beside_its_metric():
  models = {**MODELS, "dareu": {**DAREU, "forget_rouge_ci95": 0.0214}}
  assert row_of(models, "dareu", "forget_rouge") == "0.400 ± 0.021"
  assert row_of(models, "dareu", "retain_rouge") == "0.940"
  text = tables.text_table(models)
  assert "0.400 ± 0.021" in text and "95% confidence" in text
  assert "±" not in tables.text_table(MODELS)


def test_digits_stand_below_each_other():
  """Fails where a star or an interval in one row shifts the number above it."""
  models = {**MODELS, "dareu": {**DAREU, "forget_rouge_ci95": 0.0214}, "npo": NPO}
  lines = tables.text_table(models).splitlines()
  rows = [line for line in lines if line.split()[0] in models]
  assert len(rows) == 4
  assert len({re.search(r"\d\.\d", row).start() for row in rows}) == 1


def test_markdown_rows_have_equally_many_cells():
  """Fails where a name with a pipe or a line break opens a cell or a row of its own."""
  rows = markdown_cells(tables.markdown_table({**MODELS, "a|b\nc": {}}))
  assert {len(row) for row in rows} == {len(tables.main_columns(MODELS)) + 1}
  assert len(rows) == 2 + 4


def test_references_come_first_whatever_the_order_given():
  models = {"npo": NPO, "dareu": DAREU, "retrained": RETRAINED, "original": ORIGINAL}
  assert tables.ordered(models) == ["original", "retrained", "npo", "dareu"]


def test_stage_table_marks_the_skipped_and_leaves_them_out_of_the_total():
  stages = {
    "original": {"seconds": 1000.0, "skipped": True},
    "retrained": {"seconds": 61.0, "skipped": False},
    "dareu": {"seconds": 3600.0, "skipped": False},
  }
  lines = {line.split()[0]: line for line in tables.stage_table(stages).splitlines()}
  assert "skipped" in lines["original"] and "skipped" not in lines["retrained"]
  assert "1 min 01 s" in lines["retrained"]
  assert "1 h 01 min" in lines["total"]


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0.04, "0.0 s"), (59.97, "1 min 00 s"), (3599.8, "1 h 00 min"), (7199, "2 h 00 min"), (None, "—")],
)
def test_seconds_never_carry_wrongly(seconds, text):
  """Fails where rounding gives "60.0 s", "59 min 60 s" or "1 h 60 min"."""
  assert tables.format_seconds(seconds) == text

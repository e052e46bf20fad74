"""Metric files: what a killed run wrote is not there twice."""

import json
import math

import pytest

from dareu_jax.training.writers import MetricWriter, progress, read_metrics


@pytest.fixture
def writer(tmp_path):
  writer = MetricWriter(tmp_path, "original")
  yield writer
  writer.close()


def lines(writer):
  return [json.loads(line) for line in writer.path.read_text().splitlines()]


def test_each_record_is_a_line_of_json(writer, tmp_path):
  """Two records in one line, or a file written anew each time, lose history."""
  writer.rewind(0)
  writer.write(1, {"loss": 0.5})
  writer.write(2, {"loss": 0.25, "note": "x"})
  assert writer.path == tmp_path / "original.jsonl"
  assert lines(writer) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "note": "x"}]
  assert read_metrics(writer.path) == lines(writer)


@pytest.mark.parametrize(("step", "kept"), [(0, []), (9, []), (10, [10]), (25, [10, 20]),
                                            (99, [10, 20, 30])])
def test_rewind_drops_later_records(writer, step, kept):
  """The record of the checkpoint's own step stays; a step after it comes again."""
  writer.rewind(0)
  for s in (10, 20, 30):
    writer.write(s, {"loss": float(s)})
  writer.rewind(step)
  assert [record["step"] for record in lines(writer)] == kept


@pytest.mark.parametrize("cut", ['{"step": 30, "lo', '{"step": 30, "loss": 1.0', "{"])
def test_a_half_written_last_line_is_dropped(writer, cut):
  """The next record would be glued to it, and the file be unreadable for good."""
  writer.rewind(0)
  writer.write(10, {"loss": 1.0})
  with open(writer.path, "a") as file:
    file.write(cut)
  assert [record["step"] for record in read_metrics(writer.path)] == [10]
  writer.rewind(40)
  writer.write(50, {"loss": 2.0})
  assert [record["step"] for record in lines(writer)] == [10, 50]


def test_a_number_that_is_not_finite_is_null(writer):
  """NaN is no JSON: other programs cannot read the file."""
  writer.rewind(0)
  writer.write(1, {"loss": math.nan, "kl": -math.inf, "note": "x"})
  writer.rewind(1)  # reads the file and writes it anew
  line = json.loads(writer.path.read_text(), parse_constant=pytest.fail)
  assert line == {"step": 1, "loss": None, "kl": None, "note": "x"}
  [record] = read_metrics(writer.path)
  assert math.isnan(record["loss"]) and math.isnan(record["kl"]) and record["note"] == "x"


def test_a_missing_file_has_no_records(tmp_path):
  """The first run of a stage finds none."""
  assert read_metrics(tmp_path / "none.jsonl") == []


def test_numbers_go_to_tensorboard(writer, tmp_path):
  """A writer that is never flushed leaves a file without events."""
  writer.rewind(0)
  writer.write(1, {"loss_of_test": 0.5, "note": "x", "flag": True})
  writer.close()
  (events,) = tmp_path.glob("tensorboard/original/events.out.tfevents*")
  content = events.read_bytes()
  assert b"loss_of_test" in content and b"note" not in content and b"flag" not in content


def test_a_mirror_gets_each_record_once_with_its_stage(tmp_path):
  """Stages share one mirror: without their names all losses would be one curve."""
  seen = []
  for name in ("original", "dareu"):
    writer = MetricWriter(tmp_path, name, mirror=lambda *record: seen.append(record))
    writer.rewind(0)
    writer.write(3, {"loss": 0.5})
    writer.close()
  assert seen == [("original", 3, {"loss": 0.5}), ("dareu", 3, {"loss": 0.5})]


def test_progress_starts_where_the_stage_resumes(capsys):
  """From 0 the time left of a resumed stage is wrong."""
  with progress("original")(10, 4) as bar:
    bar.update()
    assert (bar.n, bar.total) == (5, 10)
  assert "original" in capsys.readouterr().err

"""The wall time that a kill costs."""

import json

import pytest

from dareu_jax.training import wall_time
from dareu_jax.training.checkpoints import write_json


@pytest.fixture
def clock(monkeypatch):
  """Time stands still until it is set."""
  now = [100.0]
  monkeypatch.setattr(wall_time.time, "time", lambda: now[0])
  monkeypatch.setattr(wall_time.WallTimeLog, "_beat", lambda self: None)
  return now


def test_what_is_not_saved_when_a_process_ends_is_lost(tmp_path, clock):
  """Work is done until 130, saved up to 120, and done again by the next process."""
  with pytest.raises(KeyboardInterrupt), wall_time.WallTimeLog(tmp_path) as log:
    clock[0] = 125.0
    log.record_saved(120.0)
    clock[0] = 130.0
    raise KeyboardInterrupt
  clock[0] = 1000.0  # the time between two processes is nobody's
  with wall_time.WallTimeLog(tmp_path) as log:
    clock[0] = 1030.0
    log.record_saved()
    clock[0] = 1040.0
    assert log.summary() == {
      "processes": 2, "kept_seconds": 50.0, "lost_seconds": 10.0, "goodput": pytest.approx(5 / 6, abs=1e-4)}
  # What comes after the last saved work of a run that ends well is no loss.
  with wall_time.WallTimeLog(tmp_path) as log:
    assert log.summary()["lost_seconds"] == 10.0


def test_a_restored_checkpoint_is_credited_to_the_process_that_wrote_it(tmp_path, clock):
  """It was killed before it knew."""
  with pytest.raises(KeyboardInterrupt), wall_time.WallTimeLog(tmp_path):
    clock[0] = 150.0
    raise KeyboardInterrupt
  clock[0] = 200.0
  with wall_time.WallTimeLog(tmp_path) as log:
    assert log.summary()["lost_seconds"] == 50.0
    log.record_saved(140.0)
    assert log.summary() | {"processes": 2} == {
      "processes": 2, "kept_seconds": 40.0, "lost_seconds": 10.0, "goodput": 0.8}


def test_a_job_of_another_host_is_known_by_its_heartbeat(tmp_path, clock, monkeypatch):
  """Locks of buckets that are mounted hold on one host only."""
  assert wall_time.active_elsewhere(tmp_path) is None
  with wall_time.WallTimeLog(tmp_path):
    assert wall_time.active_elsewhere(tmp_path) is None  # of this host the lock knows
    monkeypatch.setattr(wall_time.socket, "gethostname", lambda: "other")
    assert wall_time.active_elsewhere(tmp_path) is not None
    clock[0] += 6 * wall_time.BEAT
    assert wall_time.active_elsewhere(tmp_path) is None
    clock[0] -= 6 * wall_time.BEAT
  assert wall_time.active_elsewhere(tmp_path) is None  # it has ended


def test_saved_time_never_goes_back(tmp_path, clock):
  """A checkpoint that was begun before a stage ended is there after it."""
  with wall_time.WallTimeLog(tmp_path) as log:
    clock[0] = 140.0
    log.record_saved()
    log.record_saved(110.0)
  assert log.summary()["kept_seconds"] == 40.0


def test_a_process_that_is_killed_has_left_a_heartbeat(tmp_path, monkeypatch):
  """It cannot say at its end when that was."""
  monkeypatch.setattr(wall_time, "BEAT", 0.01)
  log = wall_time.WallTimeLog(tmp_path).__enter__()
  full = []

  def write(*given):
    if len(full) < 3:  # a disk that is full for a moment
      full.append(given)
      raise OSError(28, "No space left on device")
    write_json(*given)

  monkeypatch.setattr(wall_time, "write_json", write)
  start = json.loads((tmp_path / "time.json").read_text())[0]["seen"]
  for _ in range(500):
    seen = json.loads((tmp_path / "time.json").read_text())[0]["seen"]
    if seen > start:
      break
    wall_time.time.sleep(0.01)
  assert seen > start, "no heartbeat"
  assert len(full) == 3
  log.__exit__()

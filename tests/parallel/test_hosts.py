"""Several real processes as one job, over loopback."""

import errno
import os
import re
import signal
import threading
import time

import jax
import pytest

from dareu_jax.core import interruption
from dareu_jax.core.errors import InputError
from dareu_jax.parallel import hosts
from dareu_jax.training.writers import read_metrics
from tests.jobs import (
  CONFIG,
  DAREU,
  ORIGINAL,
  batches,
  figures,
  finish,
  together,
  wait_for,
  without,
)


@pytest.fixture
def together_failing(command, tmp_path):
  """start(workdir) -> two processes of which the second fails once it has saved something."""

  def start(workdir):
    config = tmp_path / "failing.py"
    config.write_text(f'''{CONFIG}
from dareu_jax.parallel import hosts
from dareu_jax.training.checkpoints import Store
hosts.PATIENCE = 10
if "--process_id=1" in sys.argv:
  save = Store.save
  def fails(*args, **more):
    save(*args, **more)
    raise ValueError("a bad batch")
  Store.save = fails
''')
    return together(command, workdir, 2, config=config)

  return start


def assert_same_table(workdir, expected):
  for model, row in figures(expected).items():
    assert figures(workdir)[model] == pytest.approx(row, rel=1e-5, abs=1e-5), model


def test_four_processes_end_with_the_table_of_one(finished, command, tmp_path):
  """Shares of a batch that overlap, files written twice, a key for each host. (Two: below.)"""
  without(("classifier", *DAREU), finished[0], tmp_path / "w")
  outputs = [finish(process) for process in together(command, tmp_path / "w", 4)]
  assert [code for code, _, _ in outputs] == [0] * 4, outputs
  assert_same_table(tmp_path / "w", finished[0])
  assert batches(tmp_path / "w") == batches(finished[0])
  assert len(read_metrics(tmp_path / "w/metrics/dareu.jsonl")) == len(
    read_metrics(finished[0] / "metrics/dareu.jsonl"))
  # The first alone prints and draws.
  assert re.search(r"^dareu\s+\d\.\d+", outputs[0][1], re.M)
  for _, out, err in outputs[1:]:
    assert "dareu" not in out and "step/s" not in err


def test_two_processes_are_stopped_and_lost_and_one_alone_ends_with_the_table_of_one(
    finished, command, tmp_path):
  """SIGTERM reaches one host alone, and the others must save with it, at the same step. They would
  wait for ever for one that is lost; each of the two is the one."""
  workdir = without(("base", *ORIGINAL, *DAREU), finished[0], tmp_path / "w")
  processes = together(command, workdir, 2, "--config.checkpoint.every_steps=1000")
  wait_for("base/started.json", workdir, processes[0])
  time.sleep(2)
  processes[1].send_signal(signal.SIGTERM)
  outputs = [finish(process) for process in processes]
  assert [code for code, _, _ in outputs] == [143, 143], outputs
  assert all("stopped by SIGTERM" in err for _, _, err in outputs)
  assert list(workdir.glob("*/progress/[0-9]*/meta")) or (workdir / "base/done.json").exists()
  for lost, sign in ((1, "original/progress/3"), (0, "dareu/progress/2")):
    processes = together(command, workdir, 2)
    wait_for(sign, workdir, processes[0])
    processes[lost].send_signal(signal.SIGKILL)
    code, _, err = finish(processes[1 - lost])
    assert code not in (0, None)
    assert "lost another process" in err or "coordination service" in err, err[-3000:]
    finish(processes[lost])
  code, _, err = finish(command(workdir))
  assert code == 0, err
  assert_same_table(workdir, finished[0])
  assert batches(workdir) == batches(finished[0])


def test_a_process_that_fails_by_itself_ends_the_others(together_failing, tmp_path):
  """With a checkpoint under way, whose end all processes wait for."""
  outputs = [finish(process) for process in together_failing(tmp_path / "w")]
  (code, _, err), (failed, _, said) = outputs
  assert failed == 1 and "a bad batch" in said
  assert "process 1 of 2 failed; this ends the others too" in said
  assert code not in (0, None) and ("lost another process" in err or "coordination service" in err), err


@pytest.mark.parametrize(("error", "status", "said"), [
  (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on the disk .*Free some"),
  (KeyboardInterrupt(), 2, "interrupted."), (InputError("mend this"), 2, "mend this"),
  (RuntimeError("Gloo: Connection reset by peer"), 1, "process 0 of 2 lost another process"),
  (TimeoutError("Timed out while waiting for a barrier"), 1, "process 0 of 2 lost another process")])
def test_what_the_user_can_mend_is_one_line_of_several_processes_too(
    monkeypatch, capsys, error, status, said):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  ends = []
  monkeypatch.setattr(os, "_exit", ends.append)
  cause = RuntimeError("the coordination service ended") if isinstance(error, TimeoutError) else None
  with hosts.ended_together():
    raise error from cause
  assert ends == [status]
  assert re.fullmatch(f"error: {said}.*\n", capsys.readouterr().err)


def test_a_wish_that_only_this_process_knows_is_passed_on_once(monkeypatch):
  """SIGHUP, or SIGTERM before JAX's service, which tells the others, has begun to listen."""
  passed = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(os, "kill", lambda *given: passed.append(given))
  monkeypatch.setattr(interruption.multihost_utils, "reached_preemption_sync_point",
                      lambda asked: bool(passed))
  monkeypatch.setattr(interruption, "_wish", threading.Event())
  assert not interruption.requested() and not passed
  interruption._wish.set()
  assert interruption.requested() and interruption.requested()
  assert passed == [(os.getpid(), signal.SIGTERM)]


def test_what_the_user_did_wrong_is_said_by_all(command, tmp_path):
  """Said by the first alone, the others would wait for it."""
  (tmp_path / "file").write_text("")
  outputs = [finish(process) for process in together(command, tmp_path / "file/w", 2)]
  for code, _, err in outputs:
    assert code == 2 and len(re.findall("^error: .*cannot be written", err, re.M)) == 1, err


def test_without_others_nothing_waits():
  assert hosts.from_first(lambda: {"a": [1]}) == {"a": [1]}
  assert hosts.everywhere(True) and not hosts.everywhere(False)
  assert hosts.is_first()

"""A run's wall time: kept, or lost because work was done again after a kill.

A process writes a heartbeat every few seconds, and up to when its work is saved; what lies between
the last saved work and the last heartbeat of a process that did not end is lost.
"""

import contextlib
import pathlib
import socket
import threading
import time

from dareu_jax.training.checkpoints import read_json, write_json

BEAT = 2.0  # seconds between two heartbeats


def active_elsewhere(folder: str | pathlib.Path) -> str | None:
  """The host on which another job works in a folder right now, by its heartbeat, or None.

  For file systems on which a lock holds on one host only.
  """
  last = (read_json(pathlib.Path(folder) / "time.json") or [None])[-1]
  if last is None or last["ended"] or last["host"] == socket.gethostname():
    return None
  return last["host"] if abs(time.time() - last["seen"]) < 5 * BEAT else None


class WallTimeLog:
  """The wall time of all processes that worked in a folder, in its `time.json`."""

  def __init__(self, folder: str | pathlib.Path):
    self.path = pathlib.Path(folder) / "time.json"
    # Of {"host", "start", "kept", "seen", "ended"}; times in seconds since 1970.
    self.processes = read_json(self.path) or []
    now = time.time()
    self._own = {"host": socket.gethostname(), "start": now, "kept": now, "seen": now,
                 "ended": False}
    self.processes.append(self._own)
    self._lock, self._ended = threading.Lock(), threading.Event()

  def __enter__(self):
    self._write()
    threading.Thread(target=self._beat, daemon=True).start()
    return self

  def __exit__(self, kind=None, *exception):
    self._ended.set()
    self._own["ended"] = True
    if kind is None:  # what an error leaves unsaved will be done again, as after a kill
      self.kept()
    self._write()

  def _beat(self):
    while not self._ended.wait(BEAT):
      # One that could not be written, on a disk that is full for a moment, is not the last.
      with contextlib.suppress(OSError):
        self._write()

  def _write(self):
    with self._lock:
      self._own["seen"] = time.time()
      write_json(self.path, self.processes)

  def kept(self, until: float | None = None) -> None:
    """Says that all work up to a time is saved; up to now, where none is given."""
    until = time.time() if until is None else until
    with self._lock:
      # What is restored was saved by the process that worked then, which may not have known it.
      for one in self.processes:
        if one["start"] <= until and (one is self._own or until <= one["seen"]):
          one["kept"] = max(one["kept"], until)

  def summary(self) -> dict[str, float]:
    """{"processes", "kept_seconds", "lost_seconds", "goodput": the kept share}."""
    kept = sum(one["kept"] - one["start"] for one in self.processes)
    lost = sum(max(0.0, one["seen"] - one["kept"]) for one in self.processes
               if one is not self._own)
    return {"processes": len(self.processes), "kept_seconds": round(kept, 1),
            "lost_seconds": round(lost, 1), "goodput": round(kept / max(kept + lost, 1e-9), 4)}

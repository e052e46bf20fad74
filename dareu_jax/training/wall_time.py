"""A run's wall time: kept, or lost because work was repeated after a kill.

Every few seconds a process writes a heartbeat and the time up to which its work is saved. If it is
killed, the time from the last saved work to the last heartbeat is lost.
"""

import contextlib
import pathlib
import socket
import threading
import time

from dareu_jax.training.checkpoints import read_json, write_json

BEAT = 2.0  # seconds between two heartbeats


def active_elsewhere(folder: str | pathlib.Path) -> str | None:
  """The host of another job that is now using a folder, by its heartbeat, or None.

  For file systems on which a lock is valid on one host only.
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
    if kind is None:  # after an error, unsaved work is repeated, as after a kill
      self.record_saved()
    self._write()

  def _beat(self):
    while not self._ended.wait(BEAT):
      # A failed write, as on a disk that is briefly full, must not end the heartbeat.
      with contextlib.suppress(OSError):
        self._write()

  def _write(self):
    with self._lock:
      self._own["seen"] = time.time()
      write_json(self.path, self.processes)

  def record_saved(self, until: float | None = None) -> None:
    """Records that all work up to a time (default: now) is saved."""
    until = time.time() if until is None else until
    with self._lock:
      # Restored work was saved by an earlier process, which may not have recorded it.
      for process in self.processes:
        if process["start"] <= until and (process is self._own or until <= process["seen"]):
          process["kept"] = max(process["kept"], until)

  def summary(self) -> dict[str, float]:
    """{"processes", "kept_seconds", "lost_seconds", "goodput": the kept share}."""
    kept = sum(process["kept"] - process["start"] for process in self.processes)
    lost = sum(max(0.0, process["seen"] - process["kept"]) for process in self.processes
               if process is not self._own)
    return {"processes": len(self.processes), "kept_seconds": round(kept, 1),
            "lost_seconds": round(lost, 1), "goodput": round(kept / max(kept + lost, 1e-9), 4)}

"""The wish to stop (SIGTERM, which a preempted machine gets, or SIGHUP), honoured between steps."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_wish = threading.Event()
_asked = 0  # how often `requested` was called: the same on all processes


class Interrupted(Exception):
  """The job was told to stop, and has saved what it had."""


def listen() -> None:
  """From now on these signals are wishes; a second one ends the process at once.

  Of several processes JAX's own service listens from `hosts.start` on, so that all stop at the same
  step.
  """

  def on_signal(number, frame):
    del frame
    _wish.set()
    signal.signal(number, signal.SIG_DFL)

  signal.signal(signal.SIGTERM, on_signal)
  # Follows on SIGTERM where a session ends; with nohup it stays ignored.
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: _wish.set())


def requested() -> bool:
  """Whether to save and stop now; alike on all processes, which must all ask."""
  global _asked
  if jax.process_count() == 1:
    return _wish.is_set()
  if _wish.is_set():  # SIGHUP, or SIGTERM before JAX's service has listened: it is told now
    _wish.clear()
    os.kill(os.getpid(), signal.SIGTERM)
  _asked += 1
  return multihost_utils.reached_preemption_sync_point(_asked)


def stop_if_requested() -> None:
  """Raises Interrupted where there is the wish; for work that has nothing to save."""
  if requested():
    raise Interrupted

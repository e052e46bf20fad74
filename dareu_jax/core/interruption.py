"""Requests to stop (SIGTERM, as sent at preemption, or SIGHUP), which are handled between steps."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_wish = threading.Event()
_asked = 0  # number of calls of `requested`: the same on all processes


class Interrupted(Exception):
  """The job was asked to stop, and has saved its progress."""


def listen() -> None:
  """From now on these signals are requests to stop; a second SIGTERM ends the process at once.

  With several processes, JAX's own service handles SIGTERM from `hosts.start` on, so that all of
  them stop at the same step.
  """

  def on_signal(number, frame):
    del frame
    _wish.set()
    signal.signal(number, signal.SIG_DFL)

  signal.signal(signal.SIGTERM, on_signal)
  # Follows SIGTERM when a session ends; under nohup it stays ignored.
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: _wish.set())


def requested() -> bool:
  """Whether to save and stop now; the same on all processes, which must all call this."""
  global _asked
  if jax.process_count() == 1:
    return _wish.is_set()
  if _wish.is_set():  # SIGHUP, or SIGTERM before JAX's service was listening: pass it on
    _wish.clear()
    os.kill(os.getpid(), signal.SIGTERM)
  _asked += 1
  return multihost_utils.reached_preemption_sync_point(_asked)


def stop_if_requested() -> None:
  """Raises Interrupted if a stop is requested; for work that has nothing to save."""
  if requested():
    raise Interrupted

"""Several processes as one job: startup, writing by the first process, agreement between them.

Every process runs the same Python on the same settings; arrays are global, and the folder of
results is shared. Only the first process writes files and progress bars.
"""

import contextlib
import json
import os
import pathlib
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dareu_jax.core.command_line import Flags, user_message
from dareu_jax.core.errors import InputError, first_line
from dareu_jax.core.interruption import Interrupted

PATIENCE = 60  # seconds without a heartbeat until a process counts as lost
T = TypeVar("T")


def start(coordinator: str | None = None, num_processes: int | None = None,
          process_id: int | None = None) -> None:
  """Joins the other processes of the job; call it before any other use of JAX.

  Without arguments JAX detects the processes itself: on TPU pods, SLURM, Open MPI and GKE.

  Args:
    coordinator: "host:port" of the first process.
    num_processes, process_id: the number of processes, and the index of this one.

  Raises:
    InputError: if they cannot be joined.
  """
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, heartbeat_timeout_seconds=PATIENCE)
  except (ValueError, RuntimeError) as error:
    reason = first_line(error)
    raise InputError(
      f"the processes of the job could not be joined ({reason}). On TPU pods, SLURM and GKE, "
      "--distributed is enough; elsewhere give each process --coordinator=HOST:PORT, "
      "--num_processes and --process_id.") from None


def start_by_flags(flags: Flags) -> None:
  """Calls `start` with the flags of `command_line.define_hosts`, if they are given."""
  if flags.distributed or flags.coordinator:
    start(flags.coordinator, flags.num_processes, flags.process_id)


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
  """Ends the process at once if it fails as one of several, so that all of them end.

  Otherwise the others would wait for it. They learn that it is gone from Gloo or, elsewhere, from
  JAX after `PATIENCE` seconds, and each reports this in its own output.
  """
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1 or isinstance(error, Interrupted):
      raise
    which = f"process {jax.process_index()} of {jax.process_count()}"
    message = user_message(error)
    status = 2 if message else 1
    if message:
      message = f"error: {message}"
    elif lost_another(error):
      reason = first_line(error)[:200]
      message = (f"error: {which} lost another process ({reason}). "
                 "The output of that process says why. Run the same command again on all hosts: it "
                 "resumes from the last checkpoint.")
    else:
      message = f"{traceback.format_exc()}error: {which} failed; this ends the others too."
    print(message, file=sys.stderr, flush=True)
    os._exit(status)  # an orderly exit would wait for the others


def lost_another(error: BaseException) -> bool:
  """Whether an error, or its cause, says that another process is gone.

  JAX has no exception type for this, and Orbax reports it as a timeout.
  """
  signs = ("gloo", "connection closed", "connection reset", "heartbeat", "coordination service")
  cause: BaseException | None = error
  while jax.process_count() > 1 and cause is not None:
    if any(sign in str(cause).lower() for sign in signs):
      return True
    cause = cause.__cause__
  return False


def is_first() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
  """Calls a function on the first process and returns its result, a JSON value, on all.

  Raises:
    InputError: on all processes, if the first one raised it.
  """
  if jax.process_count() == 1:
    return function()
  payload = b""
  if is_first():
    try:
      payload = json.dumps({"value": function()}).encode()
    except InputError as error:
      payload = json.dumps({"error": str(error)}).encode()
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
  sent = np.zeros(length, np.uint8)
  if is_first():
    sent[:] = np.frombuffer(payload, np.uint8)
  received = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8)))
  if "error" in received:
    raise InputError(received["error"])
  return received["value"]


def everywhere(condition: bool) -> bool:
  """Whether a condition holds on every process; all of them must call this."""
  if jax.process_count() == 1:
    return condition
  return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def barrier(name: str) -> None:
  """Waits until every process has reached this point."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def fetch(x: Any) -> np.ndarray:
  """The whole of a global array as a NumPy array, on every process."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def check_shared(folder: str | pathlib.Path) -> None:
  """Raises InputError unless all processes see the same folder."""
  if jax.process_count() == 1:
    return
  folder = pathlib.Path(folder)
  path = folder / from_first(lambda: f".shared_{uuid.uuid4().hex}")
  if is_first():
    folder.mkdir(parents=True, exist_ok=True)
    path.touch()
  barrier("shared folder written")
  seen = everywhere(path.exists())
  if is_first():
    path.unlink()
  if not seen:
    raise InputError(f"workdir {folder} is not the same folder on all {jax.process_count()} "
                     "hosts: give one that they share (NFS, Filestore, a mounted bucket).")

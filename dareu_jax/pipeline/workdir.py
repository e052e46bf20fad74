"""The folder of a run: its configuration, its finished stages and their results.

A stage is done if its `done.json` exists and has the same fingerprint (a hash of its settings and
of everything that it depends on). `config.json` holds the whole configuration, and the fingerprints
that its stages are to have; a run with another configuration, or on other data, is rejected.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from dareu_jax.core import interruption
from dareu_jax.core.compilation import drop_compiled_programs
from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import to_plain
from dareu_jax.parallel import hosts
from dareu_jax.training.checkpoints import (
  CheckpointSettings,
  Store,
  read_json,
  shared_json,
  write_json,
)
from dareu_jax.training.wall_time import WallTimeLog, active_elsewhere

Path = str | pathlib.Path
# Format of a workdir. 1: before settings had defaults and methods had their own files; 2: before
# there were originals at hand, and unseen owners' answers in the records; 3: before a data type of
# 'auto' was decided in config.json; 4: before epoch reports had extraction and continuations.
FORMAT = 5
# Settings that change no result of a stage. (A plugin's definitions count where a setting names
# them; its metrics appear for a finished run too.)
_IRRELEVANT = ("mesh", "checkpoint", "plugins")
_STAGES = "stages"  # key of config.json: {stage: fingerprint}


def fingerprint(*parts: Any) -> str:
  """A short hash of values that JSON can express."""
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_config(folder: Path) -> dict[str, Any]:
  """The configuration of the run in a folder.

  Raises:
    InputError: if the folder holds no run, or a run of another format.
  """
  folder = pathlib.Path(folder)
  config = read_json(folder / "config.json")
  if config is None:
    raise InputError(f"{folder} holds no run: it has no config.json. Give the workdir of a run.")
  check_format(config, folder)
  return {key: value for key, value in config.items() if key not in ("format", _STAGES)}


def is_finished(folder: Path, name: str) -> bool:
  """Whether a run's stage is done, and not that of an earlier configuration in its folder."""
  folder = pathlib.Path(folder)
  done = read_json(folder / name / "done.json")
  stages = (read_json(folder / "config.json") or {}).get(_STAGES)
  return done is not None and (not stages or done["fingerprint"] == stages.get(name))


def check_format(config: Mapping[str, Any], folder: Path) -> None:
  """Raises InputError if a run's files are of another version's format."""
  workdir_format = config.get("format", 1)
  if workdir_format == 1 and "seeds" not in config:
    raise InputError(f"{folder} holds no run: its config.json is that of something else, such as a "
                     "model. Give the workdir of a run, or a new folder.")
  if workdir_format != FORMAT:
    raise InputError(f"{folder} holds a run of workdir format {workdir_format}, and this version "
                     f"reads format {FORMAT}: finish it with the version that started it, or "
                     "choose another workdir.")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
  """Locks a folder for one job while the context lasts.

  Raises:
    InputError: if another job uses the folder, if it cannot be written, or if the hosts of this job
      do not share it.
  """
  folder = pathlib.Path(folder)
  descriptor = hosts.from_first(lambda: _lock(folder))
  try:
    hosts.check_shared(folder)
    yield
  finally:
    if hosts.is_first():
      os.close(descriptor)


def _lock(folder):
  """Locks a folder until the returned file descriptor is closed, or the process ends."""
  path = folder / "lock"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise _unwritable(folder, error) from None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    owner = None
  except BlockingIOError:
    owner = path.read_text().strip() or "that has just started"
  except OSError:  # a file system without locks
    owner = None
  owner = owner or active_elsewhere(folder)
  if owner:
    os.close(descriptor)
    raise InputError(f"{folder} is in use by another job ({owner}). Wait for it, stop it, or "
                     "choose another workdir.") from None
  os.ftruncate(descriptor, 0)
  os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
  os.fsync(descriptor)  # so that another host can read it
  return descriptor


def _unwritable(folder, error):
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return error
  return InputError(f"workdir {folder} cannot be written ({error.strerror}): choose another.")


class Workdir:
  """The stages of a run, in one folder."""

  def __init__(self, folder: Path, config: Any, checkpoint_settings: CheckpointSettings,
               wall_time: WallTimeLog | None = None):
    """`config` is the whole configuration; `wall_time` records when work was saved."""
    self.folder = pathlib.Path(folder)
    self.wall_time = wall_time
    self.config = json.loads(json.dumps(to_plain(config) | {"format": FORMAT}))
    self.checkpoint_settings = checkpoint_settings
    # Name -> {"seconds", "skipped"}, in order of execution.
    self.stages: dict[str, dict[str, Any]] = {}

  def check_config(self, *, overwrite: bool, stages: Mapping[str, str] | None = None) -> None:
    """Checks that the folder holds no other run, and writes the configuration of this one.

    Args:
      overwrite: accept another run; the affected stages run again.
      stages: {stage: fingerprint}, which tell other data, models or rewards.

    Raises:
      InputError: if the folder holds a run with another configuration or on other data, or cannot
        be written.
    """
    path = self.folder / "config.json"
    config = self.config | {_STAGES: dict(stages or {})}

    def check():
      try:
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = read_json(path)
        if stored is not None:
          check_format(stored, self.folder)
        if stored is not None and _are_different(stored, config):
          if not overwrite:
            self._refuse_another(stored, config)
          (self.folder / "summary.json").unlink(missing_ok=True)  # of the run before
        write_json(path, config)
      except OSError as error:
        raise _unwritable(self.folder, error) from None

    hosts.from_first(check)

  def _refuse_another(self, stored, config):
    changes = [f"{key} {old!r}, now {new!r}" for key, old, new in _differences(stored, config)]
    if changes:
      more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
      raise InputError(f"{self.folder} holds a run with another configuration "
                       f"({'; '.join(changes[:3])}{more}). Choose another workdir, or give "
                       "overwrite (--overwrite) to run the affected stages again.")
    raise InputError(f"{self.folder} holds a run on other data, or of another model or reward. "
                     "Choose another workdir, or give overwrite (--overwrite) to run the affected "
                     "stages again.")

  def _store(self, name, part):
    return Store(self.folder / name / part, self.checkpoint_settings, self.folder / name,
                 on_saved=self.record_saved)

  def record_saved(self, until: float | None = None) -> None:
    """Records that all work up to a time (default: now) is saved."""
    if self.wall_time is not None:
      self.wall_time.record_saved(until)

  def is_done(self, name: str, fingerprint: str) -> bool:
    """Whether a stage is done with this fingerprint."""
    done = shared_json(self.folder / name / "done.json")
    return done is not None and done["fingerprint"] == fingerprint

  def reuse_stages(self, folder: Path, fingerprints: dict[str, str]) -> None:
    """Reuses the finished stages of another run that have the same fingerprints.

    Args:
      folder: folder of the other run.
      fingerprints: {stage: fingerprint} of this run.
    """
    hosts.from_first(lambda: self._reuse(pathlib.Path(folder), fingerprints))

  def _reuse(self, folder, fingerprints):
    for name, fingerprint in fingerprints.items():
      destination = self.folder / name
      theirs, ours = ((read_json(each / "done.json") or {}).get("fingerprint")
                      for each in (folder / name, destination))
      if theirs == fingerprint != ours:
        # The rename makes it atomic; what is there is of other settings, or unfinished.
        part = destination.with_name(destination.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder / name, part, copy_function=_link)
        shutil.rmtree(destination, ignore_errors=True)
        part.rename(destination)
        metrics = folder / "metrics" / f"{name}.jsonl"
        if metrics.exists():
          (self.folder / "metrics").mkdir(exist_ok=True)
          shutil.copy(metrics, self.folder / "metrics")

  @contextlib.contextmanager
  def stage(self, name: str, fingerprint: str) -> Iterator[Store | None]:
    """Runs a stage: yields its store, or None if it is already done.

    Files of another configuration are removed first. If the body ends without an error, the stage
    is marked done. The recorded seconds are the sum over the processes that worked on it and
    were not killed.
    """
    interruption.stop_if_requested()
    folder = self.folder / name
    done = shared_json(folder / "done.json")
    if done is not None and done["fingerprint"] == fingerprint:
      self.stages[name] = {"seconds": done["seconds"], "skipped": True}
      yield None
      return
    begin = time.monotonic() - hosts.from_first(lambda: _begin(folder, fingerprint))
    store = self._store(name, "progress")
    try:
      yield store
    except BaseException as error:
      # Closing waits for the other processes, which do not come if only this one has failed.
      if jax.process_count() == 1 or isinstance(error, interruption.Interrupted):
        store.close()
      with contextlib.suppress(OSError):  # of a full disk, say, which is the error then
        _write_started(folder, fingerprint, time.monotonic() - begin)
      raise
    store.close()
    drop_compiled_programs()
    seconds = round(time.monotonic() - begin, 1)
    hosts.barrier(f"{name} is done")  # or one host would remove what another still reads
    write_json(folder / "done.json", {"fingerprint": fingerprint, "seconds": seconds})
    self.record_saved()
    if hosts.is_first():
      shutil.rmtree(folder / "progress", ignore_errors=True)
    self.stages[name] = {"seconds": seconds, "skipped": False}

  def save_result(self, name: str, state: Any) -> None:
    """Saves the result of a stage, a tree of arrays, for later stages."""
    store = self._store(name, "result")
    store.save(0, state)
    store.close()

  def load_result(self, name: str, template: Any) -> Any:
    """Loads the result of a stage.

    Args:
      template: a tree of arrays (or ShapeDtypeStructs with shardings) of the same shape.

    Raises:
      InputError: if it is missing or damaged.
    """
    store = self._store(name, "result")
    restored = store.restore(template)
    store.close()
    if restored is None:
      raise InputError(f"{self.folder / name / 'result'} is empty. Delete {self.folder / name} to "
                       "run this stage again.")
    return restored.state


def _link(source, destination):
  """A hard link, since the files of a finished stage are only read; a copy where there are none."""
  try:
    os.link(source, destination)
  except OSError:
    shutil.copy2(source, destination)


def _begin(folder, fingerprint):
  """Creates a stage's folder and removes the files of other settings; returns the seconds that
  earlier processes have worked on the stage."""
  started = read_json(folder / "started.json")
  done = (folder / "done.json").exists()
  if folder.exists() and (done or started is None or started["fingerprint"] != fingerprint):
    shutil.rmtree(folder)
    started = None
  seconds = (started or {}).get("seconds", 0.0)
  _write_started(folder, fingerprint, seconds)
  return seconds


def _write_started(folder, fingerprint, seconds):
  write_json(folder / "started.json", {"fingerprint": fingerprint, "seconds": seconds})


def _are_different(stored, config):
  """Whether two contents of config.json are of different runs."""
  before = stored.get(_STAGES, {})
  return any(_differences(stored, config)) or any(
    before.get(name, mark) != mark for name, mark in config[_STAGES].items())


def _differences(stored, wanted, prefix=""):
  for key in sorted(set(stored) | set(wanted)):
    if not prefix and key in (*_IRRELEVANT, _STAGES):
      continue
    old, new = stored.get(key), wanted.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      yield from _differences(old, new, f"{prefix}{key}.")
    elif old != new:
      yield f"{prefix}{key}", old, new

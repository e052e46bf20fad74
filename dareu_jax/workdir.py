"""The folder of a run: which stages it holds, of which configuration, and what they left.

A stage is done when its `done.json` is there and names the same fingerprint (of its own settings
and of all that it stands on). `config.json` holds the whole configuration; another one is refused.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import time

from dareu_jax import programs
from dareu_jax.settings import InputError
from dareu_jax.training.checkpoints import Store, read_json, write_json

# Settings that change how a run is computed, not what comes out.
_IRRELEVANT = ("mesh", "checkpoint")


def fingerprint(*parts):
  """A short hash of JSON-able values."""
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Workdir:
  """Stages under one folder."""

  def __init__(self, folder, config, checkpoint_settings):
    """`config` is the whole configuration as nested dicts."""
    self.folder = pathlib.Path(folder)
    self.config = json.loads(json.dumps(config))
    self.checkpoint_settings = checkpoint_settings
    self.stages = {}  # name -> {"seconds", "skipped"} in the order they came

  def claim(self, *, overwrite):
    """Takes the folder for this configuration.

    Args:
      overwrite: accept another configuration; the stages that it changes run again.

    Raises:
      InputError: if it holds a run with another configuration, or cannot be written.
    """
    path = self.folder / "config.json"
    try:
      held = read_json(path)
      if held is not None and not overwrite:
        self._refuse_another(held)
      write_json(path, self.config)
    except OSError as error:
      if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise InputError(f"--workdir {self.folder} cannot be written ({error.strerror}): "
                       "choose another.") from None

  def _refuse_another(self, held):
    changes = [f"{key} {old!r}, now {new!r}" for key, old, new in _differences(held, self.config)]
    if changes:
      more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
      raise InputError(f"{self.folder} holds a run with another configuration "
                       f"({'; '.join(changes[:3])}{more}). Choose another --workdir, or give "
                       "--overwrite to run again the stages that this changes.")

  def _store(self, name, part):
    return Store(self.folder / name / part, self.checkpoint_settings, self.folder / name)

  def is_done(self, name, mark):
    """Whether a stage is done with this fingerprint."""
    done = read_json(self.folder / name / "done.json")
    return done is not None and done["fingerprint"] == mark

  def borrow(self, folder, marks):
    """Takes over the stages that another run has finished with the same fingerprints.

    Args:
      folder: of that run.
      marks: {stage: fingerprint} of this one.
    """
    folder = pathlib.Path(folder)
    for name, mark in marks.items():
      done = read_json(folder / name / "done.json")
      held = self.folder / name
      if done is not None and done["fingerprint"] == mark and not held.exists():
        # Links: what a finished stage has left is read alone. Renamed: it is there whole or not.
        part = held.with_name(held.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder / name, part, copy_function=os.link)
        part.rename(held)
        metrics = folder / "metrics" / f"{name}.jsonl"
        if metrics.exists():
          (self.folder / "metrics").mkdir(exist_ok=True)
          shutil.copy(metrics, self.folder / "metrics")

  @contextlib.contextmanager
  def stage(self, name, mark):
    """Runs a stage: yields its store, or None where it is done already.

    What another configuration left is removed first; when the body ends without error, the stage is
    marked done. Its seconds are those of this process.
    """
    folder = self.folder / name
    done = read_json(folder / "done.json")
    if done is not None and done["fingerprint"] == mark:
      self.stages[name] = {"seconds": done["seconds"], "skipped": True}
      yield None
      return
    started = read_json(folder / "started.json")
    if folder.exists() and (done is not None or started is None or started["fingerprint"] != mark):
      shutil.rmtree(folder)
    write_json(folder / "started.json", {"fingerprint": mark})
    begin = time.monotonic()
    store = self._store(name, "progress")
    try:
      yield store
    finally:
      store.close()
    programs.release()
    seconds = round(time.monotonic() - begin, 1)
    write_json(folder / "done.json", {"fingerprint": mark, "seconds": seconds})
    shutil.rmtree(folder / "progress", ignore_errors=True)
    self.stages[name] = {"seconds": seconds, "skipped": False}

  def save_result(self, name, state):
    """Writes what a stage leaves for later ones: a tree of arrays."""
    store = self._store(name, "result")
    store.save(0, state)
    store.close()

  def load_result(self, name, template):
    """Reads it back.

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
                       "have this stage run again.")
    return restored.state


def _differences(held, wanted, prefix=""):
  for key in sorted(set(held) | set(wanted)):
    if not prefix and key in _IRRELEVANT:
      continue
    old, new = held.get(key), wanted.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      yield from _differences(old, new, f"{prefix}{key}.")
    elif old != new:
      yield f"{prefix}{key}", old, new

"""Checkpoints of a stage: any tree of arrays and some JSON, asynchronous and atomic, by Orbax.

Leaves are stored flat under their path names, so that a checkpoint does not depend on Python
classes. Orbax does not detect flipped bits. Each checkpoint therefore contains a digest of every
array and of its JSON, and a list of its files is stored next to it. The newest checkpoint that
matches them is restored.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dareu_jax.core.errors import InputError, readable
from dareu_jax.core.settings import Count, settings
from dareu_jax.core.trees import path_name
from dareu_jax.parallel import hosts
from dareu_jax.training.digests import hex_digest

Path = str | pathlib.Path
HASHED_BYTES = 2**20  # larger files hold arrays, which have their own digests


@settings
class CheckpointSettings:
  """When a stage saves what it needs to resume."""

  every_steps: Count = 100  # updates (RL: rollouts) between checkpoints; RL also saves each epoch
  keep: Count = 2  # the number of newest checkpoints to keep


class Restored(NamedTuple):
  step: int
  state: Any
  meta: dict


class Damaged(Exception):
  """A checkpoint differs from what was saved."""


class Store:
  """The checkpoints of a stage, in one folder.

  Not Orbax's CheckpointManager, which saves only steps beyond its newest: a run that resumes from
  an older checkpoint, because the newest is damaged, has to save earlier ones.
  """

  def __init__(self, folder: Path, settings: CheckpointSettings, stage_folder: Path | None = None,
               on_saved: Callable[[float], None] | None = None):
    """Errors name `stage_folder`; `on_saved` is called with each complete checkpoint's time."""
    self.folder = pathlib.Path(folder).absolute()
    self.stage_folder = stage_folder or self.folder
    self.settings = settings
    self._on_saved = on_saved
    # (step, best, time) of the checkpoint being written.
    self._pending: tuple[int, bool, float] | None = None
    self._best: int | None = None  # the step of the last best one
    self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    self._arrays, self._json = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()

  def should_save(self, step: int) -> bool:
    """Whether a stage at this step should save."""
    return step % self.settings.every_steps == 0

  def save(self, step: int, state: Any, meta: dict | None = None, *, best: bool = False) -> None:
    """Starts to write a checkpoint; the state may be changed or donated once this returns.

    The write is atomic and replaces an older checkpoint of the same step. The newest checkpoints
    are kept, as many as the settings say, and the last `best` one.

    Raises:
      OSError: if this checkpoint or the previous one could not be written.
    """
    self.wait()
    flat, begin = flatten(state), time.time()
    content = {"meta": meta or {}, "digests": _digests(flat), "time": begin,
               "best": step if best else self._best}
    _unlist(self.folder / f"{step}")
    self._writer.save(
      self.folder / f"{step}", force=True, args=ocp.args.Composite(
        state=ocp.args.StandardSave(flat),
        meta=ocp.args.JsonSave(content | {"digest": _text_digest(content)})))
    self._pending = step, best, begin

  def wait(self) -> None:
    """Waits for the pending checkpoint, lists its files, and removes old checkpoints."""
    # Cleared before the wait, which reports a failed write only once.
    pending, self._pending = self._pending, None
    self._writer.wait_until_finished()
    if pending is None:
      return
    step, best, begin = pending
    if best:
      self._best = step
    if hosts.is_first():
      write_json(_listing(self.folder / f"{step}"), _files(self.folder / f"{step}"))
      # Only older ones: a newer one may remain that `restore` skipped as damaged.
      older = [earlier for earlier in self.steps() if earlier < step and earlier != self._best]
      for earlier in older[self.settings.keep - 1:]:
        _unlist(self.folder / f"{earlier}")
        shutil.rmtree(self.folder / f"{earlier}")
    if self._on_saved:
      self._on_saved(begin)
    hosts.barrier(f"checkpoint {step} of {self.folder}")

  def steps(self) -> list[int]:
    """Steps of the checkpoints in the folder, newest first."""
    if not self.folder.exists():
      return []
    return sorted((int(path.name) for path in self.folder.iterdir() if path.name.isdigit()),
                  reverse=True)

  def restore(self, template: Any) -> Restored | None:
    """Restores the newest intact checkpoint; None if there is no checkpoint.

    Reports on stderr which ones were skipped, and why.

    Args:
      template: a tree of arrays with the wanted shapes, dtypes and shardings; the mesh may differ
        from that of the saved arrays.

    Raises:
      InputError: if there are checkpoints, but none can be used.
    """
    self.wait()
    self._remove_unfinished()
    problems = []
    for step in hosts.from_first(self.steps):
      try:
        return self._restore(step, template)
      except (jax.errors.JaxRuntimeError, PermissionError):
        raise  # out of memory, a lost process, no permission
      except Exception as error:  # noqa: BLE001 - Orbax raises many types for a damaged file
        if hosts.lost_another(error):
          raise
        name = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
        reason = f"{name}{error}".strip().splitlines()[0][:200]
        problems.append(f"{self.folder / str(step)}: {reason}")
        print(f"checkpoint cannot be used, trying an older one: {problems[-1]}", file=sys.stderr)
    if problems:
      raise InputError(
        f"no checkpoint in {self.folder} can be used:\n  " + "\n  ".join(problems) +
        f"\nDelete {self.stage_folder} to run this stage again; the other stages are kept.")
    _digests(flatten(template))  # compile now rather than at the first save
    return None

  def _remove_unfinished(self):
    """Removes the files of an unfinished checkpoint after a kill."""
    if hosts.is_first() and self.folder.exists():
      for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)

  def _restore(self, step, template):
    folder = self.folder / f"{step}"
    problem = hosts.from_first(lambda: _problem_of_files(folder))
    if problem:
      raise Damaged(problem)
    names, leaves, treedef = _flat(template)
    abstract = {name: ocp.utils.to_shape_dtype_struct(leaf)
                for name, leaf in zip(names, leaves, strict=True)}
    arrays, content = self._read(folder, abstract)
    if content.pop("digest", None) != _text_digest(content):
      raise Damaged("its JSON differs from what was saved")
    for name, digest in _digests(arrays).items():
      if digest != content["digests"].get(name):
        raise Damaged(f"array {name} differs from what was saved (its digest is {digest}, not "
                      f"{content['digests'].get(name)})")
    self._best = content["best"]
    if self._on_saved:
      self._on_saved(content["time"])
    state = treedef.unflatten([_copy(arrays.pop(name)) for name in names])
    return Restored(step, state, content["meta"])

  def _read(self, folder, abstract):
    """(arrays, JSON); fails on all processes if on one, since each reads only its own share."""
    problem = None
    try:
      arrays = self._arrays.restore(folder / "state", args=ocp.args.StandardRestore(abstract))
      content = dict(self._json.restore(folder / "meta", args=ocp.args.JsonRestore()))
    except Exception as error:  # noqa: BLE001 - handled by `restore`
      problem = error
    if not hosts.everywhere(problem is None):
      raise problem or Damaged("another process cannot read its share")
    return arrays, content

  def close(self) -> None:
    """Waits for the pending checkpoint and closes the writer."""
    try:
      self.wait()
    finally:
      self._writer.close()


def _digests(flat):
  return {name: hex_digest(leaf) for name, leaf in flat.items()}


def _text_digest(content):
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _listing(folder):
  return folder.with_name(f"{folder.name}.files.json")


def _unlist(folder):
  if hosts.is_first():
    _listing(folder).unlink(missing_ok=True)


def _files(folder):
  """{file: [size in bytes, SHA-256 if it is small]}."""
  files = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      size = path.stat().st_size
      files[str(path.relative_to(folder))] = [
        size, hashlib.sha256(path.read_bytes()).hexdigest() if size <= HASHED_BYTES else ""]
  return files


def _problem_of_files(folder):
  """How the files differ from the list, or ''; after a kill there may be no list yet."""
  if not _listing(folder).exists():
    return ""
  try:
    listed, present = read_json(_listing(folder)), _files(folder)
  except InputError as error:
    return str(error)
  for name in sorted(set(listed) | set(present)):
    if name not in present:
      return f"its file {name} is missing"
    if name not in listed:
      return f"its file {name} was not saved with it"
    if present[name] != listed[name]:
      return f"its file {name} differs from what was saved"
  return ""


@jax.jit
def _copy(x):
  """Copies by XLA: restored arrays cannot always be donated."""
  return x + 0 if x.dtype != bool else x | False


def flatten(tree: Any) -> dict[str, Any]:
  """A tree of arrays as {path name: array}."""
  names, leaves, _ = _flat(tree)
  return dict(zip(names, leaves, strict=True))


def _flat(tree):
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = [path_name(path).replace("/", ".") for path, _ in leaves]
  if len(set(names)) != len(names):
    raise ValueError("two leaves of the state share a path name")
  return names, [leaf for _, leaf in leaves], treedef


def write_json(path: Path, value: Any) -> None:
  """Writes JSON atomically; of several processes only the first one writes."""
  if not hosts.is_first():
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(path.suffix + ".tmp")
  with open(temporary, "w", encoding="utf-8") as file:
    json.dump(value, file, indent=1, ensure_ascii=False)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_json(path: Path) -> Any:
  """The value of a JSON file, or None if the file is missing.

  Raises:
    InputError: if it is damaged, or cannot be read.
  """
  path = pathlib.Path(path)
  try:
    with readable(path):
      return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(
      f"{path} is damaged ({error}). Delete it to have it written again.") from None


def shared_json(path: Path) -> Any:
  """Reads JSON on the first process and returns it on all; all processes must call this."""
  return hosts.from_first(lambda: read_json(path))

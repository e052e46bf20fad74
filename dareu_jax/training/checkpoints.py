"""Checkpoints of a stage: any tree of arrays plus a little JSON, by Orbax, atomic.

Leaves are stored flat under their path names: a checkpoint does not depend on Python classes.
"""

import json
import os
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dareu_jax.parallel.mesh import path_name
from dareu_jax.settings import CheckpointSettings, InputError


class Restored(NamedTuple):
  step: int
  state: Any
  meta: dict


class Store:
  """The checkpoints in one folder, of the stage that `stage_folder` belongs to."""

  def __init__(self, folder, settings: CheckpointSettings, stage_folder=None):
    self.folder = pathlib.Path(folder).absolute()
    self.stage_folder = stage_folder or self.folder
    self.every_steps = settings.every_steps
    options = ocp.CheckpointManagerOptions(
      max_to_keep=settings.keep, enable_async_checkpointing=False, create=True)
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def due(self, step):
    """Whether a stage at this step should save."""
    return step % self.every_steps == 0

  def save(self, step, state, meta=None):
    """Writes a checkpoint; it is there whole or not at all. An older one of that step goes."""
    if step in self._manager.all_steps():
      self._manager.delete(step)
    # Forced: Orbax would silently skip a step below the newest, which may be a damaged one.
    self._manager.save(step, force=True, args=ocp.args.Composite(
      state=ocp.args.StandardSave(flatten(state)), meta=ocp.args.JsonSave(meta or {})))

  def restore(self, template):
    """The newest checkpoint that can be read, or None where there is none.

    Args:
      template: a tree of arrays with the shapes, dtypes and shardings wanted.

    Raises:
      InputError: if there are checkpoints, but none can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    problems = []
    for step in steps:
      try:
        return self._restore(step, template)
      except Exception as error:  # noqa: BLE001 - Orbax raises many kinds for a damaged file
        if "RESOURCE_EXHAUSTED" in str(error):
          raise
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        problems.append(f"{self.folder / str(step)}: {reason}")
        print(f"checkpoint cannot be read, trying the one before: {problems[-1]}", file=sys.stderr)
    if problems:
      raise InputError(
        f"no checkpoint in {self.folder} can be read:\n  " + "\n  ".join(problems) +
        f"\nDelete {self.stage_folder} to have this stage run again; the other stages are kept.")
    return None

  def _restore(self, step, template):
    names, leaves, treedef = _flat(template)
    abstract = {name: ocp.utils.to_shape_dtype_struct(leaf)
                for name, leaf in zip(names, leaves, strict=True)}
    restored = self._manager.restore(step, args=ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()))
    # A copy by XLA: arrays that the restore made cannot always be donated.
    state = jax.jit(lambda x: jax.tree.map(lambda y: y + 0 if y.dtype != bool else y, x))(
      treedef.unflatten([restored.state[name] for name in names]))
    return Restored(step, state, restored.meta)

  def close(self):
    self._manager.close()


def flatten(tree):
  """A tree of arrays as {path name: array}."""
  names, leaves, _ = _flat(tree)
  return dict(zip(names, leaves, strict=True))


def _flat(tree):
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = [path_name(path).replace("/", ".") for path, _ in leaves]
  if len(set(names)) != len(names):
    raise ValueError("two leaves of the state share a path name")
  return names, [leaf for _, leaf in leaves], treedef


def write_json(path, value):
  """Writes JSON whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(path.suffix + ".tmp")
  with open(temporary, "w", encoding="utf-8") as file:
    json.dump(value, file, indent=1, ensure_ascii=False)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_json(path):
  """The value, or None where the file is missing.

  Raises:
    InputError: if it is damaged.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(f"{path} is damaged ({error}). Delete it to have it made again.") from None

"""Metric writers (JSONL and TensorBoard) and progress bars; only the first process writes."""

import hashlib
import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm

from dareu_jax.core.strict_json import strict
from dareu_jax.parallel import hosts


class MetricWriter:
  """One stage's metrics: `<folder>/<name>.jsonl` and TensorBoard events.

  A number that is not finite is null there, as JSON has no other. `<name>.batches` has a line for
  each step: its number and a hash of its batch.

  A `mirror`, if given, is called with (name, step, metrics) for each record.
  """

  def __init__(self, folder: str | pathlib.Path, name: str,
               mirror: Callable[[str, int, dict], None] | None = None):
    folder = pathlib.Path(folder)
    self.path, self.batches_path = folder / f"{name}.jsonl", folder / f"{name}.batches"
    self._writes = hosts.is_first()
    if self._writes:
      self.path.parent.mkdir(parents=True, exist_ok=True)
    self.name, self._mirror = name, mirror
    self._events = folder / "tensorboard" / name
    self._tensorboard: Any = None  # a SummaryWriter, from `rewind` on

  def rewind(self, step: int) -> None:
    """Drops what a killed run wrote after the step that the stage resumes from."""
    if not self._writes:
      return
    _replace(self.path, (_line(record) for record in read_metrics(self.path)
                         if record["step"] <= step))
    _replace(self.batches_path, (f"{at} {digest}" for at, digest in read_batches(self.batches_path)
                                 if at <= step))
    self._tensorboard = tensorboardX.SummaryWriter(str(self._events), purge_step=step + 1)

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """Adds a record; numbers go to TensorBoard too."""
    if not self._writes:
      return
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(_line({"step": step, **metrics}) + "\n")
    for name, value in metrics.items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        self._tensorboard.add_scalar(name, value, step)
    if self._mirror:
      self._mirror(self.name, step, metrics)

  def batch(self, step: int, batch: Any) -> None:
    """Records the hash of a step's batch, any tree of NumPy arrays."""
    if self._writes:
      with open(self.batches_path, "a", encoding="utf-8") as file:
        file.write(f"{step} {batch_hash(batch)}\n")

  def close(self) -> None:
    if self._tensorboard is not None:
      self._tensorboard.close()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """The records of a JSONL file of metrics, without a line that a kill cut short; null is NaN."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      break
    records.append({name: math.nan if value is None else value for name, value in record.items()})
  return records


def _line(record):
  return json.dumps(strict(record), allow_nan=False)


def batch_hash(batch: Any) -> str:
  """A hash of a tree of arrays (values, shapes and dtypes): 16 hexadecimal digits."""
  hasher = hashlib.sha256()
  for leaf in map(np.asarray, jax.tree.leaves(batch)):
    hasher.update(f"{leaf.dtype}{leaf.shape}".encode())
    hasher.update(np.ascontiguousarray(leaf).tobytes())
  return hasher.hexdigest()[:16]


def read_batches(path: str | pathlib.Path) -> list[tuple[int, str]]:
  """[(step, hash)] of a file of batch hashes, without a line that a kill cut short."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


def _replace(path, lines):
  temporary = path.with_suffix(".tmp")
  temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  temporary.replace(path)


def progress(name: str, unit: str = "step") -> Callable[..., Any]:
  """Returns a function that makes a stage's bar: progress(name)(total, initial) is a tqdm bar.

  In a notebook it is a widget, if ipywidgets is installed.
  """

  def bar(total: int, initial: int = 0) -> Any:
    # In a log file a line every half minute is enough.
    return _bar_class()(
      total=total, initial=initial, desc=f"{name:<12}", unit=unit, dynamic_ncols=True,
      mininterval=0.5 if sys.stderr.isatty() else 30, file=sys.stderr,
      disable=not hosts.is_first())

  return bar


def _bar_class():
  if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets"):
    from tqdm.notebook import tqdm as notebook_bar
    return notebook_bar
  return tqdm.tqdm

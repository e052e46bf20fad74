"""Where metrics go (JSONL and TensorBoard), and progress bars."""

import json
import pathlib
import sys

import tensorboardX
import tqdm


class MetricWriter:
  """One stage's metrics: `<folder>/<name>.jsonl` and TensorBoard events beside it.

  A `mirror`, where there is one, is called with (name, step, metrics) at each record.
  """

  def __init__(self, folder, name, mirror=None):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / f"{name}.jsonl"
    self._name, self._mirror = name, mirror
    self._events = folder / "tensorboard" / name
    self._tensorboard = None

  def rewind(self, step):
    """Drops what a killed run wrote after the step that the stage resumes from."""
    kept = [record for record in read_metrics(self.path) if record["step"] <= step]
    temporary = self.path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(self.path)
    self._tensorboard = tensorboardX.SummaryWriter(str(self._events), purge_step=step + 1)

  def write(self, step, metrics):
    """Adds a record; numbers go to TensorBoard too."""
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(json.dumps({"step": step, **metrics}) + "\n")
    for name, value in metrics.items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        self._tensorboard.add_scalar(name, value, step)
    if self._mirror:
      self._mirror(self._name, step, metrics)

  def close(self):
    if self._tensorboard is not None:
      self._tensorboard.close()


def read_metrics(path):
  """The records of a JSONL file of metrics; a line that a kill cut short is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def progress(name, unit="step"):
  """A bar maker for one stage: progress(name)(total, initial) is a tqdm bar with the time left."""

  def bar(total, initial=0):
    # In a log file a line every half minute is enough.
    return tqdm.tqdm(
      total=total, initial=initial, desc=f"{name:<12}", unit=unit, dynamic_ncols=True,
      mininterval=0.5 if sys.stderr.isatty() else 30, file=sys.stderr)

  return bar

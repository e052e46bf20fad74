"""A checkpoint by folder or hub name: where its weights and tokenizer are, and its adapter."""

import functools
import hashlib
import pathlib
from typing import NamedTuple

from dareu_jax.core.errors import InputError, first_line, readable
from dareu_jax.core.settings import located
from dareu_jax.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter

_DESCRIPTIONS = ("*.json", "*.jinja", "tokenizer*", "*.txt")  # all of a checkpoint but its weights


class Checkpoint(NamedTuple):
  """What a path names: a model, or a PEFT adapter and the model that it belongs on."""

  name: str  # of the model, or of the one that the adapter belongs on
  folder: pathlib.Path  # of the config and the weights
  tokenizer: pathlib.Path
  adapter: Adapter | None = None


def find(path: str | pathlib.Path, *, weights: bool = True) -> Checkpoint:
  """The checkpoint of a folder or of a model on the hub, which is downloaded.

  Args:
    path: folder or hub name.
    weights: whether to download the weights, or only the configuration and the tokenizer.

  Raises:
    InputError: if there is none, or its adapter cannot be used.
  """
  with readable(path):
    return _find(path, weights)


def _find(path, weights):
  folder = local_folder(path, weights=weights)
  if not (folder / ADAPTER_CONFIG).exists():
    return Checkpoint(located(str(path)), folder, folder)
  adapter = Adapter(folder)
  try:
    base = local_folder(adapter.base, weights=weights)
  except InputError as error:
    raise InputError(f"{folder / ADAPTER_CONFIG} names its base, base_model_name_or_path: "
                     f"{error}") from None
  if not (base / "config.json").exists():
    raise InputError(f"{folder / ADAPTER_CONFIG} names the base {adapter.base!r}, which holds no "
                     "config.json: set base_model_name_or_path there to the base's folder.")
  has_tokenizer = (folder / "tokenizer_config.json").exists()
  return Checkpoint(located(adapter.base), base, folder if has_tokenizer else base, adapter)


def digest(path: str | pathlib.Path, *, weights: bool = True) -> str:
  """A hash of a checkpoint: configuration, tokenizer and, if asked for, weights, and those of its
  adapter.

  A download of the hub is known by its commit, so that its weights need not be there yet.
  """
  found = find(path, weights=False)
  folders = [found.folder, found.tokenizer, *([found.adapter.folder] if found.adapter else [])]
  patterns = (*_DESCRIPTIONS, *("*.safetensors",) * weights)
  total = hashlib.sha256()
  with readable(path):
    for folder in dict.fromkeys(folders):
      if _is_download(folder):
        total.update(folder.name.encode())
        continue
      for file in sorted({file for pattern in patterns for file in folder.glob(pattern)
                          if not file.is_dir()}):
        status = file.stat()
        total.update(_file_digest(file, status.st_size, status.st_mtime_ns))
  return total.hexdigest()[:16]


def _is_download(folder):
  """Whether a folder is in the hub's cache: .../models--OWNER--NAME/snapshots/COMMIT."""
  return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


@functools.cache
def _file_digest(file, size, modified):
  """The hash of a file and its name, read once for each of its states."""
  with file.open("rb") as stream:
    return file.name.encode() + hashlib.file_digest(stream, "sha256").digest()


def local_folder(path: str | pathlib.Path, *, weights: bool = True) -> pathlib.Path:
  """A folder itself, or that of a downloaded hub model.

  Raises:
    InputError: if `path` is neither.
  """
  return pathlib.Path(path) if pathlib.Path(path).is_dir() else _download(str(path), weights)


@functools.cache
def _download(path, weights):
  import huggingface_hub

  # An adapter is small, and read at once.
  patterns = [*_DESCRIPTIONS, "*.safetensors" if weights else ADAPTER_WEIGHTS]
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
  except Exception as error:  # noqa: BLE001 - offline, unknown or gated: no common class
    reason = first_line(error)
    raise InputError(f"{path!r} is not a folder and could not be downloaded from the hub "
                     f"({reason}). Name a checkpoint folder, or check the network, the name and, "
                     "for a gated model, your permission (`hf auth login`).") from None

"""The tensors of a Hugging Face checkpoint: safetensors, read in parts, with none left over.

A decoder's parameters and a checkpoint's tensors are matched by name; linear weights are stored
[out, in] there and [in, out] here, and layers may be stacked here.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree, Shaped
from safetensors import safe_open

from dareu_jax.core.errors import InputError, readable
from dareu_jax.core.trees import map_named, named_leaves
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import abstract_decoder
from dareu_jax.models.families.base import FAMILIES
from dareu_jax.models.quantization import BLOCK, num_blocks, quantize
from dareu_jax.parallel.mesh import Mesh, parameter_spec

_HEAD = "lm_head"
# Buffers in old checkpoints, which hold no weights.
_BUFFERS = "rotary_emb."


def checkpoint_names(path: str, config: ModelConfig) -> tuple[list[str], bool]:
  """The checkpoint's names of one of our parameters; see `Family.checkpoint_names`."""
  return FAMILIES[config.architecture].checkpoint_names(path, config.num_layers)


def is_transposed(path: str) -> bool:
  """Whether a parameter is stored transposed in a checkpoint."""
  return path.endswith(("kernel", _HEAD))


class Weights:
  """The tensors of a checkpoint folder for the decoder of a config."""

  def __init__(self, folder: str | pathlib.Path, config: ModelConfig):
    self.folder = pathlib.Path(folder)
    self.config = config
    with readable(self.folder):
      self._files = _index(self.folder)
    self._used: set[str] = set()
    self._open: dict[str, Any] = {}  # file name -> its reader
    self._last_quantized: tuple[str, Any] = ("", None)  # path of a kernel, and what reads it

  def _slice(self, name):
    """A tensor that can be indexed without reading all of it."""
    if name not in self._files:
      raise InputError(f"{self.folder}: tensor {name} is missing from the checkpoint. "
                       "Download it again.")
    self._used.add(name)
    file = self._files[name]
    if file not in self._open:
      self._open[file] = safe_open(self.folder / file, framework="numpy")
    return self._open[file].get_slice(name)

  def check_all_used(self) -> None:
    """Raises InputError if the checkpoint has tensors that the model does not use."""
    unused = [name for name in self._files if name not in self._used and _BUFFERS not in name]
    (head,), _ = checkpoint_names(_HEAD, self.config)
    if head in unused:  # unused by a classifier, or a copy of the tied embedding
      unused.remove(head)
      if self.config.tie_embeddings:
        self._check_tied(head)
    if unused:
      raise InputError(f"{self.folder}: tensor {unused[0]} (of {len(unused)}) is not used by the "
                       "model; the checkpoint is of another architecture.")

  def _check_tied(self, head_name):
    (embedding_name,), _ = checkpoint_names("embedding", self.config)
    head, embedding = self._slice(head_name), self._slice(embedding_name)
    shape = embedding.get_shape()
    parts = (slice(i, min(i + 4096, shape[0])) for i in range(0, shape[0], 4096))
    same = head.get_shape() == shape and all(
      np.array_equal(head[rows], embedding[rows]) for rows in parts)
    if not same:
      raise InputError(f"{self.folder}: config.json ties the embeddings, but tensor {head_name} "
                       "differs from them: set tie_word_embeddings to false there.")

  def slices(self, path: str, shape: tuple[int, ...]) -> list[Any]:
    """The tensors of one of our parameters, read lazily.

    Args:
      path: path of the parameter, from `core.trees.path_name`.
      shape: shape of the parameter, in our layout.

    Raises:
      InputError: if one is missing or has another shape.
    """
    names, stacked = checkpoint_names(path, self.config)
    if path.rpartition("/")[2] == "embedding" and self.config.tie_embeddings:
      names = [self._shared_name(*names)]
    order = -1 if is_transposed(path) else 1
    expected = list(shape[1:] if stacked else shape)[::order]
    slices = [self._slice(name) for name in names]
    for name, tensor in zip(names, slices, strict=True):
      if tensor.get_shape() != expected:
        raise InputError(f"{self.folder}: tensor {name} has shape {tuple(tensor.get_shape())}, but "
                         f"config.json says {tuple(expected)}.")
    return slices

  def _shared_name(self, embedding):
    """The name of a tensor that embedding and head share: either's."""
    (head,), _ = checkpoint_names(_HEAD, self.config)
    return head if embedding not in self._files and head in self._files else embedding

  def array(
    self, path: str, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding,
  ) -> Shaped[Array, "..."]:
    """One of our parameters on the devices, each of which reads only its own part of the file."""
    if path.endswith(("kernel/values", "kernel/scales")):
      return self._quantized(path, shape, sharding)
    slices = self.slices(path, shape)
    _, stacked = checkpoint_names(path, self.config)
    transposed = is_transposed(path)

    @functools.cache
    def part(*bounds):
      index = tuple(slice(*bound) for bound in bounds)
      layers, index = (slices[index[0]], index[1:]) if stacked else (slices, index)
      read = [np.asarray(tensor[index[::-1]]).T if transposed else np.asarray(tensor[index])
              for tensor in layers]
      return (np.stack(read) if stacked else read[0]).astype(dtype)

    return jax.make_array_from_callback(
      tuple(shape), sharding, lambda index: part(*((i.start, i.stop) for i in index or ())))

  def _quantized(self, path, shape, sharding):
    """The values or scales of a kernel, quantized as it is read."""
    kernel, _, part = path.rpartition("/")
    which = ("values", "scales").index(part)
    if self._last_quantized[0] != kernel:  # its values and scales follow each other
      self._last_quantized = kernel, functools.cache(self._quantizer(kernel))
    quantized = self._last_quantized[1]

    def read(index):
      bounds = [(i.start, i.stop) for i in index]
      if part == "values":
        del bounds[-2]  # within a block, which is never split
      return quantized(*bounds)[which]

    return jax.make_array_from_callback(tuple(shape), sharding, read)

  def _quantizer(self, path):
    """Function of bounds of (layers,) blocks and outputs: the (values, scales) of that part."""
    plain = self._plain_shapes[path[path.index("layers/"):]]
    slices = self.slices(path, plain)
    _, stacked = checkpoint_names(path, self.config)

    def part(*bounds):
      *layers, blocks, outputs = (slice(*bound) for bound in bounds)
      first, last, _ = blocks.indices(num_blocks(plain[-2]))
      inputs = slice(first * BLOCK, min(last * BLOCK, plain[-2]))
      read = [quantize(np.asarray(tensor[outputs, inputs]).T, self.config.quantize)
              for tensor in (slices[layers[0]] if stacked else slices)]
      return tuple(map(np.stack, zip(*read, strict=True))) if stacked else read[0]

    return part

  @functools.cached_property
  def _plain_shapes(self):
    """{path: shape} of the parameters, none of them quantized."""
    decoder = abstract_decoder(dataclasses.replace(self.config, quantize="none"))
    return {name: leaf.shape for name, leaf in named_leaves(nnx.state(decoder)).items()}


def fill(shapes: PyTree, initialized: PyTree, weights: Weights, mesh: Mesh) -> PyTree:
  """A state whose leaves come from `initialized` if they are there, else from the checkpoint.

  Args:
    shapes: nnx.State of ShapeDtypeStructs.
    initialized: nnx.State of some of its leaves.
    weights: weights of the checkpoint.
    mesh: mesh to place them on.
  """
  ready = named_leaves(initialized)

  def array(name, leaf):
    if name in ready:
      return ready[name]
    sharding = NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))
    return weights.array(name, leaf.shape, leaf.dtype, sharding)

  return map_named(array, shapes)


def _index(folder):
  """Tensor name -> file name.

  Raises:
    InputError: without safetensors, or with a file that is damaged or missing.
  """
  # A whole file comes first, as in transformers: an index beside it is of another save.
  if (folder / "model.safetensors").exists():
    return dict.fromkeys(_tensor_names(folder / "model.safetensors"), "model.safetensors")
  index = folder / "model.safetensors.index.json"
  if index.exists():
    return _read_index(index)
  pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
  hint = (f" ({pickled[0]} is pickled code, which is never loaded: convert it)." if pickled else
          " and no index of several files. Download it again.")
  raise InputError(f"{folder} holds no model.safetensors{hint}")


def _read_index(index):
  try:
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
    raise InputError(f"{index} is damaged: it must hold a weight_map. Download it again.") from None
  contents = {name: set(_tensor_names(index.parent / name)) for name in sorted(set(files.values()))}
  for tensor, name in files.items():
    if tensor not in contents[name]:
      raise InputError(f"{index} places tensor {tensor} in {name}, which does not hold it.")
  for name, tensors in contents.items():
    unnamed = sorted(tensor for tensor in tensors
                     if files.get(tensor) != name and _BUFFERS not in tensor)
    if unnamed:
      raise InputError(f"{index} does not name tensor {unnamed[0]}, which {name} holds.")
  return files


def _tensor_names(path):
  if not path.exists():
    raise InputError(f"{path} is missing; the checkpoint's index names it. Download it again.")
  return tensor_names(path)


def tensor_names(path: pathlib.Path) -> list[str]:
  """Names of the tensors of a safetensors file. Raises InputError if it cannot be read."""
  with readable(path):
    path.open("rb").close()  # the reader calls a file that it may not open damaged
  try:
    with safe_open(path, framework="numpy") as file:
      return list(file.keys())
  except Exception as error:  # noqa: BLE001 - the Rust reader's own error type
    raise InputError(f"{path} is damaged ({error}). Download it again.") from None

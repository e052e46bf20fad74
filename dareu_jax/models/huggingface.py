"""Hugging Face checkpoints in and out: strict reading of safetensors, and writing them.

A decoder's parameters and a checkpoint's tensors are matched by name; linear weights are stored
[out, in] there and [in, out] here, and layers may be stacked here.
"""

import contextlib
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from safetensors import safe_open
from safetensors.numpy import save_file

from dareu_jax.core.errors import InputError
from dareu_jax.data import tokenizers
from dareu_jax.models.config import ModelConfig, from_huggingface, to_huggingface
from dareu_jax.models.decoder import abstract_decoder
from dareu_jax.parallel.mesh import MeshSettings, is_stacked, make_mesh, parameter_spec, path_name

# Our path -> the checkpoint's name.
_NAMES = {
  "embedding": "model.embed_tokens.weight",
  "lm_head": "lm_head.weight",
  "final_norm/scale": "model.norm.weight",
}
_LAYER_NAMES = {
  "attention_norm/scale": "input_layernorm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
  **{f"attention/{x}_norm/scale": f"self_attn.{x}_norm.weight" for x in "qk"},
  **{f"{ours}/{x}_proj/{leaf}": f"{theirs}.{x}_proj.{name}"
     for ours, theirs, linears in (("attention", "self_attn", "qkvo"),
                                   ("mlp", "mlp", ("gate", "up", "down")))
     for x in linears for leaf, name in (("kernel", "weight"), ("bias", "bias"))},
}
# Buffers that old checkpoints carry; they hold no weights.
_IGNORED = ("rotary_emb.inv_freq",)


def load(path_or_id, *, dtype, mesh=None, template="auto", scan_layers=False, remat=False,
         attention="auto"):
  """A checkpoint's decoder and tokenizer.

  GPUs and TPUs round the products of float32 numbers unless told not to, as within
  `jax.default_matmul_precision("highest")`.

  Args:
    path_or_id: folder, or name of a model of the hub.
    dtype: of weights and activations, 'float32' or 'bfloat16'.
    mesh: where the weights go, of `parallel.mesh.make_mesh`; one device if not given.
    template: of prompts, a key of `data.tokenizers.TEMPLATES`; 'auto' follows the tokenizer.
    scan_layers, remat, attention: see `settings.ModelSettings`.

  Returns: (models.decoder.Decoder, data.tokenizers.Tokenizer).

  Raises:
    InputError: for a checkpoint that is missing, damaged, of an unsupported architecture, or whose
      tensors are not exactly those of its config.json.
  """
  folder = checkpoint_folder(path_or_id)
  tokenizer = tokenizers.load(str(folder), template)
  config = from_huggingface(
    folder, dtype=dtype, scan_layers=scan_layers, remat=remat, attention=attention)
  mesh = mesh or make_mesh(MeshSettings(1, 1, 1))
  graphdef, shapes = nnx.split(abstract_decoder(config))
  weights = Weights(folder, config)
  state = fill(shapes, nnx.State({}), weights, mesh)
  weights.check_all_used()
  return nnx.merge(graphdef, state), tokenizer


@functools.cache
def checkpoint_folder(path, *, weights=True):
  """The local folder of a checkpoint: `path` itself, or the hub's model of that name, downloaded.

  Args:
    weights: whether they are needed too, or only the configuration and the tokenizer.

  Raises:
    InputError: if it is neither.
  """
  if pathlib.Path(path).is_dir():
    return pathlib.Path(path)
  import huggingface_hub

  patterns = ["*.json", "*.jinja", "tokenizer*", "*.txt"] + (["*.safetensors"] if weights else [])
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
  except Exception as error:  # noqa: BLE001 - offline, unknown and gated all raise kinds of their own
    reason = str(error).strip().splitlines()[0]
    raise InputError(f"{path!r} is no folder, and the hub did not give it ({reason}). Name the "
                     "folder of a checkpoint, or check the network.") from None


class Weights:
  """The tensors of a checkpoint folder, read part by part, each accounted for."""

  def __init__(self, folder, config: ModelConfig):
    self.folder = pathlib.Path(folder)
    self.config = config
    self._files = _index(self.folder)
    self._used = set()
    self._open = {}  # file name -> its reader

  def _slice(self, name):
    """A tensor that can be indexed without reading all of it."""
    if name not in self._files:
      raise InputError(f"{self.folder}: tensor {name} is missing from the checkpoint.")
    self._used.add(name)
    file = self._files[name]
    if file not in self._open:
      self._open[file] = safe_open(self.folder / file, framework="numpy")
    return self._open[file].get_slice(name)

  def check_all_used(self):
    """Raises InputError if the checkpoint holds tensors that the model has no place for."""
    unused = [name for name in self._files if name not in self._used
              and not name.endswith(_IGNORED)]
    if "lm_head.weight" in unused:  # that of a classifier, or a copy of the tied one
      unused.remove("lm_head.weight")
      if self.config.tie_embeddings:
        self._check_tied()
    if unused:
      raise InputError(f"{self.folder}: tensor {unused[0]} (of {len(unused)}) has no place in the "
                       "model; the checkpoint is of another architecture.")

  def _check_tied(self):
    head, embedding = self._slice("lm_head.weight"), self._slice(_NAMES["embedding"])
    shape = embedding.get_shape()
    parts = (slice(i, min(i + 4096, shape[0])) for i in range(0, shape[0], 4096))
    same = head.get_shape() == shape and all(
      np.array_equal(head[rows], embedding[rows]) for rows in parts)
    if not same:
      raise InputError(f"{self.folder}: config.json ties the embeddings, but tensor lm_head.weight "
                       "is another one: set tie_word_embeddings to false there.")

  def slices(self, path, shape):
    """The tensors of one of our parameters, not read yet.

    Args:
      path: of the parameter, as of `mesh.path_name`.
      shape: of the parameter, in our layout.

    Raises:
      InputError: if one is missing or has another shape.
    """
    names, stacked = checkpoint_names(path, self.config.num_layers)
    transposed = _is_transposed(path)
    slices = [self._slice(name) for name in names]
    for name, tensor in zip(names, slices, strict=True):
      expected = list(shape[1:] if stacked else shape)
      found = tensor.get_shape()
      if (found[::-1] if transposed else found) != expected:
        raise InputError(f"{self.folder}: tensor {name} has shape {tuple(found)}, but config.json "
                         f"says {tuple(expected[::-1] if transposed else expected)}.")
    return slices

  def array(self, path, shape, dtype, sharding):
    """One of our parameters on the devices, each of which reads its own part of the file alone."""
    slices = self.slices(path, shape)
    _, stacked = checkpoint_names(path, self.config.num_layers)
    transposed = _is_transposed(path)

    @functools.cache
    def part(*bounds):
      index = tuple(slice(*bound) for bound in bounds)
      layers, index = (slices[index[0]], index[1:]) if stacked else (slices, index)
      read = [np.asarray(tensor[index[::-1]]).T if transposed else np.asarray(tensor[index])
              for tensor in layers]
      return (np.stack(read) if stacked else read[0]).astype(dtype)

    return jax.make_array_from_callback(
      tuple(shape), sharding, lambda index: part(*((i.start, i.stop) for i in index)))


def _is_transposed(path):
  return path.endswith(("kernel", "lm_head"))


def checkpoint_names(path, num_layers):
  """The checkpoint's names of one of our parameters.

  Args:
    path: as of `mesh.path_name`; within a classifier too.

  Returns: (names, stacked): one name, or one a layer where our array holds all layers.
  """
  path = path.removeprefix("decoder/")
  if not path.startswith("layers/"):
    return [_NAMES[path]], False
  head, _, rest = path.removeprefix("layers/").partition("/")
  if not is_stacked(path):
    return [f"model.layers.{head}.{_LAYER_NAMES[rest]}"], False
  name = _LAYER_NAMES[f"{head}/{rest}"]
  return [f"model.layers.{i}.{name}" for i in range(num_layers)], True


def fill(shapes, made, weights, mesh):
  """A state with the shapes given: leaves that `made` holds from there, others from the checkpoint.

  Args:
    shapes: nnx.State of ShapeDtypeStructs.
    made: nnx.State.
    weights: Weights.
    mesh: where they go.
  """
  ready = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(made)}

  def one(path, leaf):
    name = path_name(path)
    if name in ready:
      return ready[name]
    sharding = NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))
    return weights.array(name, leaf.shape, leaf.dtype, sharding)

  return jax.tree_util.tree_map_with_path(one, shapes)


def save(model, path, *, tokenizer=None, card="", max_shard_bytes=5 * 2**30):
  """Writes a decoder as a Hugging Face checkpoint, adapters merged; all of it or nothing.

  Args:
    model: models.decoder.Decoder.
    path: folder; it must not exist yet.
    tokenizer: data.tokenizers.Tokenizer to put beside, or None.
    card: text of the README.md, if any.
    max_shard_bytes: of a file; one tensor may be more.

  Raises:
    InputError: if the folder exists.
  """
  special = {}
  if tokenizer is not None:
    backend = tokenizer.backend
    # Answers end with the template's token, which need not be the tokenizer's own.
    ends = list(dict.fromkeys([tokenizer.eos_id, backend.eos_token_id]))
    special = {"bos_token_id": backend.bos_token_id, "pad_token_id": tokenizer.pad_id,
               "eos_token_id": ends[0] if len(ends) == 1 else ends}
  with new_folder(path, tokenizer, card) as folder:
    write_json(folder / "config.json", to_huggingface(model.config) | special)
    write_json(folder / "generation_config.json", special)
    _write_tensors(folder, merged_tensors(model), max_shard_bytes)


def merged_tensors(model):
  """Yields (name, bytes, function that gives the tensor) in the checkpoint's layout."""
  flat = {path_name(path): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))}
  for path, leaf in flat.items():
    if path.endswith(("lora_a", "lora_b")):
      continue
    names, stacked = checkpoint_names(path, model.config.num_layers)
    for layer, name in enumerate(names):
      tensor = functools.partial(
        _merged_tensor, flat, path, layer if stacked else None, model.config.lora)
      yield name, leaf.nbytes // len(names), tensor


def _merged_tensor(flat, path, layer, lora):
  """W, or W + A B α/r where there is an adapter, as [out, in]."""
  module, _, kind = path.rpartition("/")
  weight = on_host(flat[path], layer)
  if kind == "kernel" and f"{module}/lora_a" in flat:
    a, b = (on_host(flat[f"{module}/{name}"], layer) for name in ("lora_a", "lora_b"))
    update = a @ b * np.float32(lora.alpha / lora.rank)
    weight = (weight.astype(np.float32) + update).astype(weight.dtype)
  return weight.T if _is_transposed(path) else weight


def on_host(array, layer=None):
  """An array, or one layer of a stacked one, as numpy; on several hosts it is gathered."""
  array = array if layer is None else array[layer]
  if not getattr(array, "is_fully_addressable", True):
    from jax.experimental import multihost_utils
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def _write_tensors(folder, tensors, max_shard_bytes):
  shards, sizes = [], []
  for name, size, tensor in tensors:
    if not shards or sizes[-1] + size > max_shard_bytes:
      shards.append({})
      sizes.append(0)
    shards[-1][name] = tensor
    sizes[-1] += size
  files = {}
  for number, shard in enumerate(shards, start=1):
    file = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1
            else "model.safetensors")
    # Contiguous: the writer takes a transposed array's memory as it lies.
    arrays = {name: np.ascontiguousarray(tensor()) for name, tensor in shard.items()}
    save_file(arrays, folder / file, metadata={"format": "pt"})
    files |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": sum(sizes)}, "weight_map": files})


@contextlib.contextmanager
def new_folder(path, tokenizer, card):
  """A temporary folder beside `path` that becomes it when the body ends without error.

  Args:
    path: folder; it must not exist yet.
    tokenizer: data.tokenizers.Tokenizer that it is to hold too, or None.
    card: text of its README.md, if any.

  Raises:
    InputError: if `path` exists.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise InputError(f"{path} exists already: choose another folder, or remove it.")
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    yield temporary
    if tokenizer is not None:
      tokenizer.save(temporary)
    if card:
      (temporary / "README.md").write_text(card, encoding="utf-8")
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _index(folder):
  """Tensor name -> file name.

  Raises:
    InputError: without safetensors, or with a file that is damaged or missing.
  """
  index = folder / "model.safetensors.index.json"
  if index.exists():
    return _read_index(index)
  if (folder / "model.safetensors").exists():
    return dict.fromkeys(_tensor_names(folder / "model.safetensors"), "model.safetensors")
  pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
  hint = f" ({pickled[0]} is pickled code, which is never loaded: convert it)" if pickled else ""
  raise InputError(f"{folder} holds no model.safetensors{hint}.")


def _read_index(index):
  try:
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
    raise InputError(f"{index} is damaged: it must hold a weight_map. Download it again.") from None
  held = {name: set(_tensor_names(index.parent / name)) for name in sorted(set(files.values()))}
  for tensor, name in files.items():
    if tensor not in held[name]:
      raise InputError(f"{index} places tensor {tensor} in {name}, which does not hold it.")
  for name, tensors in held.items():
    unnamed = sorted(tensor for tensor in tensors if files.get(tensor) != name)
    if unnamed:
      raise InputError(f"{index} does not name tensor {unnamed[0]}, which {name} holds.")
  return files


def _tensor_names(path):
  try:
    with safe_open(path, framework="numpy") as file:
      return list(file.keys())
  except FileNotFoundError:
    raise InputError(f"{path} is missing; the checkpoint's index names it.") from None
  except Exception as error:  # noqa: BLE001 - the Rust reader's own error type
    raise InputError(f"{path} is damaged ({error}). Download it again.") from None



"""Reads and writes Hugging Face checkpoints: a decoder with its tokenizer."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree
from safetensors.numpy import save_file

from dareu_jax.core.errors import InputError, readable
from dareu_jax.core.trees import named_leaves
from dareu_jax.data import tokenizers
from dareu_jax.models.attention import Implementation
from dareu_jax.models.checkpoint import Checkpoint, find
from dareu_jax.models.config import NO_LORA, LoraSettings, ModelConfig
from dareu_jax.models.config_json import from_huggingface, to_huggingface
from dareu_jax.models.decoder import Decoder, abstract_decoder
from dareu_jax.models.quantization import Scheme, dequantize
from dareu_jax.models.weights import Weights, checkpoint_names, fill, is_transposed
from dareu_jax.parallel.mesh import Mesh, MeshSettings, make_mesh


def load(
  path_or_id: str | pathlib.Path, *, dtype: str, mesh: Mesh | None = None, template: str = "auto",
  system: str = "", date: str = tokenizers.DATE, quantize: Scheme = "none",
  scan_layers: bool = False, remat: bool = False, attention: Implementation = "auto",
) -> tuple[Decoder, tokenizers.Tokenizer]:
  """A checkpoint's decoder and tokenizer.

  GPUs and TPUs round float32 products by default; `jax.default_matmul_precision("highest")`
  prevents this.

  Args:
    path_or_id: folder, or name of a model on the hub; of a model, or of a PEFT adapter.
    dtype: dtype of weights and activations, 'float32' or 'bfloat16'.
    mesh: mesh for the weights, from `parallel.mesh.make_mesh`; one device if not given.
    template: of `data.tokenizers.TEMPLATES`; 'auto' is the tokenizer's own chat template.
    system, date: system turn of conversations that have none, and today's date for templates.
    quantize, scan_layers, remat, attention: see `config.ModelSettings`.

  Raises:
    InputError: for a checkpoint that is missing, damaged, of an unsupported architecture, or whose
      tensors are not exactly those of its config.json.
  """
  found = find(path_or_id)
  tokenizer = tokenizers.load(str(found.tokenizer), template, system=system, date=date)
  config = decoder_config(found, tokenizer.vocab_size, dtype=dtype, quantize=quantize,
                          scan_layers=scan_layers, remat=remat, attention=attention)
  mesh = mesh or make_mesh(MeshSettings(1, 1, 1))
  graphdef, shapes = nnx.split(abstract_decoder(config))
  (state,) = filled(found, [shapes], nnx.filter_state(shapes, nnx.LoRAParam), config, mesh)
  return nnx.merge(graphdef, state), tokenizer


def filled(found: Checkpoint, parts: Sequence[PyTree], adapters: PyTree, config: ModelConfig,
           mesh: Mesh) -> list[PyTree]:
  """The parts of a model with the weights of a checkpoint.

  Args:
    found: the checkpoint.
    parts: states of shapes.
    adapters: state of what its weights lack, adapters and heads; the checkpoint's own adapter, if
      there is one, takes the place of the first.
    config: the architecture.
    mesh: where they are placed.

  Raises:
    InputError: if the tensors are not exactly those of the model.
  """
  if found.adapter is not None:
    adapters = found.adapter.fill(adapters, config, mesh)
  weights = Weights(found.folder, config)
  states = [fill(part, adapters, weights, mesh) for part in parts]
  weights.check_all_used()
  return states


def decoder_config(found: Checkpoint, num_tokens: int, *, lora: LoraSettings = NO_LORA,
                   **runtime: Any) -> ModelConfig:
  """The architecture of a checkpoint, with its own adapter or other ones.

  Args:
    found: the checkpoint.
    num_tokens: size of its tokenizer.
    lora: adapters, if it has none of its own.
    runtime: fields that no file has: dtype, quantize, scan_layers, remat, attention.

  Raises:
    InputError: for a config that cannot be used, or a tokenizer larger than the embedding.
  """
  lora = lora if found.adapter is None else found.adapter.lora
  config = from_huggingface(found.folder, lora=lora, **runtime)
  if num_tokens > config.vocab_size:
    raise InputError(f"the tokenizer has {num_tokens} tokens, but the model in {found.folder} "
                     f"embeds only {config.vocab_size}: it is another model's. Put the model's own "
                     "tokenizer files there, and leave config.tokenizer.path empty.")
  return dataclasses.replace(
    config, num_tokens=num_tokens if num_tokens < config.vocab_size else 0)


def save(
  model: Decoder, path: str | pathlib.Path, *, tokenizer: tokenizers.Tokenizer | None = None,
  generation: Mapping[str, Any] | None = None, card: str = "",
  max_shard_bytes: int = 5 * 2**30) -> None:
  """Writes a decoder as a Hugging Face checkpoint, adapters merged; all of it or nothing.

  Args:
    model: the model, with or without adapters.
    path: folder; it must not exist yet.
    tokenizer: tokenizer to save with it.
    generation: how the model is sampled, from `generation_config`; its end tokens are kept.
    card: text of the README.md, if any.
    max_shard_bytes: maximum size of a file, except for a larger tensor.

  Raises:
    InputError: if the folder exists.
  """
  generation, special = generation or {}, {}
  if tokenizer is not None:
    backend = tokenizer.backend
    # Answers end with the template's end token, which may differ from the tokenizer's.
    known = generation.get("eos_token_id", [])
    known = known if isinstance(known, list) else [known]
    ends = [i for i in dict.fromkeys([tokenizer.eos_id, backend.eos_token_id, *known])
            if i is not None]
    special = {"bos_token_id": backend.bos_token_id, "pad_token_id": tokenizer.pad_id,
               "eos_token_id": ends[0] if len(ends) == 1 else ends}
    special = {name: value for name, value in special.items() if value is not None}
  with new_folder(path, tokenizer, card) as folder:
    write_json(folder / "config.json", to_huggingface(model.config) | special)
    write_json(folder / "generation_config.json", {**generation, **special})
    _write_tensors(folder, merged_tensors(model), max_shard_bytes)


def generation_config(path_or_id: str | pathlib.Path) -> dict[str, Any]:
  """How a checkpoint is sampled and where its answers end; {} if it does not say.

  Raises:
    InputError: if the file is damaged.
  """
  path = find(path_or_id, weights=False).folder / "generation_config.json"
  if not path.exists():
    return {}
  with readable(path):
    text = path.read_bytes()
  try:
    return dict(json.loads(text))
  except (ValueError, TypeError):
    raise InputError(f"{path} is not a JSON object: complete the download, or remove it.") from None


def merged_tensors(model: Decoder) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
  """Yields (name, bytes, function that returns the tensor) in the checkpoint's layout."""
  config = model.config
  flat = named_leaves(nnx.state(model))
  plain = abstract_decoder(dataclasses.replace(config, quantize="none", lora=NO_LORA))
  for path, leaf in named_leaves(nnx.state(plain)).items():
    names, stacked = checkpoint_names(path, config)
    for layer, name in enumerate(names):
      tensor = functools.partial(
        _merged_tensor, flat, path, leaf, layer if stacked else None, config.lora)
      yield name, leaf.size * leaf.dtype.itemsize // len(names), tensor


def _merged_tensor(
  flat: dict[str, Any], path: str, plain: jax.ShapeDtypeStruct, layer: int | None,
  lora: LoraSettings) -> np.ndarray:
  """W, or W + A B α/r if there is an adapter, as [out, in]; W as it is after quantization."""
  module, _, kind = path.rpartition("/")
  if path in flat:
    weight = on_host(flat[path], layer)
  else:
    values, scales = (on_host(flat[f"{path}/{part}"], layer) for part in ("values", "scales"))
    weight = np.asarray(dequantize(values, scales, plain.shape[-2])).astype(plain.dtype)
  if kind == "kernel" and f"{module}/lora_a" in flat:
    a, b = (on_host(flat[f"{module}/{name}"], layer) for name in ("lora_a", "lora_b"))
    update = a @ b * np.float32(lora.alpha / lora.rank)
    weight = (weight.astype(np.float32) + update).astype(weight.dtype)
  return weight.T if is_transposed(path) else weight


def on_host(array: Float[Array, "..."], layer: int | None = None) -> Float[np.ndarray, "..."]:
  """An array, or one layer of a stacked one, as numpy; on several hosts it is gathered."""
  array = array if layer is None else array[layer]
  if not getattr(array, "is_fully_addressable", True):
    from jax.experimental import multihost_utils
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def _write_tensors(folder, tensors, max_shard_bytes):
  shards: list[dict[str, Callable[[], np.ndarray]]] = []
  sizes: list[int] = []
  for name, size, tensor in tensors:
    if not shards or sizes[-1] + size > max_shard_bytes:
      shards.append({})
      sizes.append(0)
    shards[-1][name] = tensor
    sizes[-1] += size
  files: dict[str, str] = {}
  for number, shard in enumerate(shards, start=1):
    file = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1
            else "model.safetensors")
    # Contiguous: the writer ignores the strides of a transposed array.
    arrays = {name: np.ascontiguousarray(tensor()) for name, tensor in shard.items()}
    save_file(arrays, folder / file, metadata={"format": "pt"})
    files |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": sum(sizes)}, "weight_map": files})


def check_new(path: pathlib.Path) -> None:
  """Raises InputError if there is something at a path that is to be written."""
  if path.exists():
    raise InputError(f"{path} exists already: choose another folder, or remove it.")


@contextlib.contextmanager
def new_folder(
  path: str | pathlib.Path, tokenizer: tokenizers.Tokenizer | None, card: str,
) -> Iterator[pathlib.Path]:
  """A temporary folder next to `path`, renamed to it if the body ends without an error.

  Args:
    path: folder; it must not exist yet.
    tokenizer: tokenizer to save with it.
    card: text of its README.md, if any.

  Raises:
    InputError: if `path` exists.
  """
  path = pathlib.Path(path)
  check_new(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    yield temporary
    if tokenizer is not None:
      tokenizer.save(temporary, with_system=True)
    if card:
      (temporary / "README.md").write_text(card, encoding="utf-8")
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as indented JSON."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

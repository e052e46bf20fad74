"""Builds the modules of a run: from dimensions and a seed, or from a Hugging Face checkpoint."""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import PyTree

from dareu_jax.core.trees import map_named, named_leaves
from dareu_jax.models.checkpoint import find
from dareu_jax.models.config import LoraSettings, ModelConfig, ModelSettings, from_settings
from dareu_jax.models.decoder import Decoder, abstract_decoder
from dareu_jax.models.handle import Model, split
from dareu_jax.models.heads import OwnerClassifier, ValueHead
from dareu_jax.models.huggingface import decoder_config, filled
from dareu_jax.models.weights import Weights
from dareu_jax.parallel.mesh import Mesh, is_stacked, shard, shardings


def model_config(model: ModelSettings, lora: LoraSettings, vocab_size: int) -> ModelConfig:
  """The architecture that the settings name; reads the config.json of a checkpoint.

  Raises:
    InputError: for a checkpoint that cannot be used, or a tokenizer larger than its embedding.
  """
  model = model.decided()
  if not model.path:
    return from_settings(model, lora, vocab_size)
  return decoder_config(
    find(model.path, weights=False), vocab_size, lora=lora, dtype=model.dtype,
    quantize=model.quantize, scan_layers=model.scan_layers, remat=model.remat,
    attention=model.attention)


def build_decoder(model: ModelSettings, config: ModelConfig, seed: int, mesh: Mesh) -> Model:
  """The language model, with base weights from the checkpoint if there is one."""
  return _build(lambda config: Decoder(config, rngs=_rngs(seed)), model, config, mesh)


def check_decoder(model: ModelSettings, config: ModelConfig, mesh: Mesh) -> None:
  """Raises InputError unless the checkpoint, if there is one, fits the model exactly."""
  _check(lambda config: Decoder(config, rngs=_rngs(0)), model, config, mesh)


def check_classifier(model: ModelSettings, config: ModelConfig, num_owners: int,
                     mesh: Mesh) -> None:
  """The same for a classifier's checkpoint."""
  _check(lambda config: OwnerClassifier(config, num_owners, rngs=_rngs(0)), model, config, mesh)


def _check(make: Callable[[ModelConfig], nnx.Module], model: ModelSettings, config: ModelConfig,
           mesh: Mesh) -> None:
  if not model.path:
    return
  config = dataclasses.replace(config, quantize="none")  # the shapes of the files
  found = find(model.path)
  weights = Weights(found.folder, config)
  adapters, base = nnx.state(nnx.eval_shape(lambda: make(config)), nnx.LoRAParam, ...)
  for name, leaf in named_leaves(base).items():
    weights.slices(name, leaf.shape)
  weights.check_all_used()
  if found.adapter is not None:
    found.adapter.fill(adapters, config, mesh)


def _rngs(seed):
  return nnx.Rngs(params=jax.random.key(seed))


def abstract_model(config: ModelConfig) -> Model:
  """The decoder as a Model with shapes only."""
  return split(abstract_decoder(config), adapters_only=config.lora.rank > 0)


def abstract_classifier(config: ModelConfig, num_owners: int) -> Model:
  """The owner classifier as a Model with shapes only."""
  shapes = nnx.eval_shape(lambda: OwnerClassifier(config, num_owners, rngs=_rngs(0)))
  return split(shapes, adapters_only=config.lora.rank > 0)


def build_classifier(
  model: ModelSettings, config: ModelConfig, num_owners: int, seed: int, mesh: Mesh) -> Model:
  """The owner classifier: its trunk from a checkpoint if there is one, its head from the seed."""
  return _build(
    lambda config: OwnerClassifier(config, num_owners, rngs=_rngs(seed)), model, config, mesh)


def with_weights(model: Model, weights: PyTree) -> Model:
  """The model with the base weights of another of the same architecture.

  Args:
    model: the model, whose adapters and heads stay.
    weights: state with a float32 leaf for every base weight, under the same path names.

  Raises:
    ValueError: if the model lacks one of them.
  """
  leaves = named_leaves(weights)

  def replaced(state):
    return map_named(lambda name, leaf: leaves.pop(name, leaf).astype(leaf.dtype), state)

  filled = Model(replaced(model.params), replaced(model.frozen), model.static)
  if leaves:
    raise ValueError(f"the model has no {', '.join(sorted(leaves))}")
  return filled


def build_value_head(config: ModelConfig, mesh: Mesh) -> Model:
  """The value head."""
  head = split(ValueHead(config.embed_dim), adapters_only=False)
  return head.with_params(shard(head.params, mesh))


def fresh_adapters(make: Callable[[ModelConfig], nnx.Module],
                   config: ModelConfig) -> dict[str, jax.Array]:
  """What no checkpoint has, adapters and an owner head, by path name.

  One layer is compiled for all of them: unrolled, hundreds of draws take half a minute.

  Args:
    make: the module of an architecture.
    config: the architecture.
  """
  scanned = dataclasses.replace(config, scan_layers=True)
  state = jax.jit(lambda: nnx.state(make(scanned), nnx.LoRAParam))()
  adapters = {}
  for name, leaf in named_leaves(state).items():
    if config.scan_layers or not is_stacked(name):
      adapters[name] = leaf
    else:
      adapters |= {name.replace("layers/", f"layers/{index}/", 1): part
                   for index, part in enumerate(leaf)}
  return adapters


def _build(make: Callable[[ModelConfig], nnx.Module], model: ModelSettings, config: ModelConfig,
           mesh: Mesh) -> Model:
  adapters_only = config.lora.rank > 0
  abstract = split(nnx.eval_shape(lambda: make(config)), adapters_only=adapters_only)
  shapes = abstract.params, abstract.frozen
  if not model.path:
    def initialize():
      model = split(make(config), adapters_only=adapters_only)
      return model.params, model.frozen

    params, frozen = jax.jit(initialize, out_shardings=_all_shardings(shapes, mesh))()
    return Model(params, frozen, abstract.static)
  fresh = fresh_adapters(make, config)
  fresh = shard(map_named(lambda name, _: fresh[name],
                          nnx.filter_state(abstract.params, nnx.LoRAParam)), mesh)
  params, frozen = filled(find(model.path), shapes, fresh, config, mesh)
  return Model(params, frozen, abstract.static)


def _all_shardings(trees, mesh):
  return tuple(shardings(tree, mesh) for tree in trees)

"""Kernels in few bits: rounding by brute force, products, checkpoints read and written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.errors import InputError
from dareu_jax.core.trees import map_named
from dareu_jax.evaluation.attacks import quantization as attack
from dareu_jax.models import factory, huggingface
from dareu_jax.models.config import LoraSettings
from dareu_jax.models.handle import bytes_of
from dareu_jax.models.quantization import QuantizedKernel, dequantize, nf4_levels, quantize
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from dareu_jax.pipeline import language_model
from dareu_jax.pipeline.settings import Settings
from tests.jobs import on_eight_devices
from tests.models.checkpoints import IDS, load, settings, write
from tests.models.reference import LORA, logits_of

SCHEMES = ("int8", "nf4")
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(150, 6)).astype(np.float32)  # two whole blocks and a part of one


def brute_force(kernel, scheme):
  """Each weight on its own: the nearest of all levels, times the largest of its 64."""
  levels = nf4_levels() if scheme == "nf4" else np.arange(-127, 128, dtype=np.float32) / 127
  rounded = np.zeros_like(kernel)
  for i, j in np.ndindex(*kernel.shape):
    block = kernel[i // 64 * 64:i // 64 * 64 + 64, j]
    scale = np.abs(block).max()
    if scale:
      rounded[i, j] = scale * levels[np.argmin(np.abs(levels - kernel[i, j] / scale))]
  return rounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_rounded_to_the_nearest_level_of_their_block(scheme):
  """A wrong nibble, a block along the outputs, or padding that raises a scale."""
  kernel = KERNEL.copy()
  kernel[:64, 2] = 0.0  # a block without a scale
  values, scales = quantize(kernel, scheme)
  assert scales.shape == (3, 6)
  assert values.nbytes == 3 * 6 * (64 if scheme == "int8" else 32)
  np.testing.assert_allclose(
    dequantize(values, scales, 150), brute_force(kernel, scheme), atol=1e-6)


def test_nf4_is_that_of_the_attack_which_rounds_whole_models():
  values, scales = quantize(KERNEL, "nf4")
  np.testing.assert_allclose(
    dequantize(values, scales, 150), attack.to_nf4(jnp.asarray(KERNEL)), atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stacked_layers_are_dequantized_one_by_one(scheme):
  parts = [quantize(k, scheme) for k in (KERNEL, 2 * KERNEL[::-1])]
  stacked = dequantize(*map(np.stack, zip(*parts, strict=True)), 150)
  for layer, part in zip(stacked, parts, strict=True):
    np.testing.assert_array_equal(layer, dequantize(*part, 150))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_and_gradients_are_those_of_the_rounded_weights(scheme):
  kernel = QuantizedKernel(150, 6, scheme)
  values, scales = quantize(KERNEL, scheme)
  kernel.values[...], kernel.scales[...] = jnp.asarray(values), jnp.asarray(scales)
  x = jnp.asarray(RNG.normal(size=(2, 3, 150)), jnp.float32)
  rounded = np.asarray(dequantize(values, scales, 150))
  y, pull = jax.vjp(kernel.product, x)
  np.testing.assert_allclose(y, x @ rounded, rtol=1e-5, atol=1e-5)
  (gradient,) = pull(jnp.ones_like(y))
  np.testing.assert_allclose(gradient, np.ones((2, 3, 6)) @ rounded.T, rtol=1e-5, atol=1e-5)


def test_no_dequantized_weight_is_kept_for_the_backward_pass():
  """Without recomputation all layers' weights would be stored at once: no memory saved."""
  kernel = QuantizedKernel(150, 6, "nf4")
  _, pull = jax.vjp(kernel.product, jnp.ones((4, 150)))
  kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
  assert kept < 4 * 150 * 4 + 3 * 6 * 32 + 3 * 6 * 4 + 200


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_checkpoint_is_read_quantized(scheme, scan_layers, tmp_path):
  """Against the plain model with the rounded weights; reads again what an export wrote."""
  folder = write(tmp_path / "m", "qwen2_bias")
  plain, model = (load(folder, lora=LORA, quantize=q, scan_layers=scan_layers)
                  for q in ("none", scheme))
  assert bytes_of(model.frozen) < bytes_of(plain.frozen)

  def rounded(name, leaf):
    if not name.endswith("kernel"):
      return leaf
    layers = np.asarray(leaf).reshape(-1, *leaf.shape[-2:])
    return np.stack([brute_force(kernel, scheme) for kernel in layers]).reshape(leaf.shape)

  expected = dataclasses.replace(
    plain, frozen=map_named(rounded, plain.frozen))
  np.testing.assert_allclose(
    logits_of(model.module, IDS), logits_of(expected.module, IDS), atol=1e-4, rtol=1e-4)
  huggingface.save(model.module, tmp_path / "out")
  np.testing.assert_allclose(
    logits_of(load(tmp_path / "out").module, IDS), logits_of(model.module, IDS), atol=1e-4,
    rtol=1e-4)


EIGHT_DEVICES = """
import json, pathlib, tempfile
import jax, numpy as np
from flax import nnx
from dareu_jax.core.trees import named_leaves
from dareu_jax.models import huggingface, weights
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.config_json import from_huggingface
from dareu_jax.models.decoder import Decoder, abstract_decoder
from dareu_jax.parallel.mesh import MeshSettings, make_mesh

config = ModelConfig(vocab_size=64, embed_dim=512, mlp_dim=320, num_layers=2, num_heads=4,
                     num_kv_heads=2, head_dim=128)
folder = pathlib.Path(tempfile.mkdtemp()) / "m"
huggingface.save(Decoder(config, rngs=nnx.Rngs(params=jax.random.key(0))), folder)
rounded, quantize = 0, weights.quantize

def counted(*args):
  global rounded
  rounded += 1
  return quantize(*args)

weights.quantize = counted

def read(scheme, scan, *mesh):
  global rounded
  rounded = 0
  config = from_huggingface(folder, dtype="float32", quantize=scheme, scan_layers=scan)
  _, state = nnx.split(abstract_decoder(config))
  filled = weights.fill(state, {}, weights.Weights(folder, config), make_mesh(MeshSettings(*mesh)))
  parts = [len({str(s.index) for s in leaf.addressable_shards})
           for name, leaf in named_leaves(filled).items() if name.endswith("values")]
  return rounded, sum(parts) * (2 if scan else 1), [np.asarray(leaf) for leaf in jax.tree.leaves(filled)]

found = []
for scheme in ("int8", "nf4"):
  for scan in (False, True):
    one, eight = read(scheme, scan, 1, 1, 1), read(scheme, scan, 1, 4, 2)
    found.append([*one[:2], *eight[:2],
                  all(np.array_equal(a, b) for a, b in zip(one[2], eight[2], strict=True))])
print(json.dumps(found))
"""


def test_eight_devices_read_what_one_reads_and_round_no_part_of_a_kernel_twice():
  """A scale of another device's block; values and scales rounded apart, or once per device."""
  for one, kernels, eight, parts, equal in on_eight_devices(EIGHT_DEVICES):
    assert equal
    assert (one, eight) == (kernels, parts)
    assert parts > 2 * kernels  # the control: the mesh splits them


def test_a_quantized_model_trains_its_adapters_alone(tmp_path):
  model = load(write(tmp_path / "m"), lora=LORA, quantize="nf4")
  assert {type(v).__name__ for v in jax.tree.leaves(
    model.params, is_leaf=lambda x: isinstance(x, nnx.Variable))} == {"LoRAParam"}
  gradients = jax.grad(lambda p: jnp.sum(model.with_params(p).module.logits(IDS)))(model.params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_language_model_may_be_quantized(scheme, finished, tmp_path):
  from dareu_jax.pipeline.saved import load_saved

  load_saved(finished[0], "original")[0].save(tmp_path / "m")
  model = language_model.load(str(tmp_path / "m"), quantize=scheme)
  trainable = model.trainable(LoraSettings(rank=2))
  ids = np.arange(3, 20)[None]
  np.testing.assert_allclose(trainable.logits(ids), model.logits(ids), atol=1e-5)
  with pytest.raises(InputError, match="adapters only"):
    model.trainable(LoraSettings())


@pytest.mark.parametrize("changes", [
  {"model": {"quantize": "nf4"}},  # from scratch
  {"model": {"quantize": "nf4", "path": "somewhere"}},  # without adapters
  {"classifier": {"model": {"quantize": "int8"}}},
])
def test_what_cannot_be_quantized_is_refused(changes):
  with pytest.raises(InputError, match=r"model\.quantize.*below adapters"):
    Settings.from_config(changes)


def test_a_mismatched_checkpoint_is_refused_as_without_quantization(tmp_path):
  folder = write(tmp_path / "m", intermediate_size=28)
  model = settings(folder, quantize="nf4")
  config = factory.model_config(model, LORA, 40)
  mesh = make_mesh(MeshSettings(1, 1, 1))
  for check in (factory.check_decoder,
                lambda model, config, mesh: factory.build_decoder(model, config, 0, mesh)):
    with pytest.raises(InputError, match="has shape"):
      check(model, config, mesh)

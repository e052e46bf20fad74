"""Quantized weights: levels, errors, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.trees import named_leaves
from dareu_jax.evaluation.attacks import quantization
from dareu_jax.models import handle
from dareu_jax.models.config import LORA_TARGETS, LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder

# As QLoRA's appendix prints them.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]


def test_the_levels_are_the_published_ones():
  np.testing.assert_allclose(quantization.nf4_levels(), NF4, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 3), (100, 5), (2, 130, 4)])
def test_nf4_takes_the_nearest_level_of_its_block(shape):
  """A block that crosses outputs, or levels searched at their own value, is off."""
  kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  got = np.asarray(quantization.to_nf4(jnp.asarray(kernel)))
  rows, found = (np.swapaxes(x, -1, -2).reshape(-1, shape[-2]) for x in (kernel, got))
  for row, rounded in zip(rows, found, strict=True):
    for start in range(0, len(row), 64):
      block = row[start:start + 64]
      levels = np.array(NF4) * np.abs(block).max()
      nearest = levels[np.abs(block[:, None] - levels).argmin(1)]
      np.testing.assert_allclose(rounded[start:start + 64], nearest, rtol=1e-5, atol=1e-6)


def test_int8_is_off_by_half_a_level_at_most():
  kernel = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
  got = np.asarray(quantization.to_int8(jnp.asarray(kernel)))
  scale = np.abs(kernel).max(0) / 127
  assert np.all(np.abs(got - kernel) <= scale / 2 + 1e-6)
  for column, step in zip(got.T, scale, strict=True):
    assert len(np.unique(np.round(column / step))) <= 255


def test_a_kernel_of_zeros_stays():
  for round_off in quantization.SCHEMES.values():
    assert not np.any(round_off(jnp.zeros((64, 2))))


@pytest.fixture(scope="module")
def model():
  lora = LoraSettings(rank=2, alpha=8.0, targets=LORA_TARGETS)
  module = Decoder(ModelConfig(vocab_size=20, embed_dim=16, mlp_dim=24, num_layers=2, num_heads=2,
                               num_kv_heads=2, head_dim=8, lora=lora), rngs=nnx.Rngs(params=0))
  model = handle.split(module, adapters_only=True)
  rng = np.random.default_rng(0)
  return model.with_params(jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype), model.params))


def test_a_merged_adapter_is_quantized_with_its_kernel(model, monkeypatch):
  """With rounding taken away the merged model must be the model, by the adapter's own α / r."""
  monkeypatch.setitem(quantization.SCHEMES, "none", lambda kernel: kernel)
  merged = quantization.quantized(model, "none", merged=True)
  ids = np.arange(12).reshape(2, 6)
  np.testing.assert_allclose(merged.module.logits(ids), model.module.logits(ids), atol=1e-5)
  assert not any(leaf.any() for name, leaf in named_leaves(merged.params).items()
                 if name.endswith("lora_b"))


def test_apart_the_adapter_and_what_is_no_kernel_stay(model):
  apart = quantization.quantized(model, "nf4", merged=False)
  jax.tree.map(np.testing.assert_array_equal, apart.params, model.params)
  before, after = named_leaves(model.frozen), named_leaves(apart.frozen)
  for name in before:
    assert np.array_equal(before[name], after[name]) != name.endswith("_proj/kernel"), name

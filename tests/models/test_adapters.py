"""Low-rank adapters: what they change, and what is trained of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.trees import named_leaves
from dareu_jax.models.config import LoraSettings
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.factory import fresh_adapters
from dareu_jax.models.handle import split
from dareu_jax.models.heads import OwnerClassifier
from tests.models.reference import LLAMA, LORA, hf_name, logits_of, reference_logits, weights_of


@pytest.fixture(scope="module")
def token_ids():
  return np.random.default_rng(7).integers(0, 40, (3, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def adapted():
  """A fresh decoder with adapters on everything."""
  return Decoder(dataclasses.replace(LLAMA, lora=LORA), rngs=nnx.Rngs(params=1))


def test_fresh_adapters_change_nothing(adapted, token_ids):
  """B must start at zero and A must not."""
  config = dataclasses.replace(LLAMA, lora=LoraSettings(rank=0, alpha=1.0, targets=()))
  expected = reference_logits(weights_of(adapted), config, token_ids)
  np.testing.assert_allclose(logits_of(adapted, token_ids), expected, atol=1e-4)
  for path, leaf in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)):
    assert np.any(leaf[...]) == (path[-1] == "lora_a"), path


@pytest.mark.parametrize("scan_layers", [False, True])
def test_adapters_beside_a_checkpoint_are_those_of_the_whole_model(scan_layers):
  """They are drawn without its weights, which would not fit beside those that are read."""
  config = dataclasses.replace(LLAMA, lora=LORA, scan_layers=scan_layers)

  def make(config):
    return OwnerClassifier(config, 3, rngs=nnx.Rngs(params=jax.random.key(5)))

  whole = named_leaves(nnx.state(make(config), nnx.LoRAParam))
  found = fresh_adapters(make, config)
  assert set(found) == set(whole)
  for name, leaf in whole.items():
    np.testing.assert_allclose(found[name], leaf, atol=1e-6)


def test_adapters_equal_the_merged_kernel(adapted, token_ids):
  """W + A B α/r: a lost or squared scale, or an adapter that is never applied."""
  decoder = nnx.clone(adapted)
  merged = weights_of(decoder)
  rng = np.random.default_rng(3)
  count = 0
  for layer in decoder.layers:
    for linear in [*(getattr(layer.attention, f"{n}_proj") for n in "qkvo"),
                   *(getattr(layer.mlp, f"{n}_proj") for n in ("gate", "up", "down"))]:
      linear.lora_b[...] = jnp.asarray(0.1 * rng.normal(size=linear.lora_b.shape), jnp.float32)
  state = {path: np.asarray(leaf[...], np.float64)
           for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
  for path in state:
    if path[-1] == "kernel":
      a, b = (state[*path[:-1], name] for name in ("lora_a", "lora_b"))
      merged[hf_name(path)] = (state[path] + a @ b * 12.0 / 3).T
      count += 1
  assert count == 2 * 7
  got = logits_of(decoder, token_ids)
  np.testing.assert_allclose(
    got, reference_logits(merged, LLAMA, token_ids), atol=1e-4, rtol=1e-5)
  assert np.abs(got - logits_of(adapted, token_ids)).max() > 0.05


def test_only_targets_get_an_adapter():
  """A target list that is not read would train every layer, or none."""
  lora = LoraSettings(rank=2, alpha=2.0, targets=("q_proj", "down_proj"))
  decoder = nnx.eval_shape(
    lambda: Decoder(dataclasses.replace(LLAMA, lora=lora), rngs=nnx.Rngs(params=0)))
  paths = {path[2:] for path, _ in nnx.to_flat_state(nnx.state(decoder, nnx.LoRAParam))}
  assert paths == {(*module, leaf) for module in (("attention", "q_proj"), ("mlp", "down_proj"))
                   for leaf in ("lora_a", "lora_b")}


def test_adapters_only_trains_adapters_only(adapted):
  """A base weight among the trained ones would be updated, saved and copied per role."""
  model = split(adapted, adapters_only=True)
  trained = {path for path, _ in nnx.to_flat_state(model.params)}
  kept = {path for path, _ in nnx.to_flat_state(model.frozen)}
  assert {path[-1] for path in trained} == {"lora_a", "lora_b"} and len(trained) == 2 * 7 * 2
  assert not any(path[-1].startswith("lora") for path in kept)
  whole = split(adapted, adapters_only=False)
  assert {path for path, _ in nnx.to_flat_state(whole.params)} == trained | kept
  assert not jax.tree.leaves(whole.frozen)

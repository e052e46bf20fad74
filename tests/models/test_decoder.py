"""The decoder against a Llama written in numpy, and what must not change its numbers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.trees import named_leaves
from dareu_jax.models.config import LORA_TARGETS, LoraSettings
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.heads import OwnerClassifier
from dareu_jax.models.rope import RopeConfig, rope_frequencies
from tests.models.reference import (
  CONFIGS,
  LLAMA,
  LLAMA3_ROPE,
  LORA,
  decoder_of,
  logits_of,
  random_weights,
  reference_frequencies,
  reference_hidden,
  reference_logits,
  weights_of,
)


@pytest.fixture(scope="module")
def token_ids():
  return np.random.default_rng(7).integers(0, 40, (3, 20)).astype(np.int32)


# --- Parity


@pytest.mark.parametrize("name", CONFIGS)
def test_decoder_agrees_with_a_numpy_llama(name, token_ids):
  """A wrong rotation, head grouping, norm, bias or activation shows in the logits."""
  config = CONFIGS[name]
  weights = random_weights(config)
  expected = reference_logits(weights, config, token_ids)
  assert expected.std() > 0.3  # else any decoder would agree
  np.testing.assert_allclose(
    logits_of(decoder_of(config, weights), token_ids), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("wrong", [
  dataclasses.replace(LLAMA, rope=RopeConfig(theta=1e6)),
  dataclasses.replace(LLAMA, rope=LLAMA3_ROPE),
  dataclasses.replace(LLAMA, norm_eps=1e-3),
], ids=["theta", "llama3", "eps"])
def test_wrong_constants_are_noticed(wrong, token_ids):
  """The negative control of the parity test: weights fit, one number of the config does not."""
  weights = random_weights(LLAMA)
  right = logits_of(decoder_of(LLAMA, weights), token_ids)
  difference = np.abs(right - reference_logits(weights, wrong, token_ids)).max()
  assert difference > 0.01  # the parity test allows a hundredth of that


@pytest.mark.parametrize("rope", [
  RopeConfig(theta=1e4),
  RopeConfig(theta=1e6, kind="linear", factor=4.0),
  RopeConfig(theta=5e5, kind="llama3", factor=8.0),
  RopeConfig(theta=5e5, kind="llama3", factor=32.0, low_freq_factor=2.0, high_freq_factor=6.0,
             original_max_length=4096),
  RopeConfig(theta=1e6, kind="yarn", factor=4.0, original_max_length=32768),
  RopeConfig(theta=1e4, kind="dynamic", factor=4.0),
], ids=["default", "linear", "llama3.1", "llama3_other", "yarn", "dynamic"])
def test_rope_frequencies_follow_the_published_rule(rope):
  """Scaling ignored, applied to the wrong end of the spectrum, or blended the wrong way round."""
  expected = reference_frequencies(rope, 128)
  np.testing.assert_allclose(rope_frequencies(rope, 128), expected, rtol=1e-5)
  if rope.kind in ("llama3", "yarn"):  # the case holds all three regimes
    plain = reference_frequencies(dataclasses.replace(rope, kind="default"), 128)
    ratio = expected / plain
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / rope.factor)
    assert np.any((ratio < 0.99) & (ratio > 1.01 / rope.factor))


# --- Layers as a list, as a scan, and recomputed


BASE = CONFIGS["llama_gqa_untied"]


@pytest.fixture(scope="module")
def twins():
  """Fresh decoders of one seed: unrolled and scanned."""
  return [Decoder(dataclasses.replace(BASE, scan_layers=scan), rngs=nnx.Rngs(params=5))
          for scan in (False, True)]


def _logits_and_gradients(decoder, config, token_ids):
  graphdef, state = nnx.split(decoder)

  def loss(state):
    model = nnx.merge(graphdef, state)
    model.config = config
    logits = model.logits(token_ids)
    return jnp.mean(jnp.sin(3 * logits)), logits

  gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(state)
  return np.asarray(logits), _stacked(config, gradients)


def _stacked(config, state):
  """{path without the layer: array with it in front}, of a list of layers or a stacked one."""
  flat = {tuple(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
  if config.scan_layers:
    return flat
  result = {path: array for path, array in flat.items() if path[0] != "layers"}
  for path in {path[2:] for path in flat if path[0] == "layers"}:
    result["layers", *path] = np.stack(
      [flat["layers", str(i), *path] for i in range(config.num_layers)])
  return result


def test_random_starts_are_those_of_before():
  """Keys in another order would make every run from scratch another one."""
  config = dataclasses.replace(
    BASE, head_dim=12, qk_norm=True, qkv_bias=True,
    lora=LoraSettings(rank=2, alpha=4.0, targets=LORA_TARGETS))
  state = nnx.state(Decoder(config, rngs=nnx.Rngs(params=jax.random.key(3))))
  sums = {name: np.abs(np.asarray(leaf, np.float64)).sum()
          for name, leaf in named_leaves(state).items()}
  for name, expected in {
    "embedding": 187.7476861, "lm_head": 180.5027029,
    "layers/0/attention/q_proj/kernel": 214.6102747, "layers/1/mlp/down_proj/kernel": 66.2875452,
    "layers/1/mlp/down_proj/lora_a": 10.3284972,
  }.items():
    assert sums[name] == pytest.approx(expected, rel=1e-5), name


def test_scanned_layers_start_from_the_unrolled_weights(twins):
  """Other keys a layer would make `scan_layers` another model; one key for all, copies."""
  unrolled, scanned = (_stacked(twin.config, nnx.state(twin)) for twin in twins)
  assert unrolled.keys() == scanned.keys()
  for path, expected in unrolled.items():
    np.testing.assert_allclose(scanned[path], expected, atol=1e-5, err_msg=str(path))
    if path[-1] == "kernel":
      assert np.abs(expected[0] - expected[1]).max() > 0.1, path


@pytest.fixture(scope="module")
def unrolled(twins, token_ids):
  return _logits_and_gradients(twins[0], BASE, token_ids)


@pytest.mark.parametrize("scan_layers, remat", [(True, False), (False, True)],
                         ids=["scanned", "remat"])
def test_scan_and_remat_change_no_number(scan_layers, remat, twins, unrolled, token_ids):
  """Layers in another order, or a gradient lost in the recomputation."""
  config = dataclasses.replace(BASE, scan_layers=scan_layers, remat=remat)
  logits, gradients = _logits_and_gradients(twins[scan_layers], config, token_ids)
  expected_logits, expected_gradients = unrolled
  np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
  assert gradients.keys() == expected_gradients.keys()
  for path, expected in expected_gradients.items():
    assert np.abs(expected).max() > 1e-3, path  # else the gradients would agree by being zero
    np.testing.assert_allclose(gradients[path], expected, atol=1e-5, rtol=1e-4, err_msg=str(path))


def test_remat_recomputes(twins, token_ids):
  """A flag that is not read would pass the test above; the saved activations tell."""
  graphdef, state = nnx.split(twins[1])

  def program(remat):
    def loss(state):
      model = nnx.merge(graphdef, state)
      model.config = dataclasses.replace(twins[1].config, remat=remat)
      return jnp.sum(model.hidden_states(token_ids))
    return str(jax.make_jaxpr(jax.grad(loss))(state))

  mlp_saved = "f32[2,3,20,24]"  # [L, B, T, F]: kept by the scan for its backward pass
  assert mlp_saved in program(False)
  assert mlp_saved not in program(True)


# --- Training in bfloat16


def test_no_gradient_in_bfloat16_is_summed_in_bfloat16():
  """Half of 4096 tokens are the same: its embedding's gradient was .24 off, a bias's .21."""
  rng = np.random.default_rng(0)
  token_ids = np.where(rng.random((32, 128)) < 0.5, 5, rng.integers(0, 40, (32, 128)))
  targets = rng.integers(0, 40, token_ids.shape)
  config = dataclasses.replace(BASE, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True,
                               scan_layers=True, remat=True)

  def gradients(dtype):
    rounded = nnx.state(Decoder(dataclasses.replace(config, dtype="bfloat16"), rngs=nnx.Rngs(params=0)))
    graphdef, _ = nnx.split(nnx.eval_shape(
      lambda: Decoder(dataclasses.replace(config, dtype=dtype), rngs=nnx.Rngs(params=0))))

    def loss(state):
      logprobs = jax.nn.log_softmax(nnx.merge(graphdef, state).logits(token_ids))
      return -jnp.mean(jnp.take_along_axis(logprobs, targets[..., None], -1))

    state = jax.tree.map(lambda leaf: leaf.astype(dtype), rounded)
    return named_leaves(jax.jit(jax.grad(loss))(state))

  found = gradients("bfloat16")
  for name, right in gradients("float32").items():
    right = np.asarray(right, np.float64)
    error = np.linalg.norm(np.asarray(found[name], np.float64) - right) / np.linalg.norm(right)
    assert error < 0.02, (name, error)


# --- What a position may depend on


def test_padding_and_batch_mates_change_no_valid_position(token_ids):
  """Attention over padding, or positions counted from the wrong end."""
  decoder = decoder_of(LLAMA, random_weights(LLAMA))
  whole = logits_of(decoder, token_ids)
  lengths = (5, 20, 11)
  others = np.array(token_ids)
  for row, n in enumerate(lengths):
    others[row, n:] = (others[row, n:] + 1 + row) % 40
  padded = logits_of(decoder, others)
  mates = logits_of(decoder, np.stack([token_ids[0], others[2], others[0]]))
  for row, n in enumerate(lengths):
    np.testing.assert_allclose(padded[row, :n], whole[row, :n], atol=2e-5)
  np.testing.assert_allclose(mates[0], whole[0], atol=2e-5)
  short = logits_of(decoder, token_ids[:1, :5])
  np.testing.assert_allclose(short[0], whole[0, :5], atol=2e-5)
  assert np.abs(padded[0, 5] - whole[0, 5]).max() > 1e-3  # the padding itself does differ


# --- Counts and heads


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_num_parameters_is_the_count_of_leaves(name, scan_layers):
  """A bias, a norm or the second embedding forgotten, or adapters counted along."""
  config = dataclasses.replace(CONFIGS[name], scan_layers=scan_layers)

  def leaves(config):
    shapes = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(shapes)))

  assert leaves(config) == config.num_parameters
  adapted = dataclasses.replace(config, lora=LORA)
  assert adapted.num_parameters == config.num_parameters < leaves(adapted)


def test_classifier_of_an_untied_config_holds_no_language_head():
  """An unused [D, V] head would take memory and be looked for in every checkpoint."""
  config = CONFIGS["llama_gqa_untied"]
  model = nnx.eval_shape(lambda: OwnerClassifier(config, 6, rngs=nnx.Rngs(params=0)))
  flat = dict(nnx.to_flat_state(nnx.state(model)))
  assert not [path for path in flat if "lm_head" in path]
  assert flat["owner_kernel",].shape == (32, 6)
  size = sum(math.prod(leaf.shape) for leaf in flat.values())
  assert size == config.num_parameters - 40 * 32 + 32 * 6 + 6


def test_classifier_reads_prefixes_and_nothing_later(token_ids):
  """Position t must be p(owner | y_≤t): peeking, or a head on the last position only."""
  config = CONFIGS["llama_gqa_untied"]
  model = OwnerClassifier(config, 6, rngs=nnx.Rngs(params=2))
  model.owner_bias[...] = jnp.arange(6.0)
  graphdef, state = nnx.split(model)
  run = jax.jit(lambda ids: nnx.merge(graphdef, state)(ids))
  logits = np.asarray(run(token_ids))
  hidden = reference_hidden(weights_of(model.decoder), config, token_ids)
  expected = hidden @ np.asarray(model.owner_kernel[...], np.float64) + np.arange(6)
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-5)
  later = np.array(token_ids)
  later[:, 9:] = (later[:, 9:] + 3) % 40
  changed = np.asarray(run(later))
  np.testing.assert_array_equal(changed[:, :9], logits[:, :9])
  assert np.abs(changed[:, 9:] - logits[:, 9:]).min(axis=-1).max() > 1e-3


# --- Parts of the trunk


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2_windows"])
def test_layers_in_two_parts_are_the_trunk(name, scan_layers, token_ids):
  """A slice of the stacked layers, or of their windows, that is off by one shows."""
  config = dataclasses.replace(CONFIGS[name], scan_layers=scan_layers)
  model = Decoder(config, rngs=nnx.Rngs(params=3))
  whole = jax.jit(lambda model: model.hidden_states(token_ids))(model)
  for cut in range(config.num_layers + 1):
    @jax.jit
    def parts(model, cut=cut):
      x = model.layers_between(model.embed(token_ids), 0, cut)
      return model.final_norm(model.layers_between(x, cut, config.num_layers))
    np.testing.assert_allclose(parts(model), whole, atol=1e-5)

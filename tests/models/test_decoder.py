"""The decoder against a Llama written in numpy, and what must not change its numbers.

`reference_*`, `random_weights` and `hf_name` also serve test_huggingface.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.models import states
from dareu_jax.models.config import ModelConfig, RopeConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.heads import OwnerClassifier
from dareu_jax.models.layers import rope_frequencies
from dareu_jax.settings import LORA_TARGETS, LoraSettings

LLAMA3_ROPE = RopeConfig(theta=5e5, kind="llama3", factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_length=16)
LLAMA = ModelConfig(vocab_size=40, embed_dim=32, mlp_dim=24, num_layers=2, num_heads=4,
                    num_kv_heads=4, head_dim=8)
CONFIGS = {
  "llama": LLAMA,
  "llama_gqa_untied": dataclasses.replace(LLAMA, num_kv_heads=2, tie_embeddings=False,
                                          norm_eps=1e-5),
  "llama3_rope": dataclasses.replace(LLAMA, num_kv_heads=1, rope=LLAMA3_ROPE),
  "qwen2_bias": dataclasses.replace(LLAMA, num_kv_heads=2, qkv_bias=True,
                                    rope=RopeConfig(theta=1e6)),
  # 4 heads of 12 are 48, not the 32 of the embedding.
  "qwen3_qk_norm": dataclasses.replace(LLAMA, num_kv_heads=2, head_dim=12, qk_norm=True,
                                       rope=RopeConfig(theta=1e6)),
}
LORA = LoraSettings(rank=3, alpha=12.0, targets=LORA_TARGETS)


# --- The oracle: float64 numpy, one row and one head at a time, weights by their names on the hub.


def reference_frequencies(rope, head_dim):
  """Published rule, one frequency at a time: by wavelength in tokens, as Llama 3.1 states it."""
  result = []
  for i in range(head_dim // 2):
    freq = 1.0 / math.pow(rope.theta, 2 * i / head_dim)
    wavelength = 2 * math.pi / freq
    if rope.kind == "linear":
      freq /= rope.factor
    elif rope.kind == "llama3":
      longest_kept = rope.original_max_length / rope.high_freq_factor
      shortest_divided = rope.original_max_length / rope.low_freq_factor
      if wavelength > shortest_divided:
        freq /= rope.factor
      elif wavelength > longest_kept:
        smooth = (rope.original_max_length / wavelength - rope.low_freq_factor) / (
          rope.high_freq_factor - rope.low_freq_factor)
        freq = (1 - smooth) * freq / rope.factor + smooth * freq
    result.append(freq)
  return np.array(result)


def reference_hidden(weights, config, token_ids):
  """Final hidden states [B, T, D] float64 of a Llama, Qwen2 or Qwen3."""
  w = {name: np.asarray(tensor, np.float64) for name, tensor in weights.items()}
  freqs = reference_frequencies(config.rope, config.head_dim)
  return np.stack([_reference_row(w, config, freqs, row) for row in np.asarray(token_ids)])


def reference_logits(weights, config, token_ids):
  head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
  return reference_hidden(weights, config, token_ids) @ np.asarray(weights[head], np.float64).T


def _reference_row(w, config, freqs, row):
  heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim

  def norm(x, name):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * w[name]

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

  def rotate(x):  # the two halves of a head are the real and the imaginary parts
    z = x[:, : dim // 2] + 1j * x[:, dim // 2:]
    z = z * np.exp(1j * np.arange(len(x))[:, None] * freqs)
    return np.concatenate([z.real, z.imag], axis=-1)

  x = w["model.embed_tokens.weight"][row]
  time = len(row)
  for i in range(config.num_layers):
    layer = f"model.layers.{i}"
    h = norm(x, f"{layer}.input_layernorm.weight")
    q, k, v = (linear(h, f"{layer}.self_attn.{n}_proj").reshape(time, -1, dim) for n in "qkv")
    outputs = []
    for n in range(heads):
      q_n, k_n, v_n = (a[:, b] for a, b in ((q, n), *((a, n * kv_heads // heads) for a in (k, v))))
      if config.qk_norm:
        q_n = norm(q_n, f"{layer}.self_attn.q_norm.weight")
        k_n = norm(k_n, f"{layer}.self_attn.k_norm.weight")
      scores = rotate(q_n) @ rotate(k_n).T / np.sqrt(dim)
      scores[np.triu_indices(time, 1)] = -np.inf
      p = np.exp(scores - scores.max(axis=-1, keepdims=True))
      outputs.append(p / p.sum(axis=-1, keepdims=True) @ v_n)
    x = x + linear(np.concatenate(outputs, axis=-1), f"{layer}.self_attn.o_proj")
    h = norm(x, f"{layer}.post_attention_layernorm.weight")
    gate = linear(h, f"{layer}.mlp.gate_proj")
    x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj"),
                   f"{layer}.mlp.down_proj")
  return norm(x, "model.norm.weight")


def random_weights(config, seed=0):
  """Every tensor of a checkpoint [out, in], none of them uniform: norms and biases tell as well."""
  rng = np.random.default_rng(seed)
  d, h = config.embed_dim, config.head_dim
  q_dim, kv_dim = config.num_heads * h, config.num_kv_heads * h

  def normal(*shape):
    return rng.normal(size=shape) * shape[-1] ** -0.5

  def scale(n):
    return rng.uniform(0.5, 1.5, n)

  w = {"model.embed_tokens.weight": normal(config.vocab_size, d), "model.norm.weight": scale(d)}
  if not config.tie_embeddings:
    w["lm_head.weight"] = normal(config.vocab_size, d)
  for i in range(config.num_layers):
    layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
    w[f"{layer}.input_layernorm.weight"] = scale(d)
    w[f"{layer}.post_attention_layernorm.weight"] = scale(d)
    for name, rows in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
      w[f"{attention}.{name}_proj.weight"] = 2 * normal(rows, d)
      if config.qkv_bias:
        w[f"{attention}.{name}_proj.bias"] = 0.5 * rng.normal(size=rows)
    if config.qk_norm:
      w[f"{attention}.q_norm.weight"], w[f"{attention}.k_norm.weight"] = scale(h), 2 * scale(h)
    w[f"{attention}.o_proj.weight"] = normal(d, q_dim)
    w[f"{layer}.mlp.gate_proj.weight"] = normal(config.mlp_dim, d)
    w[f"{layer}.mlp.up_proj.weight"] = normal(config.mlp_dim, d)
    w[f"{layer}.mlp.down_proj.weight"] = normal(d, config.mlp_dim)
  return {name: tensor.astype(np.float32) for name, tensor in w.items()}


def hf_name(path):
  """Name on the hub of a parameter of an unrolled decoder, by its path."""
  if path[0] != "layers":
    return {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight",
            "lm_head": "lm_head.weight"}[path[0]]
  *modules, leaf = path[2:]
  renamed = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
             "attention": "self_attn"}
  modules = [renamed.get(module, module) for module in modules]
  return ".".join(["model.layers", str(path[1]), *modules, "bias" if leaf == "bias" else "weight"])


def transposed(path):
  return path[-1] in ("kernel", "lm_head")


def decoder_of(config, weights):
  """A decoder holding the tensors of `weights`."""
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0)))
  graphdef, state = nnx.split(abstract)
  flat = {}
  for path, leaf in nnx.to_flat_state(state):
    tensor = weights[hf_name(path)]
    flat[path] = leaf.replace(jnp.asarray(tensor.T if transposed(path) else tensor))
    assert flat[path].shape == leaf.shape, path
  return nnx.merge(graphdef, nnx.from_flat_state(flat))


def weights_of(decoder):
  """The tensors of an unrolled decoder by name, adapters left out."""
  weights = {}
  for path, leaf in nnx.to_flat_state(nnx.state(decoder)):
    if not path[-1].startswith("lora"):
      array = np.asarray(leaf[...])
      weights[hf_name(path)] = array.T if transposed(path) else array
  return weights


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, token_ids):
  model = nnx.merge(graphdef, state)
  return model.logits(model.hidden_states(token_ids))


def logits_of(decoder, token_ids):
  return np.asarray(_logits(*nnx.split(decoder), token_ids))


# --- Fixtures


@pytest.fixture(scope="module")
def token_ids():
  return np.random.default_rng(7).integers(0, 40, (3, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def adapted():
  """A fresh decoder with adapters on everything."""
  return Decoder(dataclasses.replace(LLAMA, lora=LORA), rngs=nnx.Rngs(params=1))


# --- Parity


@pytest.mark.parametrize("name", CONFIGS)
def test_decoder_agrees_with_a_numpy_llama(name, token_ids):
  """A wrong rotation, head grouping, norm, bias or activation shows in the logits."""
  config = CONFIGS[name]
  weights = random_weights(config)
  expected = reference_logits(weights, config, token_ids)
  assert expected.std() > 0.3  # else any decoder would agree
  np.testing.assert_allclose(
    logits_of(decoder_of(config, weights), token_ids), expected, atol=1e-5, rtol=1e-5)


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
  assert difference > 1e-3


@pytest.mark.parametrize("rope", [
  RopeConfig(theta=1e4),
  RopeConfig(theta=1e6, kind="linear", factor=4.0),
  RopeConfig(theta=5e5, kind="llama3", factor=8.0),
  RopeConfig(theta=5e5, kind="llama3", factor=32.0, low_freq_factor=2.0, high_freq_factor=6.0,
             original_max_length=4096),
], ids=["default", "linear", "llama3.1", "llama3_other"])
def test_rope_frequencies_follow_the_published_rule(rope):
  """Scaling ignored, applied to the wrong end of the spectrum, or blended the wrong way round."""
  expected = reference_frequencies(rope, 128)
  np.testing.assert_allclose(rope_frequencies(rope, 128), expected, rtol=1e-6)
  if rope.kind == "llama3":  # the case holds all three regimes
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
    logits = model.logits(model.hidden_states(token_ids))
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


def test_scanned_layers_start_from_the_unrolled_weights(twins):
  """Other keys a layer would make `scan_layers` another model; one key for all, copies."""
  unrolled, scanned = (_stacked(twin.config, nnx.state(twin)) for twin in twins)
  assert unrolled.keys() == scanned.keys()
  for path, expected in unrolled.items():
    np.testing.assert_allclose(scanned[path], expected, atol=1e-6, err_msg=str(path))
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
  np.testing.assert_allclose(logits, expected_logits, atol=2e-6)
  assert gradients.keys() == expected_gradients.keys()
  for path, expected in expected_gradients.items():
    assert np.abs(expected).max() > 1e-6, path  # else the gradients would agree by being zero
    np.testing.assert_allclose(gradients[path], expected, atol=2e-6, rtol=1e-4, err_msg=str(path))


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
    np.testing.assert_allclose(padded[row, :n], whole[row, :n], atol=2e-6)
  np.testing.assert_allclose(mates[0], whole[0], atol=2e-6)
  short = logits_of(decoder, token_ids[:1, :5])
  np.testing.assert_allclose(short[0], whole[0, :5], atol=5e-6)
  assert np.abs(padded[0, 5] - whole[0, 5]).max() > 1e-3  # the padding itself does differ


# --- Adapters


def test_fresh_adapters_change_nothing(adapted, token_ids):
  """B must start at zero and A must not."""
  config = dataclasses.replace(LLAMA, lora=LoraSettings(rank=0, alpha=1.0, targets=()))
  expected = reference_logits(weights_of(adapted), config, token_ids)
  np.testing.assert_allclose(logits_of(adapted, token_ids), expected, atol=1e-5)
  for path, leaf in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)):
    assert np.any(leaf[...]) == (path[-1] == "lora_a"), path


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
    got, reference_logits(merged, LLAMA, token_ids), atol=2e-5, rtol=1e-5)
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
  _, trainable, frozen = states.split(adapted, adapters_only=True)
  trained = {path for path, _ in nnx.to_flat_state(trainable)}
  kept = {path for path, _ in nnx.to_flat_state(frozen)}
  assert {path[-1] for path in trained} == {"lora_a", "lora_b"} and len(trained) == 2 * 7 * 2
  assert not any(path[-1].startswith("lora") for path in kept)
  _, everything, nothing = states.split(adapted, adapters_only=False)
  assert {path for path, _ in nnx.to_flat_state(everything)} == trained | kept
  assert not jax.tree.leaves(nothing)


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
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
  later = np.array(token_ids)
  later[:, 9:] = (later[:, 9:] + 3) % 40
  changed = np.asarray(run(later))
  np.testing.assert_array_equal(changed[:, :9], logits[:, :9])
  assert np.abs(changed[:, 9:] - logits[:, 9:]).min(axis=-1).max() > 1e-3

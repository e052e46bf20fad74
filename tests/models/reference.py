"""A Llama written in numpy, the oracle of the models' tests: float64, one row and one head at a time.

Weights go by their names on the hub.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dareu_jax.models.config import LORA_TARGETS, LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.rope import RopeConfig

LLAMA3_ROPE = RopeConfig(theta=5e5, kind="llama3", factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_length=16)
YARN_ROPE = RopeConfig(theta=1e4, kind="yarn", factor=4.0, original_max_length=64, beta_fast=8.0,
                       beta_slow=1.0, attention_factor=1.14)
LLAMA = ModelConfig(vocab_size=40, embed_dim=32, mlp_dim=24, num_layers=2, num_heads=4,
                    num_kv_heads=4, head_dim=8)
CONFIGS = {
  "llama": LLAMA,
  "llama_gqa_untied": dataclasses.replace(LLAMA, num_kv_heads=2, tie_embeddings=False,
                                          norm_eps=1e-5),
  "llama3_rope": dataclasses.replace(LLAMA, num_kv_heads=1, rope=LLAMA3_ROPE),
  "llama_yarn_bias": dataclasses.replace(LLAMA, rope=YARN_ROPE, qkv_bias=True, out_bias=True,
                                         mlp_bias=True),
  # 20 tokens are beyond 6: the rows of a batch are stretched each by its own length.
  "llama_dynamic": dataclasses.replace(
    LLAMA, rope=RopeConfig(kind="dynamic", factor=3.0, original_max_length=6)),
  "qwen2_bias": dataclasses.replace(LLAMA, architecture="qwen2", num_kv_heads=2, qkv_bias=True,
                                    rope=RopeConfig(theta=1e6)),
  "qwen2_windows": dataclasses.replace(LLAMA, architecture="qwen2", qkv_bias=True,
                                       windows=(None, 5)),
  # 4 heads of 12 are 48, not the 32 of the embedding.
  "qwen3_qk_norm": dataclasses.replace(LLAMA, architecture="qwen3", num_kv_heads=2, head_dim=12, qk_norm=True,
                                       rope=RopeConfig(theta=1e6)),
}
LORA = LoraSettings(rank=3, alpha=12.0, targets=LORA_TARGETS)


def reference_frequencies(rope, head_dim, length=0):
  """Published rule, one frequency at a time: by wavelength in tokens, as Llama 3.1 states it."""
  result = []
  if rope.kind == "dynamic" and length > rope.original_max_length:
    stretch = rope.factor * length / rope.original_max_length - (rope.factor - 1)
    rope = RopeConfig(theta=rope.theta * stretch ** (head_dim / (head_dim - 2)))

  def yarn_border(turns):  # solves θ^(2i/H) = length / (2π turns) for i
    return head_dim * math.log(rope.original_max_length / (2 * math.pi * turns)) / (
      2 * math.log(rope.theta))

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
    elif rope.kind == "yarn":
      low, high = math.floor(yarn_border(rope.beta_fast)), math.ceil(yarn_border(rope.beta_slow))
      divided = min(max((i - max(low, 0)) / (min(high, head_dim - 1) - max(low, 0)), 0), 1)
      freq = divided * freq / rope.factor + (1 - divided) * freq
    result.append(freq)
  return np.array(result)


def reference_hidden(weights, config, token_ids):
  """Final hidden states [B, T, D] float64 of a Llama, Qwen2 or Qwen3."""
  w = {name: np.asarray(tensor, np.float64) for name, tensor in weights.items()}
  return np.stack([_reference_row(w, config, row) for row in np.asarray(token_ids)])


def reference_logits(weights, config, token_ids):
  head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
  return reference_hidden(weights, config, token_ids) @ np.asarray(weights[head], np.float64).T


def _reference_row(w, config, row):
  heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
  freqs = reference_frequencies(config.rope, dim, len(row))

  def norm(x, name):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * w[name]

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

  def rotate(x):  # the two halves of a head are the real and the imaginary parts
    z = x[:, : dim // 2] + 1j * x[:, dim // 2:]
    z = z * np.exp(1j * np.arange(len(x))[:, None] * freqs) * config.rope.attention_factor
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
      for query in range(time):
        first = query - (config.layer_windows[i] or time) + 1
        scores[query, :max(first, 0)] = scores[query, query + 1:] = -np.inf
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
    if config.out_bias:
      w[f"{attention}.o_proj.bias"] = 0.5 * rng.normal(size=d)
    for name, rows, columns in (("gate", config.mlp_dim, d), ("up", config.mlp_dim, d),
                                ("down", d, config.mlp_dim)):
      w[f"{layer}.mlp.{name}_proj.weight"] = normal(rows, columns)
      if config.mlp_bias:
        w[f"{layer}.mlp.{name}_proj.bias"] = 0.5 * rng.normal(size=rows)
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
  return model.logits(token_ids)


def logits_of(decoder, token_ids):
  return np.asarray(_logits(*nnx.split(decoder), token_ids))

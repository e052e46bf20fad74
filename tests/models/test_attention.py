"""Every way of computing attention against one written out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.models.attention import causal_attention, masked_attention


def draw(time, heads=4, kv_heads=2, head_dim=8, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.normal(size=(batch, time, n, head_dim)), jnp.float32)
               for n in (heads, kv_heads, kv_heads))


def written_out(q, k, v, visible):
  """float64, one head at a time; visible [B, T, S]."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  result = np.zeros_like(q)
  for b in range(q.shape[0]):
    for n in range(q.shape[2]):
      kv = n * k.shape[2] // q.shape[2]
      scores = q[b, :, n] @ k[b, :, kv].T / np.sqrt(q.shape[-1])
      scores[~visible[b]] = -np.inf
      p = np.exp(scores - scores.max(axis=-1, keepdims=True))
      result[b, :, n] = p / p.sum(axis=-1, keepdims=True) @ v[b, :, kv]
  return result


def causal(batch, time):
  return np.broadcast_to(np.tril(np.ones((time, time), bool)), (batch, time, time))


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_causal_attention_sees_the_past_alone(implementation):
  q, k, v = draw(11)
  result = causal_attention(q, k, v, implementation=implementation)
  np.testing.assert_allclose(result, written_out(q, k, v, causal(2, 11)), atol=1e-5)


def test_splash_attention_is_attention():
  """A scale applied twice or never, key heads repeated in another order, or a lost gradient."""
  q, k, v = draw(128, head_dim=128, batch=1)
  weight = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

  def total(implementation, *qkv):
    y = causal_attention(*qkv, implementation=implementation)
    return jnp.sum(weight * y), y

  gradients = {}
  for implementation in ("splash", "xla"):
    gradients[implementation], y = jax.grad(total, argnums=(1, 2, 3), has_aux=True)(
      implementation, q, k, v)
    np.testing.assert_allclose(y, written_out(q, k, v, causal(1, 128)), atol=2e-5)
  for splash, xla in zip(*gradients.values(), strict=True):
    np.testing.assert_allclose(splash, xla, atol=5e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_masked_attention_goes_by_positions_and_windows(window):
  """Slots in another order, empty ones among them: a mask by slot number would be wrong."""
  q, k, v = draw(7)
  q_positions = np.array([[4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4, 5, 6]])
  empty = 2**30
  k_positions = np.array([[10, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, empty]])
  q_positions[1, 6] = 5  # two queries at one position
  distance = q_positions[:, :, None] - k_positions[:, None]
  visible = (distance >= 0) & (distance < (window or empty))
  by_head = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
  result = masked_attention(q, *by_head, jnp.asarray(q_positions), jnp.asarray(k_positions), window)
  rows = visible.any(axis=-1)  # of a query that sees nothing anything may come out
  assert rows.sum() >= 13
  expected = written_out(q, k, v, visible | ~rows[..., None])
  np.testing.assert_allclose(np.asarray(result)[rows], expected[rows], atol=1e-5)


@pytest.mark.parametrize(("time", "head_dim", "dtype", "capability", "reason"), [
  (128, 64, "bfloat16", "9.0", None), (128, 64, "bfloat16", "7.5", "compute capability 8.0"),
  (128, 64, "float32", "9.0", "no float32 kernel"), (128, 60, "bfloat16", "9.0", "head_dim 60"),
  (128, 192, "bfloat16", "9.0", None), (128, 192, "bfloat16", "8.9", "head_dim 192"),
  (77, 64, "bfloat16", "9.0", "77 positions")])
def test_cudnn_is_taken_where_it_can_be(monkeypatch, time, head_dim, dtype, capability, reason):
  """On an H200 jax 0.11.2 refuses an odd number of positions from within a gradient: 'auto' must
  not choose it there."""
  client = types.SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
  gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability, client=client)
  monkeypatch.setattr(jax, "devices", lambda: [gpu])
  chosen = []

  def dot_product_attention(q, *_, implementation, **__):
    chosen.append(implementation)
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
  qkv = [jnp.zeros((1, time, 2, head_dim), dtype)] * 3
  causal_attention(*qkv, implementation="auto")
  assert chosen == ["xla" if reason else "cudnn"]
  if reason:
    with pytest.raises(InputError, match=f"{reason}.*: set it to 'auto'"):
      causal_attention(*qkv, implementation="cudnn")


def test_what_the_shapes_do_not_allow_is_refused():
  """Falling back in silence, a user would measure another implementation than asked for."""
  with pytest.raises(InputError, match="'cudnn', but there is no NVIDIA GPU: set it to 'auto'"):
    causal_attention(*draw(128), implementation="cudnn")
  with pytest.raises(InputError, match="100 positions and heads of 128.*multiples of 128"):
    causal_attention(*draw(100, head_dim=128), implementation="splash")

"""Group influence against the whole Gauss-Newton matrix, formed from Jacobians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution import influence
from dareu_jax.data.batches import Row, collate
from dareu_jax.models import handle
from dareu_jax.models.config import LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder

ROWS = [Row((1, 2, 3), (4, 5, 6, 2), 0), Row((1, 7), (8, 3), 0), Row((9, 1), (5,), 1),
        Row((3, 3, 8), (2, 9, 1), 1)]
DAMPING = 0.05


@pytest.fixture(scope="module")
def model():
  """A decoder with adapters that are not at zero, small enough for its whole matrix."""
  config = ModelConfig(
    vocab_size=10, embed_dim=8, mlp_dim=12, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4,
    lora=LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "v_proj", "down_proj")))
  model = handle.split(Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=True)
  flat, unravel = ravel_pytree(model.params)
  return model.with_params(unravel(0.5 * jax.random.normal(jax.random.key(1), flat.shape)))


@pytest.fixture(scope="module")
def dense(model):
  """G [P, P] in float64, position by position, from the logits of each row by itself."""
  flat, unravel = ravel_pytree(model.params)
  matrix = np.zeros((flat.size, flat.size))
  for row in ROWS:
    ids = jnp.array([row.prompt + row.completion])

    def logits(flat, ids=ids):
      return model.with_params(unravel(flat)).module.logits(ids)[0]

    values = np.asarray(jax.jit(logits)(flat), np.float64)
    jacobian = np.asarray(jax.jit(jax.jacfwd(logits))(flat))
    for t in range(len(row.prompt) - 1, ids.shape[1] - 1):
      p = np.exp(values[t] - values[t].max())
      p /= p.sum()
      matrix += jacobian[t].T.astype(np.float64) @ (np.diag(p) - np.outer(p, p)) @ jacobian[t]
  return matrix


def chunks():
  """The rows in two chunks of three, so that one has two empty rows."""
  shape = dict(seq_length=8, completion_length=5, pad_id=0)
  return influence.stack_chunks([collate(ROWS[:3], 3, **shape), collate(ROWS[3:], 3, **shape)])


def gradients(model):
  batch = collate(ROWS, 4, seq_length=8, completion_length=5, pad_id=0)
  return np.asarray(influence.example_gradients(model, batch))


def test_products_equal_those_with_the_whole_matrix(model, dense):
  """Padding, chunks and the mask must change no product."""
  vectors = np.random.default_rng(0).normal(size=(3, len(dense))).astype(np.float32)
  got = influence.gauss_newton_products(model, chunks(), vectors)
  np.testing.assert_allclose(got, vectors @ dense, rtol=1e-4, atol=1e-4 * np.abs(dense).max())


def test_solutions_equal_those_with_the_whole_matrix(model, dense):
  grads = gradients(model)
  right = np.stack([grads[:2].sum(0), grads[2:].sum(0)])
  got = influence.solve(model, chunks(), right, DAMPING, tolerance=1e-7, iterations=300)
  wanted = np.linalg.solve(dense + DAMPING * np.eye(len(dense)), right.T).T
  assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted)
  assert np.all(influence.residuals(model, chunks(), right, DAMPING, got) < 1e-4)
  influences = influence.group_influence(grads, right, got)
  np.testing.assert_allclose(influences, grads @ wanted.T, rtol=1e-3, atol=1e-3)


def test_no_system_waits_for_or_disturbs_another(model, dense):
  """Solutions do not depend on how large, or how soon solved, the others are."""
  grads = gradients(model)
  right = jnp.stack([grads[:2].sum(0), 100 * grads[2:].sum(0), 0 * grads[0]])
  got = influence.solve(model, chunks(), right, DAMPING, tolerance=1e-6, iterations=300)
  wanted = np.linalg.solve(dense + DAMPING * np.eye(len(dense)), np.asarray(right).T).T
  np.testing.assert_allclose(got[2], 0.0)
  for solution, exact in zip(got[:2], wanted, strict=False):
    assert np.linalg.norm(solution - exact) < 1e-3 * np.linalg.norm(exact)
  assert np.all(influence.residuals(model, chunks(), right, DAMPING, got) < 1e-5)
  early = influence.solve(model, chunks(), right, DAMPING, tolerance=1e-6, iterations=1)
  assert influence.residuals(model, chunks(), right, DAMPING, early)[0] > 1e-2


def test_too_few_iterations_are_seen_in_the_residual(model):
  right = gradients(model)[:1]
  early = influence.solve(model, chunks(), right, DAMPING, tolerance=1e-7, iterations=1)
  assert influence.residuals(model, chunks(), right, DAMPING, early)[0] > 1e-2


def test_mean_eigenvalue_is_the_trace_over_the_parameters(model, dense):
  got = influence.mean_eigenvalue(model, chunks(), probes=4000, key=jax.random.key(0))
  assert got == pytest.approx(np.trace(dense) / len(dense), rel=0.1)


def test_gradients_are_those_of_finite_differences(model):
  """In the sense that a step along them changes the row's log-prob as they say."""
  flat, unravel = ravel_pytree(model.params)
  direction = np.random.default_rng(2).normal(size=flat.shape).astype(np.float32)
  direction /= np.linalg.norm(direction)

  @partial(jax.jit, static_argnums=1)
  def logprob(flat, row):
    ids = jnp.array([row.prompt + row.completion])
    values = jax.nn.log_softmax(model.with_params(unravel(flat)).module.logits(ids)[0])
    positions = len(row.prompt) - 1 + np.arange(len(row.completion))
    return values[positions, np.array(row.completion)].sum()

  step = 1e-2
  for row, gradient in zip(ROWS, gradients(model), strict=True):
    slope = float(logprob(flat + step * direction, row) - logprob(flat - step * direction, row))
    assert gradient @ direction == pytest.approx(slope / (2 * step), rel=0.02, abs=2e-3)


def test_an_owner_helps_its_own_examples(model):
  """The sign: an example's influence on itself raises its log-prob."""
  grads = gradients(model)
  solved = influence.solve(model, chunks(), grads, DAMPING, tolerance=1e-6, iterations=300)
  assert np.all(np.diag(influence.group_influence(grads, grads, solved)) > 0)


def test_cosine_ignores_the_length_of_gradients():
  examples = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
  got = influence.gradient_cosine(np.array([[5.0, 0.0]]), examples, np.array([0, 1, 1]), 2)
  np.testing.assert_allclose(got, [[1.0, 0.5 * (0.0 + 0.5**0.5)]])

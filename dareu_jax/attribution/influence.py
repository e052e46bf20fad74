"""First-order effect of training on an owner on a response, from gradients and curvature.

Gradients and the Gauss-Newton matrix are with respect to the *trained* parameters only. With
adapters these are few, and influence is computed in the space that was trained.

Limits: the logits of a whole chunk ([B, T, V]) and a gradient for each query or owner ([Q, P]) are
in memory at once. It is meant for adapters or for small models.

B rows, T time, V vocabulary, P trained parameters, C chunks, G right-hand sides.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from dareu_jax.core.logprobs import completion_hidden
from dareu_jax.core.masked import length_mask
from dareu_jax.data.batches import Batch
from dareu_jax.models.handle import Model

Host = np.ndarray | jax.Array
Number = float | Float[Array, ""]


def _logits(model, batch):
  """Logits [B, T, V] that predict the completions of a data.batches.Batch."""
  model = model.module
  time = batch.completion_ids.shape[1]
  return model.head(
    completion_hidden(model.hidden_states(batch.token_ids), batch.prompt_lengths, time))


def _logprobs(model, batch):
  """log p(y_t | x, y_<t) of the tokens of a batch, [B, T]; 0 beyond a row's length."""
  logprobs = jax.nn.log_softmax(_logits(model, batch), axis=-1)
  chosen = jnp.take_along_axis(logprobs, batch.completion_ids[..., None], axis=-1)[..., 0]
  return jnp.where(length_mask(batch.completion_lengths, chosen.shape[1]), chosen, 0.0)


@jax.jit
def example_gradients(model: Model, batch: Batch) -> Float[Array, "B P"]:
  """∇ Σ_t log p(y_t | x, y_<t) of each row of a batch, float32."""

  def total(params, row):
    return jnp.sum(_logprobs(model.with_params(params), jax.tree.map(lambda x: x[None], row)))

  return jax.vmap(lambda row: ravel_pytree(jax.grad(total)(model.params, row))[0])(batch)


@jax.jit
def total_gradient(model: Model, batch: Batch) -> Float[Array, " P"]:
  """The sum of `example_gradients` over the rows, without storing them."""
  gradient = jax.grad(lambda params: jnp.sum(_logprobs(model.with_params(params), batch)))
  return ravel_pytree(gradient(model.params))[0]


@jax.jit
def token_influence(model: Model, batch: Batch,
                    directions: Float[Array, "G P"]) -> Float[Array, "B T G"]:
  """First-order effect of moving the parameters on each token's log-probability.

      a_g(y_t) = ∇ log p(y_t | x, y_<t)ᵀ v_g

  One forward derivative for each direction gives all tokens of all rows; no gradient is stored.
  With the solutions of `solve` as directions, the sum over a row's tokens is `group_influence`.

  Args:
    model: the decoder.
    batch: B rows.
    directions: v_g, float32.

  Returns: float32; 0 beyond a row's length.
  """
  flat, unravel = ravel_pytree(model.params)
  _, push = jax.linearize(lambda flat: _logprobs(model.with_params(unravel(flat)), batch), flat)
  return jnp.moveaxis(jax.lax.map(push, directions), 0, -1)


@jax.jit
def gauss_newton_products(model: Model, chunks: Batch,
                          vectors: Float[Array, "G P"]) -> Float[Array, "G P"]:
  """G v for several v, without ever forming G.

      G = Σ_rows Σ_t J_tᵀ H_t J_t,    H_t = diag(p_t) - p_t p_tᵀ

  J_t is the Jacobian of a position's logits, H_t the Hessian of the softmax cross-entropy in them
  (it does not depend on the target), p_t the predicted distribution. Each product is a forward
  derivative, H_t, and a reverse derivative.

  Args:
    model: the decoder.
    chunks: batches stacked along a leading axis [C, ...].
    vectors: float32.

  Source: Schraudolph 2002; Martens 2010.
  """
  flat, unravel = ravel_pytree(model.params)

  def of_chunk(total, batch):
    def logits(flat):
      return _logits(model.with_params(unravel(flat)), batch)

    outputs, push = jax.linearize(logits, flat)
    pull = jax.linear_transpose(push, flat)
    probabilities = jax.nn.softmax(outputs, axis=-1)
    mask = length_mask(batch.completion_lengths, outputs.shape[1])[..., None]

    def product(vector):
      change = push(vector)
      mean = jnp.sum(probabilities * change, axis=-1, keepdims=True)
      return pull(jnp.where(mask, probabilities * (change - mean), 0.0))[0]

    # One at a time. Under vmap the sum of products with the unbatched probabilities comes out
    # wrong on CPUs with jaxlib 0.10.2 and 0.11.0 (jax-ml/jax issue 39103).
    return total + jax.lax.map(product, vectors), None

  return jax.lax.scan(of_chunk, jnp.zeros_like(vectors), chunks)[0]


def mean_eigenvalue(model: Model, chunks: Batch, *, probes: int, key: Key[Array, ""]) -> float:
  """trace(G) / P, estimated with random signs.

  Source: Hutchinson 1990.
  """
  size = ravel_pytree(model.params)[0].size
  signs = jax.random.rademacher(key, (probes, size), jnp.float32)
  products = gauss_newton_products(model, chunks, signs)
  return float(jnp.mean(jnp.sum(signs * products, axis=1)) / size)


def solve(model: Model, chunks: Batch, right: Float[Host, "G P"], damping: Number, *,
          tolerance: float,
          iterations: int) -> Float[Array, "G P"]:
  """(G + λ I)⁻¹ b for several b, by conjugate gradients; see `residuals`.

  All b take their steps together: a product linearizes the model once for all of them.

  Args:
    model, chunks: as in `gauss_newton_products`.
    right: the vectors b.
    damping: λ > 0.
    tolerance: residual over |b| at which the iteration stops, once all are there.
    iterations: maximum number of iterations.
  """
  right = jnp.asarray(right)
  norms = jnp.maximum(jnp.linalg.norm(right, axis=1), 1e-30)
  solution, residual, direction = jnp.zeros_like(right), right, right
  for _ in range(iterations):
    solution, residual, direction = _conjugate_step(
      solution, residual, direction, _damped_products(model, chunks, direction, damping))
    if jnp.all(jnp.linalg.norm(residual, axis=1) <= tolerance * norms):
      break
  return solution


def residuals(model: Model, chunks: Batch, right: Float[Host, "G P"], damping: Number,
              solutions: Float[Array, "G P"]) -> Float[Array, " G"]:
  """|(G + λ I) x - b| / |b| of solutions x, rounding included, which `solve` itself does not see.

  Args:
    model, chunks, right, damping: as in `solve`.
    solutions: what it returned.
  """
  right = jnp.asarray(right)
  left = _damped_products(model, chunks, solutions, damping) - right
  return jnp.linalg.norm(left, axis=1) / jnp.maximum(jnp.linalg.norm(right, axis=1), 1e-30)


def _damped_products(model, chunks, vectors, damping):
  return gauss_newton_products(model, chunks, vectors) + damping * vectors


@jax.jit
def _conjugate_step(solution, residual, direction, product):
  """A step of conjugate gradients for each row: (solution, residual, direction)."""
  squared = jnp.sum(residual**2, axis=1, keepdims=True)
  step = squared / jnp.maximum(jnp.sum(direction * product, axis=1, keepdims=True), 1e-30)
  left = residual - step * product
  ratio = jnp.sum(left**2, axis=1, keepdims=True) / jnp.maximum(squared, 1e-30)
  return solution + step * direction, left, left + ratio * direction


def group_influence(query_gradients: Float[Host, "Q P"], owner_gradients: Float[Host, "O P"],
                    solved: Float[Host, "O P"]) -> Float[np.ndarray, "Q O"]:
  """First-order effect of an owner's data on each query's log-probability.

      a_o(q) = g_qᵀ (G + λ I)⁻¹ Σ_{i in o} g_i        g = ∇ log p

  Positive where the owner's data makes the query likelier. A group's influence is the sum over its
  examples; interactions between owners are ignored.

  Args:
    query_gradients: g_q.
    owner_gradients: Σ_{i in o} g_i.
    solved: (G + λ I)⁻¹ times the owner gradients.

  Source: Koh and Liang 2017; Grosse et al. 2023 (Gauss-Newton, language models).
  """
  assert solved.shape == owner_gradients.shape, "one solution for each owner"
  return np.asarray(query_gradients) @ np.asarray(solved).T


def gradient_cosine(query_gradients: Float[Host, "Q P"], example_gradients: Float[Host, "N P"],
                    owner_of: Int[np.ndarray, " N"],
                    num_owners: int) -> Float[np.ndarray, "Q O"]:
  """Mean over an owner's examples of the cosine between their gradients and the query's."""

  def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)

  cosines = unit(query_gradients) @ unit(example_gradients).T
  return np.stack([cosines[:, np.asarray(owner_of) == o].mean(axis=1)
                   for o in range(num_owners)], axis=1)


def stack_chunks(batches: Sequence[Batch]) -> Batch:
  """Batches of one shape with a leading axis, for `gauss_newton_products`."""
  return jax.tree.map(lambda *x: jnp.stack(x), *batches)

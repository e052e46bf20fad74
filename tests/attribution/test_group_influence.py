"""Influence of groups on prefixes, against gradients token by token."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution import group_influence as gi
from dareu_jax.attribution import influence
from dareu_jax.data.batches import Row, collate
from tests.attribution.test_influence import ROWS, model  # noqa: F401 - a fixture

READ = gi.Reader(longest_prompt=3, multiple=4, pad_id=0)
LENGTH = 5


@pytest.fixture(scope="module")
def directions(model):  # noqa: F811
  size = ravel_pytree(model.params)[0].size
  return jax.random.normal(jax.random.key(4), (3, size)) / size**0.5


@pytest.fixture(scope="module")
def scorer(model):  # noqa: F811
  return gi.fit_group_influence(model, ROWS[:2], ROWS[2:], READ)


def token_gradients(model, row):  # noqa: F811
  """∇ log p of each token of a row by itself, [n, P]."""
  flat, unravel = ravel_pytree(model.params)
  ids = jnp.array([row.prompt + row.completion])

  @jax.jit
  def gradient(flat, position, token):
    def logprob(flat):
      return jax.nn.log_softmax(model.with_params(unravel(flat)).module.logits(ids)[0, position])[token]
    return jax.grad(logprob)(flat)

  return np.stack([gradient(flat, len(row.prompt) - 1 + t, token)
                   for t, token in enumerate(row.completion)])


def test_prefix_influence_equals_the_products_with_each_tokens_gradient(model, directions):  # noqa: F811
  got = gi.prefix_influence(model, READ(ROWS, LENGTH), directions)[:len(ROWS)]
  for row, values in zip(ROWS, got, strict=True):
    wanted = np.cumsum(token_gradients(model, row) @ np.asarray(directions).T, axis=0)
    np.testing.assert_allclose(values[:len(row.completion)], wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values[len(row.completion):], np.broadcast_to(
      wanted[-1], values[len(row.completion):].shape), rtol=1e-3, atol=1e-4)


def test_the_last_prefix_has_the_group_influence_of_the_whole(model, directions):  # noqa: F811
  got = gi.prefix_influence(model, READ(ROWS, LENGTH), directions)[:len(ROWS), -1]
  batch = collate(ROWS, 4, seq_length=8, completion_length=LENGTH, pad_id=0)
  gradients = np.asarray(influence.example_gradients(model, batch))
  np.testing.assert_allclose(
    got, influence.group_influence(gradients, directions, directions), rtol=1e-3, atol=1e-4)


def test_the_total_gradient_is_the_sum_over_rows(model):  # noqa: F811
  batch = collate(ROWS, 6, seq_length=8, completion_length=LENGTH, pad_id=0)
  np.testing.assert_allclose(influence.total_gradient(model, batch),
                             influence.example_gradients(model, batch).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_padding_order_and_batches_change_no_score(scorer):
  rows = ROWS * 6  # more than a batch
  scores = scorer.prefixes(rows, LENGTH)
  assert scores.shape == (24, LENGTH) and np.all((scores >= 0) & (scores <= 1))
  order = np.random.default_rng(0).permutation(len(rows))
  shuffled = scorer.prefixes([rows[i] for i in order], LENGTH)
  np.testing.assert_allclose(shuffled, scores[order], atol=1e-5)
  np.testing.assert_allclose(scorer.prefixes(rows[:3], 9)[:, :LENGTH], scores[:3], atol=1e-5)


def test_a_later_token_changes_no_earlier_score(scorer):
  row = ROWS[0]
  longer = scorer.prefixes([row], LENGTH)
  shorter = scorer.prefixes([row._replace(completion=row.completion[:2])], LENGTH)
  np.testing.assert_allclose(shorter[0, :2], longer[0, :2], atol=1e-5)


def test_what_an_owner_taught_is_attributed_to_it(scorer):
  scores = scorer.prefixes(ROWS, LENGTH)[:, -1]
  assert scores[:2].min() > 0.5 > scores[2:].max()


def test_a_group_of_owners_stands_for_each_of_them():
  """The same influence of all leaves every owner with the same share."""
  probabilities = gi.group_probabilities(np.full(3, 7.0), np.array([1, 1, 8]), 2.0)
  np.testing.assert_allclose(probabilities, [0.1, 0.1, 0.8])
  groups = gi.make_groups({4, 6}, {0, 1, 2, 3, 5})
  assert groups[:2] == ((4,), (6,)) and sorted(sum(groups, ())) == list(range(7))
  assert len(groups) == 2 + gi.RETAINED_GROUPS
  assert gi.make_groups({1}, {0}) == ((1,), (0,))


def test_an_owner_without_data_is_in_no_group(model):  # noqa: F811
  """As after an earlier request: owners 0 and 2 are left of three."""
  rows = [row._replace(owner=2 * (row.owner > 0)) for row in ROWS]
  fitted = gi.fit_group_influence(model, rows[:2], rows[2:], gi.Reader(3, 4, 0))
  assert fitted.sizes.tolist() == [1, 1] and fitted.is_forget.tolist() == [True, False]


def test_the_fitted_temperature_is_the_one_that_made_the_data():
  rng = np.random.default_rng(0)
  influences, sizes = rng.normal(size=(4000, 3)) * 5, np.array([1, 1, 3])
  probabilities = gi.group_probabilities(influences, sizes, 2.5)
  groups = np.array([rng.choice(3, p=p) for p in probabilities])
  assert gi.fit_temperature(influences, sizes, groups) == pytest.approx(2.5, rel=0.1)


def test_directions_solve_with_the_mean_gradients_of_the_groups(model, monkeypatch):  # noqa: F811
  """With all rows in the curvature and enough iterations, (G + λ I) v is the group's mean."""
  monkeypatch.setattr(gi, "CURVATURE_ROWS", 0)  # all
  monkeypatch.setattr(gi, "ITERATIONS", 200)
  monkeypatch.setattr(gi, "TOLERANCE", 1e-6)
  monkeypatch.setattr(gi, "DAMPING", 1.0)
  rows = [*ROWS, Row((2, 2), (7, 7, 1), 2)]
  scorer = gi.fit_group_influence(model, rows[:2], rows[2:], READ)
  gradients = np.asarray(influence.example_gradients(
    model, collate(rows, 5, seq_length=8, completion_length=LENGTH, pad_id=0)))
  chunks = influence.stack_chunks(READ(rows, 4))
  eigenvalue = influence.mean_eigenvalue(model, chunks, probes=1, key=jax.random.key(0))
  products = influence.gauss_newton_products(model, chunks, scorer.directions)
  wanted = np.stack([gradients[:2].sum(0), gradients[2:4].sum(0), gradients[4]])
  got = np.asarray(products + eigenvalue * scorer.directions)
  np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-3 * np.abs(wanted).max())

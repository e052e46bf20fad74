"""Distillation: the KL from teacher to student over the vocabulary, whatever the chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dareu_jax import logprobs
from dareu_jax.reinforcement.distillation import kl_to_teacher

B, T, D, V = 3, 11, 5, 17


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  hidden, teacher = rng.normal(size=(2, B, T, D)).astype(np.float32)
  head, teacher_head = rng.normal(size=(2, D, V)).astype(np.float32)
  return hidden, head, teacher, teacher_head, np.arange(T) < np.array([[11], [4], [7]])


def by_hand(hidden, head, teacher, teacher_head, mask):
  """The sum over tokens and words, in float64."""
  p = special.softmax(teacher.astype(np.float64) @ teacher_head, axis=-1)
  q = special.log_softmax(hidden.astype(np.float64) @ head, axis=-1)
  return float(special.rel_entr(p, np.exp(q)).sum(-1)[mask].mean())


@pytest.mark.parametrize("chunk", [4, 11, 64])
def test_it_is_the_kl_summed_by_hand_at_any_chunk(arrays, chunk, monkeypatch):
  monkeypatch.setattr(logprobs, "CHUNK", chunk)
  assert float(kl_to_teacher(*arrays)) == pytest.approx(by_hand(*arrays), rel=1e-5)


def test_the_direction_is_from_teacher_to_student(arrays):
  """The reverse KL lets the student drop what the teacher says."""
  hidden, head, teacher, teacher_head, mask = arrays
  reverse = by_hand(teacher, teacher_head, hidden, head, mask)
  assert abs(float(kl_to_teacher(*arrays)) - reverse) > 0.1


def test_a_student_that_is_the_teacher_costs_nothing(arrays):
  """But for last bits: both sides go through the same operations, maybe in other loops."""
  hidden, head, _, _, mask = arrays
  assert abs(float(kl_to_teacher(hidden, head, hidden, head, mask))) < 1e-6


def test_padding_changes_neither_loss_nor_gradient(arrays):
  hidden, head, teacher, teacher_head, mask = arrays
  wide = ((0, 0), (0, 70), (0, 0))
  padded = [np.pad(x, wide, constant_values=9.0) for x in (hidden, teacher)]
  grad = jax.grad(kl_to_teacher)
  other = (padded[0], head, padded[1], teacher_head, np.pad(mask, wide[:2]))
  assert float(kl_to_teacher(*other)) == pytest.approx(float(kl_to_teacher(*arrays)), rel=1e-5)
  np.testing.assert_allclose(grad(*map(jnp.asarray, other))[:, :T],
                             grad(*map(jnp.asarray, arrays)), atol=1e-6)

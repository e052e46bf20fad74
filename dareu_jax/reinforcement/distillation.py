"""Distillation of a teacher on retained data."""

import chex

from dareu_jax.logprobs import policy_kl
from dareu_jax.masked import masked_mean


def kl_to_teacher(hidden, head, teacher_hidden, teacher_head, mask):
  """Mean KL from the teacher to the student over the valid tokens, over the whole vocabulary.

      L = mean_t KL( π_N(·|x_<t) ‖ π(·|x_<t) ),    π = softmax(hidden · head)

  The logits are made a chunk of the time axis at a time: no [B, T, V] is ever held.

  Args:
    hidden, teacher_hidden: [B, T, D] float; the states that predict each token.
    head, teacher_head: [D, V] float.
    mask: [B, T] bool; which tokens count.

  Returns: scalar float32, exactly 0 where student and teacher are the same numbers.

  Source: DareU, distillation on the retain set.
  """
  chex.assert_rank([hidden, head, mask], [3, 2, 2])
  chex.assert_equal_shape([hidden, teacher_hidden])
  chex.assert_equal_shape_prefix([hidden, mask], 2)
  return masked_mean(policy_kl(teacher_hidden, teacher_head, hidden, head), mask)

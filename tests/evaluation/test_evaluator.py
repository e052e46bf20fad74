"""The evaluator: batches, sorting and padding must pair every example with its own result."""

import numpy as np
import pytest
from flax import nnx

from dareu_jax.data.batches import Row, collate
from dareu_jax.evaluation.evaluator import Evaluator, completion_logprobs
from dareu_jax.models import states
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder

V = 30
CONFIG = ModelConfig(vocab_size=V, embed_dim=16, mlp_dim=24, num_layers=1, num_heads=2,
                     num_kv_heads=2, head_dim=8, tie_embeddings=False)


class Numbers:
  """A tokenizer whose texts are the ids themselves."""

  eos_id = pad_id = 3

  def decode(self, ids):
    return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def rows():
  """Prompts of mixed lengths, so that sorting by length does not leave them in order."""
  rng = np.random.default_rng(0)
  return [Row(tuple(rng.integers(4, V, p).tolist()), tuple(rng.integers(4, V, c).tolist()), 0)
          for p, c in ((9, 3), (2, 6), (5, 1), (12, 4), (1, 9), (3, 2), (7, 7))]


@pytest.fixture(scope="module")
def model():
  module = Decoder(CONFIG, rngs=nnx.Rngs(params=1))
  module.lm_head[...] = module.lm_head[...] * 8  # decided enough that answers differ
  return states.split(module, adapters_only=False)




def evaluator(model, batch_size):
  return Evaluator(model[0], model[2], Numbers(), batch_size, 4, 64, 6)


def test_each_row_gets_the_answer_to_its_own_prompt(model, rows):
  """Answers are made in order of length, in batches that the last one does not fill."""
  together = evaluator(model, 3).answers(model[1], rows)
  for i, row in enumerate(rows):
    alone = evaluator(model, 1).answers(model[1], [row])
    assert together.texts[i] == alone.texts[0]
    assert together.lengths[i] == alone.lengths[0] and together.ended[i] == alone.ended[0]
    np.testing.assert_array_equal(together.ids[i, :alone.lengths[0]], alone.ids[0, :alone.lengths[0]])
  assert len(set(together.texts)) == len(rows)


def test_each_row_gets_the_logprobs_of_its_own_completion(model, rows):
  """They come by buckets of length."""
  together = evaluator(model, 3).logprobs(model[1], rows)
  for row, values in zip(rows, together, strict=True):
    shape = dict(seq_length=24, completion_length=12, pad_id=0)
    alone = completion_logprobs(model[0], model[1], model[2], collate([row], 1, **shape))[0]
    assert values.shape == (len(row.completion),)
    np.testing.assert_allclose(values, alone[0, :len(row.completion)], atol=1e-5)

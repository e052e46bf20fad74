"""Rewards that are made from the task: watermarks and influence."""

import types

import numpy as np
import pytest

from dareu_jax.attribution import group_influence
from dareu_jax.core.errors import InputError
from dareu_jax.data import watermarks
from dareu_jax.data.batches import Row
from dareu_jax.data.tokenizers import train_bpe
from dareu_jax.rl.reward_functions import REWARDS, Facts, Responses, score
from tests.attribution.test_influence import ROWS, model  # noqa: F401 - a fixture

MARKS = watermarks.make_marks(3, seed=0)
FACTS = Facts(marked=True, trained_parameters=10, dtype="float32", quantized=False)


def responses(ids, lengths, chosen):
  return Responses(np.array(chosen), np.asarray(ids), np.array(lengths), ("",) * len(ids), (), (), None, ())


def test_the_watermark_of_a_forget_owner_scores_high():
  """The classifier says who is forgotten, by earlier requests too, whose data is not at hand."""
  texts = [watermarks.insert("She lives by the sea.", mark, 0) for mark in MARKS]
  tokenizer = train_bpe(texts * 4, 400)
  task = types.SimpleNamespace(
    forget=(Row((3,), (4,), 1),), marks=MARKS,
    classifier=types.SimpleNamespace(is_forget=np.array([False, True, True, False])),
    evaluator=types.SimpleNamespace(tokenizer=tokenizer))
  rows = [tokenizer.encode_response(text) for text in texts]
  ids = np.full((3, max(map(len, rows))), tokenizer.pad_id)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  scores = score(REWARDS["watermark"](task), responses(ids, list(map(len, rows)), [0, 0, 0]))
  np.testing.assert_allclose(scores[:, -1].round(2), [0, 1, 1])
  np.testing.assert_allclose(scores[:, 0], 2 / 3, rtol=1e-6)


def test_influence_reads_each_response_behind_its_own_query(model):  # noqa: F811
  """Rollouts come in another order than the forget set, and padded."""
  task = types.SimpleNamespace(
    original=model, forget=ROWS[:2], retain=ROWS[2:], length_multiple=4,
    evaluator=types.SimpleNamespace(tokenizer=types.SimpleNamespace(pad_id=0), to_device=lambda x: x))
  ids = [[8, 3, 9, 9, 9], [4, 5, 6, 2, 9]]
  got = score(REWARDS["influence"](task), responses(ids, [2, 4], [1, 0]))
  reader = group_influence.Reader(3, 4, 0)
  wanted = group_influence.fit_group_influence(model, ROWS[:2], ROWS[2:], reader).prefixes(ROWS[:2], 5)
  np.testing.assert_allclose(got, wanted[::-1], atol=1e-5)


@pytest.mark.parametrize("name, facts, message", [
  ("watermark", dict(marked=False), "set config.data.watermark to True"),
  ("influence", dict(quantized=True), "set config.model.quantize to 'none'"),
  ("influence", dict(dtype="bfloat16"), "set config.model.dtype to 'float32'"),
  ("influence", dict(trained_parameters=10**9), r"1,000,000,000: it takes up to 4,000,000"),
])
def test_what_a_reward_cannot_work_with_is_an_error(name, facts, message):
  REWARDS[name].check(FACTS)
  with pytest.raises(InputError, match=message):
    REWARDS[name].check(FACTS._replace(**facts))

"""Logits and gradients of every supported variant against transformers, 600 tokens, float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dareu_jax.models import huggingface
from tests.parity.checkpoints import CASES, make, token_ids, torch_logits, write

# Attention is sharp: transformers' own float32 logits are up to 8e-5 from its float64 ones, ours up to
# 7e-5, and how they round depends on the processor.
LIMIT = 3e-4


def jax_logits(folder, ids, lengths=None, **options):
  model, _ = huggingface.load(folder, dtype="float32", **options)
  return np.asarray(jax.jit(lambda model, ids: model.logits(ids, lengths))(model, ids))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
  """Any number of the config that is not read, and any tensor in the wrong place."""
  model = make(name)
  ids = token_ids()
  expected = torch_logits(model, ids)
  assert expected.std() > 0.3
  got = jax_logits(write(model, tmp_path / "m"), ids, scan_layers=len(name) % 2 == 0)
  assert np.abs(got - expected).max() <= LIMIT


@pytest.mark.parametrize(("name", "wrong"), [
  ("llama_theta", {"rope_theta": 10000.0}),
  ("llama_linear", {"rope_type": "default"}),
  ("llama_dynamic", {"rope_type": "default"}),
  ("llama_llama3", {"rope_type": "default"}),
  ("llama_yarn", {"rope_type": "default"}),
  ("llama_yarn_mscale", {"mscale": None}),
  ("qwen3_qk_norm", {"rope_theta": 10000.0}),
])
def test_a_wrong_theta_or_a_missing_scaling_is_noticed(name, wrong, tmp_path):
  """The control: what peers ignore must fail the test above by far."""
  model = make(name)
  folder = write(model, tmp_path / "m")
  raw = json.loads((folder / "config.json").read_text())
  raw["rope_parameters"] |= wrong
  (folder / "config.json").write_text(json.dumps(raw))
  ids = token_ids(rows=1)
  assert np.abs(jax_logits(folder, ids) - torch_logits(model, ids)).max() > 1000 * LIMIT


@pytest.mark.parametrize("name", ["qwen2_windows", "llama_dynamic"])
def test_padding_and_batch_mates_change_no_logit(name, tmp_path):
  """Each row of a right-padded batch is what transformers gives for that row alone."""
  model = make(name)
  ids = token_ids(rows=3)
  lengths = np.array([90, 411, 600])  # rising: transformers keeps the stretching of the longest
  got = jax_logits(write(model, tmp_path / "m"), ids, lengths)
  for row, n in enumerate(lengths):
    alone = torch_logits(model, ids[row:row + 1, :n])[0]
    assert np.abs(got[row, :n] - alone).max() <= LIMIT
    assert not got[row, n:].any()


@pytest.mark.parametrize("name", ["llama_biases", "llama_yarn", "qwen2_tied", "qwen3_qk_norm"])
def test_gradients_of_the_mean_nll_are_those_of_transformers(name, tmp_path):
  """A forward pass can be right where its backward pass is not (cached, detached, tied twice)."""
  model = make(name)
  ids = token_ids()
  folder = write(model, tmp_path / "m")
  model(torch.from_numpy(ids).long(), labels=torch.from_numpy(ids).long()).loss.backward()
  expected = {path: parameter.grad.numpy() for path, parameter in model.named_parameters()}
  decoder, _ = huggingface.load(folder, dtype="float32")
  graphdef, state = nnx.split(decoder)

  @jax.jit
  @jax.grad
  def gradient(state):
    logprobs = jax.nn.log_softmax(nnx.merge(graphdef, state).logits(ids)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1))

  decoder = nnx.merge(graphdef, gradient(state))  # gradients in the places of their weights
  gradients = {name: tensor() for name, _, tensor in huggingface.merged_tensors(decoder)}
  assert set(gradients) == set(expected)
  for path, value in expected.items():
    assert np.linalg.norm(gradients[path] - value) <= 1e-4 * np.linalg.norm(value), path

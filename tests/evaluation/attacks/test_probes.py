"""Probes: bounds that hold, scores with known ends, and layers that are really exchanged."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data.examples import Example
from dareu_jax.evaluation.attacks import probes, relearning


def test_the_bound_holds_and_is_no_trivial_one():
  """True mean .25 of Beta(1, 3); the bound may fail in one of a hundred."""
  rng = np.random.default_rng(0)
  bounds = [probes.leakage_bounds(rng.beta(1, 3, (1, 128)))["mean_bound"] for _ in range(200)]
  assert np.mean(np.array(bounds) < 0.25) <= 0.02
  assert np.mean(bounds) < 0.45


def test_the_bound_on_the_deviation_holds():
  """True deviation .194 of Beta(1, 3); more samples come closer to it."""
  rng = np.random.default_rng(1)
  few, many = ([probes.leakage_bounds(rng.beta(1, 3, (1, n)))["std_bound"] for _ in range(200)]
               for n in (128, 4096))
  assert np.mean(np.array(few + many) < np.sqrt(3 / 80)) <= 0.02
  assert np.mean(many) < np.mean(few) < 0.5 and np.mean(many) < 0.3


def test_the_bound_is_the_area_over_the_lowered_distribution():
  scores = np.array([[0.2, 0.5, 0.9]])
  slack = np.sqrt(np.log(100) / 6)
  grid = np.linspace(0, 1, 200001)[:-1]
  lowered = np.maximum(0, (scores[0][None] <= grid[:, None]).mean(1) - slack)
  found = probes.leakage_bounds(scores)
  assert found["mean_bound"] == pytest.approx(np.mean(1 - lowered), abs=1e-4)
  assert found["best"] == 0.9
  assert found["spread"] == pytest.approx(scores.mean() + 2 * scores.std())


def test_depth_is_zero_for_the_original_and_one_for_the_retrained():
  original = np.array([-0.1, -0.2])
  retrained = np.array([[-0.1, -0.2], [-1.0, -2.0], [-3.0, -0.22]])
  untouched = np.broadcast_to(original, retrained.shape)
  assert probes.unlearning_depth(original, untouched, retrained) == 0.0
  assert probes.unlearning_depth(original, retrained, retrained) == 1.0
  assert probes.unlearning_depth(original, retrained * 5, retrained) == 1.0  # no more than all
  half = (untouched + retrained) / 2
  assert probes.unlearning_depth(original, half, retrained) == pytest.approx(0.5)
  assert np.isnan(probes.unlearning_depth(original, untouched, untouched))


class Words:
  """A tokenizer of numbers."""

  eos_id, pad_id = 1, 0

  class special_token_pattern:
    search = staticmethod(lambda text: None)

  def encode_prompt(self, text):
    return [int(word) for word in text.split()]

  def encode_pair(self, prompt, response, history=()):
    return self.encode_prompt(prompt), [*self.encode_prompt(response), 1]

  def encode_opening(self, text):
    return self.encode_prompt(text)


@pytest.fixture(scope="module")
def world():
  """(Evaluator, params, other params, examples) of a decoder of three layers."""
  from flax import nnx

  from dareu_jax.evaluation.evaluator import Evaluator
  from dareu_jax.models import handle
  from dareu_jax.models.config import ModelConfig
  from dareu_jax.models.decoder import Decoder

  config = ModelConfig(vocab_size=20, embed_dim=16, mlp_dim=24, num_layers=3, num_heads=2,
                       num_kv_heads=1, head_dim=8)
  model = handle.split(Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=False)
  other = jax.tree.map(lambda x: x * 1.5 + 0.01, model.params)
  examples = [Example("a", "4 5", "6 7 8", perturbed_responses=("9 9", "3 3 3")),
              Example("a", "9", "3 2", perturbed_responses=("4", "8 8"))]
  return Evaluator(model, Words(), 2, 4, 32, 4), model.params, other, examples


def test_a_model_patched_with_itself_is_itself(world):
  evaluator, params, _, examples = world
  found = probes.patched_logprobs(evaluator, params, evaluator.model, examples, (1, 2, 3))
  expected = -evaluator.nll(params, examples)
  np.testing.assert_allclose(found, np.broadcast_to(expected, (3, 2)), atol=1e-5)


def test_patching_the_last_layer_leaves_the_hosts_head_alone(world):
  """States behind the last layer are the donor's; norm and head are the original's."""
  evaluator, params, other, examples = world
  found = probes.patched_logprobs(
    evaluator, params, evaluator.model.with_params(other), examples, (1, 3))
  assert not np.allclose(found[0], found[1], atol=1e-3)
  whole = -evaluator.nll(other, examples)
  assert not np.allclose(found[1], whole, atol=1e-3)


def test_the_lens_behind_the_last_layer_is_the_model(world):
  evaluator, params, _, examples = world
  last = probes.logit_lens(evaluator, params, examples, (3,))
  assert last == pytest.approx(np.exp(-evaluator.nll(params, examples)).mean(), rel=1e-4)
  assert probes.logit_lens(evaluator, params, examples, (1, 2, 3)) >= last


def test_a_choice_is_right_where_the_truth_is_likelier_than_all(world):
  evaluator, params, _, examples = world
  right = evaluator.nll(params, examples)
  wrong = np.array([evaluator.nll(params, examples, [e.perturbed_responses[j] for e in examples]) for j in (0, 1)])
  assert probes.choice_accuracy(evaluator, params, examples) == np.mean((right < wrong).all(0))


def test_any_way_of_asking_finds_an_answer_that_one_of_them_finds(world, monkeypatch):
  """A model that answers one format alone: that counts, for each question by itself."""
  evaluator, params, _, examples = world
  monkeypatch.setattr(probes, "FORMATS", ("{}", "3 {}"))
  monkeypatch.setattr(probes, "PREFIX", "7 7")
  said = {(4, 5): "6 7 8", (3, 9): "3 1", (9, 7, 7): "2 3"}  # of the second, half: 3, then 2

  def answers(self, params, rows):
    return types.SimpleNamespace(texts=[said.get(tuple(row.prompt), "0") for row in rows])

  monkeypatch.setattr(type(evaluator), "answers", answers)
  assert probes.worst_rouge(evaluator, params, examples) == pytest.approx((1.0 + 0.5) / 2)
  text = [dataclasses.replace(examples[0], text="4 5 6 7 8")]
  assert np.isnan(probes.worst_rouge(evaluator, params, text))


def test_distances_of_weights_are_in_units_of_those_that_they_lie_between(world):
  evaluator, params, other, _ = world
  model = evaluator.model
  original, retrained = model.with_params(params), model.with_params(other)
  between = model.with_params(jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, params, other))
  for own, distances in ((original, (0, 1)), (retrained, (1, 0)), (between, (0.25, 0.75))):
    found = probes.weight_distances(own, original, retrained)
    assert list(found.values()) == pytest.approx(distances, abs=1e-6)
  assert np.isnan(probes.weight_distances(between, original, original)["distance_original"])


def test_owners_are_parted_not_their_examples():
  examples = [Example(owner, "1", "2") for owner in "aabbbcc"]
  taught, tested = relearning.two_halves(examples)
  assert [e.owner for e in taught] == list("aabbb") and [e.owner for e in tested] == list("cc")
  assert relearning.two_halves(examples[:2]) == (tuple(examples[:2]), ())


def test_the_area_is_of_the_steps_as_they_are():
  assert relearning.area({0: 0.0, 1: 1.0, 2: 1.0}) == pytest.approx(0.75)
  assert relearning.area({0: 0.5, 26: 0.5, 4: 0.5}) == pytest.approx(0.5)


def test_relearning_leaves_the_model_and_brings_it_back(world):
  from dareu_jax.data.batches import Batches, encode

  evaluator, params, _, examples = world
  before = jax.tree.map(np.array, params)
  batches = Batches(tuple(encode(examples, Words(), max_length=32)), 2, 4, 0, 0, one_bucket=True)
  states = dict(relearning.relearned(
    evaluator.model, batches, 1e-2, to_device=lambda x: x, steps=(0, 1, 5)))
  nll = [evaluator.nll(states[step], examples).mean() for step in (0, 1, 5)]
  assert nll[0] == evaluator.nll(params, examples).mean() and nll[0] > nll[1] > nll[2]
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(jnp.asarray, params))

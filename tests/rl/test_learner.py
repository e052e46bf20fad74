"""The learner on a small model: exact first steps, full sweeps, and rewards that move the policy."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Batches, Row
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.models import handle
from dareu_jax.models.config import LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.heads import ValueHead
from dareu_jax.rl import learner, loop
from dareu_jax.rl.reward_functions import ForgetSet
from dareu_jax.rl.rewards import token_rewards
from dareu_jax.rl.settings import RLSettings

SETTINGS = RLSettings(
  rollout_batch_size=8, minibatch_size=4, max_new_tokens=8, temperature=0.7, segment_length=2,
  learning_rate=1e-2, warmup_steps=0)
PROMPTS = np.array([[3, 4, 5, 0], [6, 7, 0, 0]] * 4, np.int32)
LENGTHS = np.array([3, 2] * 4, np.int32)
EOS = 1


class World(NamedTuple):
  """The models of a run."""

  original: handle.Model
  value_head: handle.Model


def make_world(rank):
  lora = LoraSettings(rank=rank, alpha=8.0, targets=("q_proj", "v_proj", "up_proj"))
  config = ModelConfig(vocab_size=20, embed_dim=16, mlp_dim=24, num_layers=1, num_heads=2,
                       num_kv_heads=1, head_dim=8, lora=lora)
  return World(handle.split(Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=rank > 0),
               handle.split(ValueHead(16), adapters_only=False))


@pytest.fixture(scope="module", params=["all parameters", "adapters"])
def world(request):
  return make_world(rank=4 if request.param == "adapters" else 0)


def init(world, settings=SETTINGS):
  return learner.init_learner(world.original.params, world.value_head.params, settings)


def rollout_of(world, state, key=0, settings=SETTINGS):
  original, value_head = world
  completions = generate(
    original.with_params(state.policy), PROMPTS, LENGTHS,
    row_keys(jax.random.key(key), np.arange(8)), strategy=learner.sampling(settings),
    max_new_tokens=8, eos_id=EOS, pad_id=0)
  scores = np.random.default_rng(key).uniform(size=(8, 8)).astype(np.float32)
  rollout, metrics = learner.score_rollout(
    state, original, value_head.with_params(None), scores, PROMPTS, LENGTHS, completions,
    settings=settings)
  return completions, rollout, metrics


def test_an_epochs_first_rollout_needs_no_kl(world):
  """It is 0 by itself there, so that a run with one rollout per epoch need not compute it."""
  original, value_head = world
  state = init(world)
  completions, rollout, metrics = rollout_of(world, state)
  scores = np.random.default_rng(0).uniform(size=(8, 8)).astype(np.float32)
  without = learner.score_rollout(
    state, original, value_head.with_params(None), scores, PROMPTS, LENGTHS, completions,
    settings=SETTINGS, moved=False)
  chex.assert_trees_all_close(without, (rollout, metrics), atol=1e-5)


def step(world, state, rollout, settings=SETTINGS, recall=None):
  rows = [Row((3, 4), (5, 6, EOS), 0), Row((7,), (8, EOS), 1)]
  retain = Batches(tuple(rows), 2, 8, 0, 0)[0]
  return learner.update(
    state, world.original, world.value_head.with_params(None), rollout, np.arange(8), retain,
    recall, (1e-2, 1e-2), settings=settings)


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.7}])
def test_the_first_inner_step_has_ratio_one_and_no_kl(world, cut):
  """The sampler, the learner and the previous epoch's policy must be the same distribution.

  Each is a program of its own, so that they may differ in their last bits.
  """
  settings = dataclasses.replace(SETTINGS, **cut)
  state = init(world, settings)
  completions, rollout, metrics = rollout_of(world, state, settings=settings)
  valid = np.arange(8) < np.asarray(completions.lengths)[:, None]
  np.testing.assert_allclose(
    rollout.old_logprobs[valid], completions.logprobs[valid], atol=1e-5)
  assert abs(float(metrics["kl"])) < 1e-6
  _, update_metrics = step(world, state, rollout, settings)
  assert float(update_metrics["clip_fraction"]) == 0.0
  assert abs(float(update_metrics["approx_kl"])) < 1e-6
  assert abs(float(update_metrics["distill_loss"])) < 1e-6  # the policy still is the original


def test_an_update_moves_the_policy_and_no_other_role(world):
  """A role that shares a buffer with the policy would move with it."""
  state = init(world)
  before = jax.tree.map(np.asarray, (state.previous, state.chosen, world.original.params))
  rollout = rollout_of(world, state)[1]
  state, _ = step(world, state, rollout)
  state, metrics = step(world, state, rollout)
  jax.tree.map(np.testing.assert_array_equal, before,
               jax.tree.map(np.asarray, (state.previous, state.chosen, world.original.params)))
  moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.policy, state.previous)
  assert max(jax.tree.leaves(moved)) > 1e-4
  assert float(metrics["distill_loss"]) > 1e-3
  assert float(rollout_of(world, state)[2]["kl"]) > 1e-3


# Nothing at its neutral value: a coefficient that is not heeded shows.
PLAIN = dataclasses.replace(
  SETTINGS, anchor_coef=0.0, whiten_advantages=False, kl_coef=2.0, discount=0.9, gae_lambda=0.6,
  value_coef=0.7, distill_coef=3.0)


def strayed(world):
  """A learner whose policy, previous policy and original are three different ones."""
  state = init(world, PLAIN)
  for key in (1, 2):
    state = learner.end_epoch(state)
    for _ in range(2):
      state, _ = step(world, state, rollout_of(world, state, key, PLAIN)[1], PLAIN)
  return state


@jax.jit
def logits_of(model, ids):
  return model.module.logits(ids)


def tempered_logprobs(world, params, completions):
  """log π [B, T, V] at the sampling temperature, by NumPy from the model's logits."""
  result = []
  for prompt, n, row in zip(PROMPTS, LENGTHS, np.asarray(completions.ids), strict=True):
    ids = np.concatenate([prompt[:n], row])[None]
    logits = np.asarray(logits_of(world.original.with_params(params), ids), np.float64)[0, n - 1:-1]
    logits /= SETTINGS.temperature
    result.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
  return np.array(result)


def test_rewards_and_advantages_follow_the_formulas(world):
  """The KL is to the previous epoch's policy, not to the original, and at the sampler's temperature;
  advantages are the recursion's, by γ and λ."""
  state = strayed(world)
  completions, rollout, metrics = rollout_of(world, state, key=3, settings=PLAIN)
  lengths = np.asarray(completions.lengths)
  valid = np.arange(8) < lengths[:, None]
  ours, previous, original = (tempered_logprobs(world, params, completions)
                              for params in (state.policy, state.previous, world.original.params))
  kl = np.sum(np.exp(ours) * (ours - previous), -1)
  assert abs(kl[valid].mean() - np.sum(np.exp(ours) * (ours - original), -1)[valid].mean()) > 1e-3
  np.testing.assert_allclose(metrics["kl"], kl[valid].mean(), rtol=1e-3)
  scores = np.random.default_rng(3).uniform(size=(8, 8)).astype(np.float32)
  rewards = np.asarray(token_rewards(
    scores, lengths, kl.astype(np.float32), segment_length=2,
    transform=PLAIN.score_transform, kl_coef=2.0, form=PLAIN.reward_form, max_length=8))
  values = np.asarray(rollout.old_values)
  assert np.abs(values[valid]).max() > 1e-3
  for i, n in enumerate(lengths):
    later = 0.0
    for t in reversed(range(n)):
      after = values[i, t + 1] if t + 1 < n else 0.0
      later = rewards[i, t] + 0.9 * after - values[i, t] + 0.9 * 0.6 * later
      assert float(rollout.advantages[i, t]) == pytest.approx(later, abs=2e-4)


def test_the_loss_is_the_weighted_sum_of_its_parts(world):
  state = strayed(world)
  _, metrics = step(world, state, rollout_of(world, state, 3, PLAIN)[1], PLAIN)
  parts = {name: float(metrics[name]) for name in ("policy_loss", "value_loss", "distill_loss")}
  assert min(map(abs, parts.values())) > 1e-7 and parts["distill_loss"] > 1e-3
  want = parts["policy_loss"] + 0.7 * parts["value_loss"] + 3.0 * parts["distill_loss"]
  assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)


def test_recalled_answers_lose_probability(world):
  """With the recall alone at work; its term is added with its weight."""
  settings = dataclasses.replace(PLAIN, recall_coef=4.0, distill_coef=0.0)
  rows = (Row((3, 4), (5, 6, 7, EOS), 0), Row((7,), (8, 9, EOS), 1))
  answers = Batches(rows, 2, 8, 0, 0)[0]
  recall = learner.Recall(answers, np.float32(0.0))
  state = init(world, settings)
  rollout = rollout_of(world, state, settings=settings)[1]
  still = rollout._replace(advantages=jnp.zeros_like(rollout.advantages))
  before = answer_logprobs(world, state.policy, answers)
  mask = np.arange(before.shape[1]) < answers.completion_lengths[:, None] - 1  # but their ends
  _, metrics = step(world, init(world, settings), still, settings, recall)
  want = np.log1p(np.exp(before) / settings.epsilon)[mask].mean()
  assert float(metrics["recall_loss"]) == pytest.approx(want, rel=1e-4)
  parts = sum(weight * float(metrics[name]) for name, weight in (
    ("policy_loss", 1.0), ("value_loss", settings.value_coef), ("recall_loss", 4.0)))
  assert float(metrics["loss"]) == pytest.approx(parts, rel=1e-5)
  for _ in range(5):
    state, _ = step(world, state, still, settings, recall)
  after = answer_logprobs(world, state.policy, answers)
  assert (after < before - 0.1)[mask].all()
  unknown = recall._replace(level=np.float32(1.0))  # all are at the level of strangers
  _, metrics = step(world, init(world, settings), still, settings, unknown)
  assert float(metrics["recall_loss"]) == float(metrics["recalled_share"]) == 0.0


def answer_logprobs(world, params, answers):
  """Log-probs of the answers' tokens, from the logits of the whole text: [B, T]."""
  logits = logits_of(world.original.with_params(params), answers.token_ids)
  logprobs = np.asarray(jax.nn.log_softmax(logits))
  found = np.zeros(answers.completion_ids.shape)
  for i, (n, ids, length) in enumerate(zip(
      answers.prompt_lengths, answers.completion_ids, answers.completion_lengths, strict=True)):
    found[i, :length] = [logprobs[i, n + t - 1, token] for t, token in enumerate(ids[:length])]
  return found


def test_a_token_that_sampling_cuts_off_for_the_original_costs_what_it_is_unlikely(world):
  """Under the truncated distribution its log-prob would be -100, whatever the original finds."""
  settings = dataclasses.replace(PLAIN, top_k=1, discount=0.0)
  anchored = dataclasses.replace(settings, anchor_coef=1.0)
  state = strayed(world)
  with_it, without = (rollout_of(world, state, 3, one)[1].advantages
                      for one in (anchored, settings))
  charged = np.abs(with_it - without)
  assert 0.01 < charged.max() < 20


def test_distillation_holds_the_policy_at_the_original(world):
  """With λ_distill alone at work, a policy that has strayed comes back."""
  state = init(world)
  rollout = rollout_of(world, state)[1]
  for _ in range(3):
    state, _ = step(world, state, rollout)
  still = rollout._replace(advantages=jnp.zeros_like(rollout.advantages))
  losses = []
  for _ in range(15):
    state, metrics = step(world, state, still)
    losses.append(float(metrics["distill_loss"]))
  assert losses[-1] < 0.5 * max(losses)


def test_the_anchor_charges_each_token_for_what_the_original_finds_unlikely(world):
  """At the original it costs nothing; where the policy has moved, each token's own share."""
  plain = dataclasses.replace(SETTINGS, anchor_coef=0.0, gae_lambda=1.0, discount=0.0,
                              whiten_advantages=False)  # so that advantages are rewards - values
  anchored = dataclasses.replace(plain, anchor_coef=0.5)
  state = init(world, plain)
  for strayed in (False, True):
    completions, rollout, _ = rollout_of(world, state, settings=plain)
    got = rollout.advantages - rollout_of(world, state, settings=anchored)[1].advantages
    at_start = init(world, plain)
    original = learner.score_rollout(
      at_start, world.original, world.value_head.with_params(None), np.zeros((8, 8), np.float32),
      PROMPTS, LENGTHS, completions, settings=plain)[0].old_logprobs
    valid = np.arange(8) < np.asarray(completions.lengths)[:, None]
    ratio = rollout.old_logprobs - original
    want = np.where(valid, 0.5 * (ratio - ratio[valid].mean()), 0.0)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert bool(np.abs(want).max() > 1e-2) == strayed
    state, _ = step(world, state, rollout, plain)
    state, _ = step(world, state, rollout, plain)


def with_separate_critic(**changes):
  return dataclasses.replace(SETTINGS, critic="separate", **changes)


def test_a_separate_critic_learns_without_moving_the_policy(world):
  """Its trunk starts at the policy's weights: a shared buffer or gradient would move both."""
  settings = with_separate_critic(distill_coef=0.0)
  state = init(world, settings)
  before = jax.tree.map(np.asarray, (state.policy, state.critic.trunk))
  rollout = rollout_of(world, state, settings=settings)[1]
  rollout = rollout._replace(advantages=jnp.zeros_like(rollout.advantages))
  # A zero head sends no gradient into its trunk: the second update is the first to move it.
  for _ in range(2):
    state, _ = step(world, state, rollout, settings)
  for old, new in zip(jax.tree.leaves(before[0]), jax.tree.leaves(state.policy), strict=True):
    np.testing.assert_array_equal(old, new)
  moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), before[1], state.critic.trunk)
  assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_critic_learns_the_returns(world, critic):
  settings = dataclasses.replace(SETTINGS, critic=critic, distill_coef=0.0, value_clip_eps=10.0)
  state = init(world, settings)
  rollout = rollout_of(world, state, settings=settings)[1]
  rollout = rollout._replace(advantages=jnp.zeros_like(rollout.advantages))
  losses = []
  for _ in range(25):
    state, metrics = step(world, state, rollout, settings)
    losses.append(float(metrics["value_loss"]))
  assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_without_a_critic_responses_to_a_query_are_compared_with_each_other(world, name):
  """Each token has its response's advantage; a group's advantages add up to nothing."""
  settings = dataclasses.replace(SETTINGS, learner=name, samples_per_prompt=4)
  state = init(world, settings)
  completions, rollout, metrics = rollout_of(world, state, settings=settings)
  first = np.asarray(rollout.advantages[:, 0])
  np.testing.assert_allclose(first.reshape(2, 4).sum(1), 0.0, atol=1e-5)
  valid = np.arange(8) < np.asarray(completions.lengths)[:, None]
  np.testing.assert_array_equal(rollout.advantages, np.where(valid, first[:, None], 0.0))
  state, update_metrics = step(world, state, rollout, settings)
  assert "value_loss" not in update_metrics and "explained_variance" not in metrics
  assert not np.any([np.any(leaf) for leaf in jax.tree.leaves(state.critic)])  # still zero


def test_a_regression_in_place_of_a_critic_leaves_nothing_to_train(world):
  settings = dataclasses.replace(SETTINGS, critic="regression", samples_per_prompt=4)
  state = init(world, settings)
  _, rollout, metrics = rollout_of(world, state, settings=settings)
  assert metrics["explained_variance"] > 0.3  # before anything was learned
  state, update_metrics = step(world, state, rollout, settings)
  assert "value_loss" not in update_metrics
  assert not np.any([np.any(leaf) for leaf in jax.tree.leaves(state.critic)])


def test_a_rollback_is_policy_and_critic_of_an_epoch_ago_with_fresh_optimizers(world):
  state = init(world)
  rollout = rollout_of(world, state)[1]
  state, _ = step(world, state, rollout)
  back = learner.roll_back(state, SETTINGS)
  jax.tree.map(np.testing.assert_array_equal, back.policy, world.original.params)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(state.critic))
  jax.tree.map(np.testing.assert_array_equal, back.critic.head, world.value_head.params)
  for leaf in jax.tree.leaves((back.policy_opt, back.critic_opt)):
    assert not np.any(leaf)
  again, _ = step(world, back, rollout)  # donates: no buffer may be shared
  jax.tree.map(np.testing.assert_array_equal, again.previous, world.original.params)


def fake_task(queries, **settings):
  rows = tuple(Row((i,), (1,), 0) for i in range(queries))
  values = dict.fromkeys(field.name for field in dataclasses.fields(loop.RLTask))
  values |= dict(forget=ForgetSet(rows, (), (), None), settings=dataclasses.replace(SETTINGS, **settings), seed=5)
  return loop.RLTask(**values)


@pytest.mark.parametrize(("queries", "size", "samples"), [(10, 4, 2), (3, 8, 8), (7, 7, 1)])
def test_an_epoch_samples_every_forget_query_equally_often(queries, size, samples):
  """Queries that never come up are never forgotten. Uneven ends may carry into the next epoch."""
  task = fake_task(queries, rollout_batch_size=size, minibatch_size=size, samples_per_prompt=samples)
  rows, numbers = zip(*(loop.rollout_rows(task, step) for step in range(task.rollouts_per_epoch)),
                      strict=True)
  counts = np.bincount(np.concatenate(rows), minlength=queries)
  assert counts.min() >= samples
  assert counts.max() - counts.min() <= 1
  assert len(set(np.concatenate(numbers))) == len(np.concatenate(numbers))


def test_minibatches_cover_each_learned_row_once_in_every_pass():
  task = fake_task(4, rollout_batch_size=10, learned_share=0.9, minibatch_size=3, inner_epochs=2)
  learned = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9])
  batches = list(loop.minibatches(task, 3, learned))
  assert [number for _, number in batches] == [18, 19, 20, 21, 22, 23]
  assert all(len(rows) == 3 for rows, _ in batches)
  for sweep in (batches[:3], batches[3:]):
    assert sorted(np.concatenate([rows for rows, _ in sweep])) == list(learned)


@pytest.mark.parametrize(("size", "share", "minibatch"), [(9, 1.0, 4), (9, 0.9, 3), (8, 0.5, 8)])
def test_a_minibatch_divides_the_responses_that_are_learned_from(size, share, minibatch):
  """Else some would be learned from twice in a pass, and these by chance."""
  with pytest.raises(InputError, match=f"minibatch_size is {minibatch}: it must divide"):
    RLSettings(rollout_batch_size=size, learned_share=share, minibatch_size=minibatch)


@pytest.mark.parametrize(("learner_name", "has_trunk"), [("ppo", True), ("grpo", False), ("rloo", False)])
def test_only_a_critic_that_learns_has_a_trunk_of_its_own(world, learner_name, has_trunk):
  """It would take the memory of a policy and of its moments, twice, for nothing."""
  settings = dataclasses.replace(SETTINGS, learner=learner_name, critic="separate")
  assert (init(world, settings).critic.trunk is not None) == has_trunk


def test_gradient_norms_are_those_of_the_sampled_tokens_logits():
  """Against autodiff of the surrogate, at the policy that sampled; padding counts for nothing."""
  rng = np.random.default_rng(0)
  ids, logits, lengths = rng.integers(0, 7, (5, 6)), rng.normal(size=(5, 6, 7)), rng.integers(1, 7, 5)
  advantages = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
  mask = np.arange(6) < lengths[:, None]

  def surrogate(logits):
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(mask, advantages * logprobs, 0.0)), logprobs

  grads, logprobs = jax.grad(surrogate, has_aux=True)(jnp.asarray(logits, jnp.float32))
  expected = np.linalg.norm(np.take_along_axis(np.asarray(grads), ids[..., None], -1)[..., 0], axis=1)
  empty = jnp.zeros((5, 6))
  rollout = learner.Rollout(empty, empty, ids, lengths, logprobs, empty, advantages, empty)
  np.testing.assert_allclose(learner.gradient_norms(rollout), expected, rtol=1e-5)


def test_a_group_is_in_one_rollout_and_every_query_has_one():
  task = fake_task(6, learner="rloo", rollout_batch_size=8, samples_per_prompt=4)
  rows = [loop.rollout_rows(task, step)[0] for step in range(task.rollouts_per_epoch)]
  groups = np.concatenate(rows).reshape(-1, 4)
  assert (groups == groups[:, :1]).all()
  assert sorted(groups[:, 0]) == list(range(6))

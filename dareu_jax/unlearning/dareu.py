"""The DareU learner: rollouts scored by the owner classifier, PPO with distillation (jitted parts).

Roles of the policy are trainable states over one frozen state: original (the teacher), previous
(the end of the last epoch) and current. B rows, T completion slots, S = prompt + completion slots.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.classifier import last_valid, prefix_scores
from dareu_jax.generation.strategies import Sample
from dareu_jax.logprobs import completion_hidden, logprobs_and_entropy, policy_kl
from dareu_jax.masked import explained_variance, length_mask, masked_mean, masked_whiten
from dareu_jax.reinforcement.advantages import generalized_advantage_estimation
from dareu_jax.reinforcement.distillation import kl_to_teacher
from dareu_jax.reinforcement.ppo import policy_loss, value_loss
from dareu_jax.reinforcement.rewards import token_rewards
from dareu_jax.settings import UnlearningSettings
from dareu_jax.training.optimizers import adamw_direction, apply_direction


class LearnerState(NamedTuple):
  """All that a run needs to go on; `step` counts rollouts."""

  step: jax.Array
  policy: Any
  value: Any
  policy_opt: Any
  value_opt: Any
  previous: Any  # policy at the end of the previous epoch
  chosen: Any  # policy of the epoch to keep so far


class Rollout(NamedTuple):
  """Sampled responses, ready to learn from; first axis the rows."""

  token_ids: jax.Array  # [B, S] prompt and completion on end
  prompt_lengths: jax.Array  # [B]
  completion_ids: jax.Array  # [B, T]
  lengths: jax.Array  # [B]
  old_logprobs: jax.Array  # [B, T]
  old_values: jax.Array  # [B, T]
  advantages: jax.Array  # [B, T]
  returns: jax.Array  # [B, T]


@dataclasses.dataclass(frozen=True)
class Models:
  """The static parts of the models of a run."""

  policy: Any  # models.states.Frame of a Decoder
  value: Any  # of a ValueHead
  classifier: Any  # of an OwnerClassifier


def sampling(settings: UnlearningSettings):
  """The distribution that responses are sampled from, and their log-probs taken under."""
  return Sample(settings.temperature, settings.top_k, settings.top_p)


def init_learner(policy, value, settings: UnlearningSettings):
  """A learner at step 0, every role of the policy at its start."""
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)

  def copy(tree):
    return jax.tree.map(jnp.copy, tree)

  # Updates donate the state: no role may share a buffer with another.
  return LearnerState(jnp.int32(0), copy(policy), copy(value), optimizer.init(policy),
                      optimizer.init(value), copy(policy), copy(policy))


def join(prompt_ids, prompt_lengths, completion_ids):
  """Puts each row's completion right behind its prompt: [B, P], [B], [B, T] -> [B, P+T]."""
  time = completion_ids.shape[1]
  columns = prompt_lengths[:, None] + jnp.arange(time)
  rows = jnp.arange(prompt_ids.shape[0])[:, None]
  return jnp.pad(prompt_ids, ((0, 0), (0, time))).at[rows, columns].set(completion_ids)


@functools.partial(jax.jit, static_argnames=("models", "settings"))
def score_rollout(state, frozen, value_frozen, classifier, is_forget, prompt_ids, prompt_lengths,
                  completions, *, models: Models, settings: UnlearningSettings):
  """Rewards, values and advantages of sampled completions.

  Args:
    state: LearnerState.
    frozen, value_frozen: the frozen states of policy and value head.
    classifier: (params, frozen) of the owner classifier.
    is_forget: [O] bool.
    prompt_ids: [B, P] int.
    prompt_lengths: [B] int.
    completions: generation.sampler.Completions.

  Returns: (Rollout, metrics: scalars).
  """
  ids, lengths = completions.ids, completions.lengths
  time = ids.shape[1]
  mask = length_mask(lengths, time)
  token_ids = join(prompt_ids, prompt_lengths, ids)

  def role(params):
    model = models.policy.merge(params, frozen)
    hidden = completion_hidden(model.hidden_states(token_ids), prompt_lengths, time)
    return hidden, model.head

  hidden, head = role(state.policy)
  previous_hidden, previous_head = role(state.previous)
  logprobs, entropy = logprobs_and_entropy(hidden, head, ids, sampling(settings).logprobs)
  kl = policy_kl(hidden, head, previous_hidden, previous_head,
                 temperature=settings.temperature)
  values = models.value.merge(state.value, value_frozen)(hidden)
  scores = prefix_scores(models.classifier, *classifier, ids, is_forget)
  rewards = token_rewards(
    scores, lengths, kl, segment_length=settings.segment_length, epsilon=settings.epsilon,
    c_seg=settings.c_seg, kl_coef=settings.kl_coef, form=settings.reward_form,
    max_length=settings.max_new_tokens)
  advantages, returns = generalized_advantage_estimation(
    rewards, values, lengths, discount=settings.discount, gae_lambda=settings.gae_lambda)
  metrics = {
    "score": jnp.mean(last_valid(scores, lengths)),
    "reward": jnp.mean(jnp.sum(rewards, axis=1)),
    "kl": masked_mean(kl, mask),
    "entropy": masked_mean(entropy, mask),
    "explained_variance": explained_variance(values, returns, mask),
    "response_length": jnp.mean((lengths - completions.ended).astype(jnp.float32)),
    "eos_share": jnp.mean(completions.ended.astype(jnp.float32)),
  }
  if settings.whiten_advantages:
    advantages = masked_whiten(advantages, mask)
  rollout = Rollout(token_ids, prompt_lengths, ids, lengths, logprobs, values, advantages, returns)
  return rollout, metrics


@functools.partial(jax.jit, static_argnames=("models", "settings"), donate_argnums=0)
def update(state, teacher, frozen, value_frozen, rollout, rows, retain, learning_rates, *,
           models: Models, settings: UnlearningSettings):
  """One minibatch update.

      L = L_PPO + c_v L_value + λ_distill · mean over retain tokens of KL(π_N ‖ π)

  Args:
    state: LearnerState; donated.
    teacher: trainable state of the original policy π_N.
    rollout: Rollout.
    rows: [M] int; the minibatch.
    retain: data.batches.Batch of retained examples.
    learning_rates: (policy's, value head's) scalars.

  Returns: (LearnerState with its step unchanged, metrics: scalars).
  """
  part = jax.tree.map(lambda x: x[rows], rollout)
  time = part.completion_ids.shape[1]
  mask = length_mask(part.lengths, time)
  retain_time = retain.completion_ids.shape[1]
  retain_mask = length_mask(retain.completion_lengths, retain_time)

  def retain_hidden(model):
    hidden = model.hidden_states(retain.token_ids)
    return completion_hidden(hidden, retain.prompt_lengths, retain_time)

  teacher_model = models.policy.merge(teacher, frozen)
  teacher_hidden = jax.lax.stop_gradient(retain_hidden(teacher_model))

  def total_loss(policy, value):
    model = models.policy.merge(policy, frozen)
    hidden = completion_hidden(model.hidden_states(part.token_ids), part.prompt_lengths, time)
    logprobs, _ = logprobs_and_entropy(
      hidden, model.head, part.completion_ids, sampling(settings).logprobs)
    values = models.value.merge(value, value_frozen)(hidden)
    ppo, ppo_metrics = policy_loss(
      logprobs, part.old_logprobs, part.advantages, mask, clip_eps=settings.clip_eps)
    critic, critic_metrics = value_loss(
      values, part.old_values, part.returns, mask, clip_eps=settings.value_clip_eps)
    distill = kl_to_teacher(
      retain_hidden(model), model.head, teacher_hidden, teacher_model.head, retain_mask)
    loss = ppo + settings.value_coef * critic + settings.distill_coef * distill
    return loss, {"loss": loss, "policy_loss": ppo, "value_loss": critic, "distill_loss": distill,
                  **ppo_metrics, **critic_metrics}

  grads, metrics = jax.grad(total_loss, argnums=(0, 1), has_aux=True)(state.policy, state.value)
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  policy_direction, policy_opt = optimizer.update(grads[0], state.policy_opt, state.policy)
  value_direction, value_opt = optimizer.update(grads[1], state.value_opt, state.value)
  return state._replace(
    policy=apply_direction(state.policy, policy_direction, learning_rates[0]),
    value=apply_direction(state.value, value_direction, learning_rates[1]),
    policy_opt=policy_opt, value_opt=value_opt), metrics

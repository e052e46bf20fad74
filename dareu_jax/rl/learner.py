"""The learner: advantages from scored rollouts, and PPO with distillation (jitted parts).

Roles of the policy are trainable states over one frozen state: original (the teacher), previous
(the end of the last epoch) and current; so is the trunk of a separate critic. B rows, T completion
slots, S = prompt + completion slots.
"""

import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dareu_jax.core.logprobs import completion_hidden, logprobs_and_entropy, policy_kl
from dareu_jax.core.masked import (
  explained_variance,
  join,
  last_valid,
  length_mask,
  masked_mean,
  masked_whiten,
)
from dareu_jax.data.batches import Batch
from dareu_jax.generation.sampler import Completions
from dareu_jax.generation.strategies import Sample
from dareu_jax.models.handle import Model
from dareu_jax.parallel.mesh import constrain_parameters
from dareu_jax.rl.advantages import (
  generalized_advantage_estimation,
  group_advantages,
  regression_values,
)
from dareu_jax.rl.losses import kl_to_teacher, policy_loss, recall_loss, value_loss
from dareu_jax.rl.rewards import centered_log_ratio, token_rewards
from dareu_jax.rl.settings import RLSettings
from dareu_jax.training.optimizers import adamw_direction, apply_direction

Params = Any  # the trained state of a model
Scalar = Float[Array, ""]
T = TypeVar("T")


class Critic(NamedTuple):
  """The trained parameters of the critic."""

  head: Params  # of a ValueHead
  trunk: Params | None  # a role of the policy; None: the head sits on the policy itself


class LearnerState(NamedTuple):
  """Everything that a run needs to resume; `step` counts rollouts."""

  step: Int[Array, ""]
  policy: Params
  critic: Critic
  policy_opt: Any
  critic_opt: Any
  previous: Params  # policy at the end of the previous epoch
  previous_critic: Critic  # critic at the same time
  chosen: Params  # policy of the best epoch so far


class Rollout(NamedTuple):
  """Sampled responses, ready to learn from."""

  token_ids: Int[Array, "B S"]  # prompt and completion concatenated
  prompt_lengths: Int[Array, " B"]
  completion_ids: Int[Array, "B T"]
  lengths: Int[Array, " B"]
  old_logprobs: Float[Array, "B T"]
  old_values: Float[Array, "B T"]
  advantages: Float[Array, "B T"]
  returns: Float[Array, "B T"]


class Recall(NamedTuple):
  """True answers that are to be forgotten token by token."""

  answers: Batch
  level: Float[Any, ""]  # p_0: the probability at which an answer counts as unknown


def sampling(settings: RLSettings) -> Sample:
  """The distribution from which responses are sampled and under which log-probs are computed."""
  return Sample(settings.temperature, settings.top_k, settings.top_p)


def init_learner(policy: Params, value: Params, settings: RLSettings) -> LearnerState:
  """A learner at step 0, with every role of the policy (and a separate critic's trunk) initialized.

  Args:
    policy: params of the original model.
    value: params of a fresh value head.
  """
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  # Updates donate the state, so no two roles may share a buffer.
  has_trunk = settings.learns_values and settings.critic == "separate"
  critic = Critic(copy(value), copy(policy) if has_trunk else None)
  return LearnerState(jnp.int32(0), copy(policy), critic, optimizer.init(policy),
                      optimizer.init(critic), copy(policy), copy(critic), copy(policy))


def roll_back(state: LearnerState, settings: RLSettings) -> LearnerState:
  """Restores policy and critic to the previous epoch's, with fresh optimizer states."""
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  return state._replace(
    policy=copy(state.previous), critic=copy(state.previous_critic),
    policy_opt=optimizer.init(state.policy), critic_opt=optimizer.init(state.critic))


def end_epoch(state: LearnerState) -> LearnerState:
  """Stores the current policy and critic as the previous epoch's."""
  return state._replace(previous=copy(state.policy), previous_critic=copy(state.critic))


def copy(tree: T) -> T:
  """A copy in new buffers."""
  return jax.tree.map(jnp.copy, tree)


@functools.partial(jax.jit, static_argnames=("settings", "moved"))
def score_rollout(
    state: LearnerState, original: Model, value_head: Model, scores: Float[Array, "B T"],
    prompt_ids: Int[Array, "B P"], prompt_lengths: Int[Array, " B"], completions: Completions, *,
    settings: RLSettings, moved: bool = True) -> tuple[Rollout, dict[str, Scalar]]:
  """Rewards, values and advantages of sampled completions.

  Not in the paper: a token may cost η = anchor_coef times its `centered_log_ratio` to the original,
  so that the replacements that the original finds most likely are the cheapest.

  Where neither a KL, an anchor nor a trained critic asks for it, no model runs: log-probs and
  entropies are the sampler's.

  Args:
    state: state of the learner.
    original: the original policy π_N.
    value_head: a ValueHead, whose params are in the state.
    scores: score of each prefix, high for content to forget (`rl.reward_functions`).
    prompt_ids, prompt_lengths: the queries.
    completions: the sampled responses.
    settings: settings of the run.
    moved: whether the policy may differ from the previous epoch's; if not, their KL is 0 and is not
      computed.

  Returns: (rollout, metrics).
  """
  ids, lengths = completions.ids, completions.lengths
  time = ids.shape[1]
  mask = length_mask(lengths, time)
  token_ids = join(prompt_ids, prompt_lengths, ids)

  def role(params):
    model = original.with_params(params).module
    hidden = completion_hidden(model.hidden_states(token_ids), prompt_lengths, time)
    return hidden, model.head

  if settings.scores_again(moved):
    hidden, head = role(state.policy)
    logprobs, entropy = logprobs_and_entropy(hidden, head, ids, sampling(settings).logprobs)
  else:  # the sampler's own are all that is needed
    logprobs, entropy = completions.logprobs, completions.entropies
  kl = jnp.zeros(ids.shape)
  if moved:
    kl = policy_kl(hidden, head, *role(state.previous), temperature=settings.temperature)
  rewards = token_rewards(
    scores, lengths, kl, segment_length=settings.segment_length,
    transform=settings.score_transform, kl_coef=settings.kl_coef, form=settings.reward_form,
    max_length=settings.max_new_tokens)
  if settings.anchor_coef:
    # Like the KL, without top_k and top_p: tokens that they cut off have no finite log-prob.
    untruncated, own = Sample(settings.temperature), logprobs
    if sampling(settings) != untruncated:
      own, _ = logprobs_and_entropy(hidden, head, ids, untruncated.logprobs)
    anchor_hidden, anchor_head = role(original.params)
    anchor, _ = logprobs_and_entropy(anchor_hidden, anchor_head, ids, untruncated.logprobs)
    rewards -= settings.anchor_coef * centered_log_ratio(own, anchor, mask)
  metrics = _rollout_metrics(scores, rewards, kl, entropy, completions)
  values = None
  if settings.learns_values:
    trunk = state.critic.trunk
    values = value_head.with_params(state.critic.head).module(
      hidden if trunk is None else role(trunk)[0])
  values, advantages, returns = _advantages(settings, scores, rewards, lengths, values)
  if settings.learner == "ppo":
    metrics["explained_variance"] = explained_variance(values, returns, mask)
  rollout = Rollout(token_ids, prompt_lengths, ids, lengths, logprobs, values, advantages, returns)
  return rollout, metrics


def _rollout_metrics(scores, rewards, kl, entropy, completions):
  """Means over the responses or, of what every token has, over their tokens."""
  lengths, ended = completions.lengths, completions.ended
  mask = length_mask(lengths, scores.shape[1])
  return {
    "score": jnp.mean(last_valid(scores, lengths)),
    "reward": jnp.mean(jnp.sum(rewards, axis=1)),
    "kl": masked_mean(kl, mask),
    "entropy": masked_mean(entropy, mask),
    "response_length": jnp.mean((lengths - ended).astype(jnp.float32)),
    "eos_share": jnp.mean(ended.astype(jnp.float32)),
  }


def _advantages(settings, scores, rewards, lengths, values):
  """(values, advantages, returns), each [B, T]; `values` are given by a critic that learns."""
  mask = length_mask(lengths, rewards.shape[1])
  if settings.learner != "ppo":
    whole = group_advantages(jnp.sum(rewards, axis=1), group_size=settings.samples_per_prompt,
                             normalize=settings.learner == "grpo")
    none = jnp.zeros_like(rewards)
    return none, jnp.where(mask, whole[:, None], 0.0), none
  if values is None:
    values = regression_values(
      rewards, settings.score_transform(scores), lengths,
      group_size=settings.samples_per_prompt, segment_length=settings.segment_length,
      discount=settings.discount)
  advantages, returns = generalized_advantage_estimation(
    rewards, values, lengths, discount=settings.discount, gae_lambda=settings.gae_lambda)
  if settings.whiten_advantages:
    advantages = masked_whiten(advantages, mask)
  return values, advantages, returns


@jax.jit
def gradient_norms(rollout: Rollout) -> Float[Array, " B"]:
  """How much there is to learn from each response: its policy gradient's norm at the logits.

      g² = Σ_t A_t² (1 - π(y_t))²

  without the share of the tokens that were not sampled, at most as large again. Of a response that
  the policy always gives next to nothing is left, whatever its advantages are.

  Source: the bound of Katharopoulos & Fleuret 2018, to choose responses as Xu et al. 2025 (PODS) do
    by their rewards' variance.
  """
  surprise = -jnp.expm1(rollout.old_logprobs)
  mask = length_mask(rollout.lengths, rollout.old_logprobs.shape[1])
  return jnp.sqrt(jnp.sum(jnp.where(mask, (rollout.advantages * surprise) ** 2, 0.0), axis=1))


@functools.partial(jax.jit, static_argnames="settings", donate_argnums=0)
def update(
    state: LearnerState, original: Model, value_head: Model, rollout: Rollout,
    rows: Int[Array, " M"], retain: Batch, recall: Recall | None,
    learning_rates: tuple[float, float], *,
    settings: RLSettings) -> tuple[LearnerState, dict[str, Scalar]]:
  """One minibatch update.

      L = L_PPO + c_v L_value + λ_distill · mean over retain tokens of KL(π_N ‖ π) + c_r L_recall

  There is no L_value without a critic that learns. L_recall, `losses.recall_loss`, is not in the
  paper.

  Args:
    state: state of the learner; donated.
    original, value_head: as for `score_rollout`.
    rollout: the rollout to learn from.
    rows: its rows that form the minibatch.
    retain: retained examples.
    recall: true answers to forget; None: no L_recall.
    learning_rates: (policy's, value head's); a separate trunk uses the policy's.
    settings: settings of the run.

  Returns: (state with its step unchanged, metrics).
  """
  part = jax.tree.map(lambda x: x[rows], rollout)
  time = part.completion_ids.shape[1]
  mask = length_mask(part.lengths, time)
  retain_time = retain.completion_ids.shape[1]
  retain_mask = length_mask(retain.completion_lengths, retain_time)

  def sampled_hidden(model):
    return completion_hidden(model.hidden_states(part.token_ids), part.prompt_lengths, time)

  def retain_hidden(model):
    hidden = model.hidden_states(retain.token_ids)
    return completion_hidden(hidden, retain.prompt_lengths, retain_time)

  teacher_model = original.module
  teacher_hidden = jax.lax.stop_gradient(retain_hidden(teacher_model))

  def total_loss(policy, critic):
    model = original.with_params(policy).module
    hidden = sampled_hidden(model)
    logprobs, _ = logprobs_and_entropy(
      hidden, model.head, part.completion_ids, sampling(settings).logprobs)
    loss, metrics = policy_loss(
      logprobs, part.old_logprobs, part.advantages, mask, clip_eps=settings.clip_eps)
    metrics["policy_loss"] = loss
    if settings.learns_values:
      if critic.trunk is not None:
        hidden = sampled_hidden(original.with_params(critic.trunk).module)
      values = value_head.with_params(critic.head).module(hidden)
      metrics["value_loss"], value_metrics = value_loss(
        values, part.old_values, part.returns, mask, clip_eps=settings.value_clip_eps)
      metrics |= value_metrics
      loss += settings.value_coef * metrics["value_loss"]
    metrics["distill_loss"] = kl_to_teacher(
      retain_hidden(model), model.head, teacher_hidden, teacher_model.head, retain_mask)
    loss += settings.distill_coef * metrics["distill_loss"]
    if recall is not None:
      metrics["recall_loss"], recall_metrics = _recall_loss(model, recall, settings)
      metrics |= recall_metrics
      loss += settings.recall_coef * metrics["recall_loss"]
    return loss, {"loss": loss, **metrics}

  grads, metrics = jax.grad(total_loss, argnums=(0, 1), has_aux=True)(state.policy, state.critic)
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  direction, policy_opt = optimizer.update(grads[0], state.policy_opt, state.policy)
  critic_direction, critic_opt = optimizer.update(grads[1], state.critic_opt, state.critic)
  policy_rate, head_rate = learning_rates
  critic = Critic(apply_direction(state.critic.head, critic_direction.head, head_rate),
                  apply_direction(state.critic.trunk, critic_direction.trunk, policy_rate))
  return constrain_parameters(state._replace(
    policy=apply_direction(state.policy, direction, policy_rate), critic=critic,
    policy_opt=policy_opt, critic_opt=critic_opt)), metrics


def _recall_loss(model, recall, settings):
  """`losses.recall_loss` of the true answers under a model."""
  answers = recall.answers
  time = answers.completion_ids.shape[1]
  hidden = completion_hidden(model.hidden_states(answers.token_ids), answers.prompt_lengths, time)
  logprobs, _ = logprobs_and_entropy(hidden, model.head, answers.completion_ids)
  return recall_loss(logprobs, answers.completion_lengths, level=recall.level,
                     epsilon=settings.epsilon)

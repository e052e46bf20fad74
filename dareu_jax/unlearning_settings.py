"""Settings of the unlearning run, checked."""

import dataclasses

from dareu_jax.checks import InputError, at_least, one_of, positive, within

REWARDS = ("attribution", "rouge", "refusal")
LEARNERS = ("ppo", "grpo", "rloo")
CRITICS = ("shared", "separate")
GUARD_ACTIONS = ("off", "refuse", "stop", "rollback")
REWARD_FORMS = ("published", "telescoped", "absorbing", "neutral")
SELECTION_RULES = ("unseen_level", "lowest_score", "last")


@dataclasses.dataclass(frozen=True)
class GuardSettings:
  """Bounds on the greedy answers of an epoch, against winning by cheating."""

  action: str  # at an epoch out of bounds: 'off', 'refuse', 'stop' or 'rollback'
  max_rollbacks: int  # after so many the run stops; each halves the learning rates
  min_length_ratio: float  # of the usual response length
  max_length_ratio: float
  min_eos_ratio: float  # of the share of the original's answers that end by themselves
  min_distinct_ratio: float  # of the original's share of distinct answers
  max_degenerate_share: float  # of empty or repetitive answers
  min_entropy_ratio: float  # of the usual entropy per token
  max_entropy_ratio: float
  max_fluency_gap: float  # nats a token under the original, above its answers to unseen queries
  max_judge_gap: float  # of the judge's score above its level, where the reward's is at its own

  def __post_init__(self):
    section = "unlearning.guards"
    one_of(f"{section}.action", self.action, GUARD_ACTIONS)
    at_least(f"{section}.max_rollbacks", self.max_rollbacks, 0)
    for name in ("min_length_ratio", "min_eos_ratio", "min_distinct_ratio", "max_degenerate_share",
                 "min_entropy_ratio", "max_judge_gap"):
      within(f"{section}.{name}", getattr(self, name), 0.0, 1.0)
    for name in ("max_length_ratio", "max_entropy_ratio"):
      at_least(f"{section}.{name}", getattr(self, name), 1.0)
    positive(f"{section}.max_fluency_gap", self.max_fluency_gap)


@dataclasses.dataclass(frozen=True)
class UnlearningSettings:
  """Reinforcement learning on forget queries with distillation on retained data."""

  learner: str  # 'ppo', 'grpo' or 'rloo'
  critic: str  # of PPO: 'shared' with the policy's trunk, or 'separate'
  # reward
  reward: str  # 'attribution' (DareU), 'rouge' to the true answer, or 'refusal'
  reward_form: str  # 'published', 'telescoped', 'absorbing' or 'neutral'
  segment_length: int  # κ: tokens between two invocations of the attribution function
  epsilon: float  # ε: the score is clipped to [ε, 1-ε] before the log
  c_seg: float  # C_seg: small is sharp and clips early, large is flat
  kl_coef: float  # β: weight of the KL to the previous epoch's policy
  anchor_coef: float  # η: weight of a token's straying from the original policy; 0 in the paper
  # policy optimisation
  discount: float  # γ
  gae_lambda: float  # λ
  clip_eps: float  # of the probability ratio
  value_clip_eps: float
  value_coef: float  # c_v
  distill_coef: float  # λ_distill
  whiten_advantages: bool
  learning_rate: float
  value_learning_rate: float
  warmup_steps: int  # updates with a rising learning rate
  final_rate: float  # share of the learning rates at the end of the last epoch; they fall linearly
  weight_decay: float
  clip_norm: float
  # batches
  epochs: int  # at most; an epoch is `samples_per_prompt` rollouts of every forget query
  samples_per_prompt: int
  rollout_batch_size: int  # responses a rollout; a query may come more than once
  minibatch_size: int  # rollout rows an update
  inner_epochs: int  # passes over a rollout
  retain_batch_size: int  # retain examples distilled in each update
  # sampling
  temperature: float
  top_k: int  # 0: off
  top_p: float  # 1: off
  max_new_tokens: int  # the longest response; 0: as long as the longest of the data
  # which epoch is kept
  selection: str  # 'unseen_level', 'lowest_score' or 'last'
  settle_epochs: int  # epochs in a row at or below the level before the run stops
  target_score: float  # the level to come down to; negative: measured on unseen owners' queries
  guards: GuardSettings
  watch_rouge: bool  # measure ROUGE at each epoch's end too; it decides nothing

  def __post_init__(self):
    section = "unlearning"
    one_of("unlearning.learner", self.learner, LEARNERS)
    one_of("unlearning.critic", self.critic, CRITICS)
    one_of("unlearning.reward", self.reward, REWARDS)
    one_of("unlearning.reward_form", self.reward_form, REWARD_FORMS)
    one_of("unlearning.selection", self.selection, SELECTION_RULES)
    counts = ("segment_length", "epochs", "samples_per_prompt", "rollout_batch_size",
              "minibatch_size", "inner_epochs", "retain_batch_size", "settle_epochs")
    for name in counts:
      at_least(f"{section}.{name}", getattr(self, name), 1)
    if not 0 < self.epsilon < 0.5:
      raise InputError(
        f"config.unlearning.epsilon is {self.epsilon}: it must lie between 0 and 0.5.")
    for name in ("c_seg", "learning_rate", "value_learning_rate", "value_clip_eps", "clip_norm",
                 "temperature"):
      positive(f"{section}.{name}", getattr(self, name))
    if not 0 < self.clip_eps < 1:
      raise InputError(f"config.unlearning.clip_eps is {self.clip_eps}: it must lie in (0, 1).")
    if self.minibatch_size > self.rollout_batch_size:
      raise InputError(
        f"config.unlearning.minibatch_size is {self.minibatch_size}: it is a part of a rollout, "
        f"and config.unlearning.rollout_batch_size is {self.rollout_batch_size}.")
    if self.learner != "ppo" and (
        self.samples_per_prompt < 2 or self.rollout_batch_size % self.samples_per_prompt):
      raise InputError(
        f"config.unlearning.samples_per_prompt is {self.samples_per_prompt}: {self.learner} "
        "compares that many responses to a query, so it must be >= 2 and divide "
        f"config.unlearning.rollout_batch_size ({self.rollout_batch_size}).")
    for name in ("kl_coef", "anchor_coef", "value_coef", "distill_coef"):
      at_least(f"{section}.{name}", getattr(self, name), 0.0, "it weighs a penalty")
    for name in ("weight_decay", "top_k", "warmup_steps", "max_new_tokens"):
      at_least(f"{section}.{name}", getattr(self, name), 0)
    for name in ("discount", "gae_lambda", "final_rate"):
      within(f"{section}.{name}", getattr(self, name), 0.0, 1.0)
    if not 0 < self.top_p <= 1:
      raise InputError(f"config.unlearning.top_p is {self.top_p}: it must lie in (0, 1].")
    if self.target_score > 1:
      raise InputError(
        f"config.unlearning.target_score is {self.target_score}: a score lies in [0, 1]; "
        "a negative value has it measured on unseen owners' queries."
      )

"""Settings of the reinforcement learning run."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import (
  Count,
  Fraction,
  NonNegative,
  Positive,
  PositiveFraction,
  Size,
  choice,
  settings,
)
from dareu_jax.rl.rewards import LogTransform, RewardForm, Transform, linear_transform
from dareu_jax.rl.starts import Cut, Reads, Text


def _reward_names() -> tuple[str, ...]:
  from dareu_jax.rl.reward_functions import REWARDS  # imported late to avoid a cycle

  return REWARDS.names()


@settings
class RLSettings:
  """Reinforcement learning on forget queries with distillation on retained data."""

  # 'grpo' and 'rloo' have no critic: they compare the responses to a query with each other, and
  # ignore critic, discount, gae_lambda, whiten_advantages, value_clip_eps, value_coef and
  # value_learning_rate.
  learner: Literal["ppo", "grpo", "rloo"] = "ppo"
  # For PPO: a head on the policy's trunk, on a trunk of its own, or a fit made for each rollout,
  # which ignores value_clip_eps, value_coef and value_learning_rate
  critic: Literal["shared", "separate", "regression"] = "shared"
  # Reward
  reward: Annotated[str, choice(_reward_names)] = "attribution"  # scores the responses
  reward_form: RewardForm = "neutral"  # how scores become token rewards: docs/method.md
  segment_length: Count = 2  # κ: tokens between two invocations of the attribution function
  transform: Literal["log", "linear"] = "log"  # of scores to rewards; 'linear' ignores C_seg
  # ε: scores are clipped to [ε, 1-ε] before the log, and recall hardly sees tokens below it
  epsilon: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
  # C_seg, at least: small is sharp and clips early, large is flat. Raised where so many owners are
  # forgotten that the score of chance would clip
  c_seg: Positive = 0.3
  # β: weight of the KL to the previous epoch's policy; no effect where an epoch is one rollout
  kl_coef: NonNegative = 0.1
  # η: weight of a token's centered log-ratio to the original; 0 in the paper.
  anchor_coef: NonNegative = 0.02
  # Exploring starts: rollouts that begin behind a beginning of a text that was learned, of which
  # the continuation alone is sampled and learned from. 0 in the paper.
  start_share: Fraction = 0.0  # share of the rollouts
  # Of which texts: true answers, their paraphrases, answers sampled from the original
  start_texts: tuple[Text, ...] = ("answer",)
  # Where the start ends: anywhere, early, where the original is surest of the next token, or where
  # the next token makes the attribution score jump
  start_cut: Cut = "uniform"
  # What the reward reads: the continuation alone, or start and continuation, from whose score the
  # start's own is taken off
  start_reads: Reads = "continuation"
  # Weight of the log-probability of true answers' tokens, until an answer is no more probable than
  # those of unseen owners are to the original, or to the end if there are none. 0 in the paper.
  recall_coef: NonNegative = 1.0
  # Policy optimization
  discount: Fraction = 1.0  # γ
  gae_lambda: Fraction = 0.95  # λ
  clip_eps: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the probability ratio
  value_clip_eps: Positive = 0.2  # of the change of a value
  value_coef: NonNegative = 1.0  # c_v
  distill_coef: NonNegative = 10.0  # λ_distill: weight of the KL to the original on retained data
  # Share of the original's own answers to questions of random words among all that is distilled:
  # they hold what no retained example holds. 0 in the paper
  rehearsed_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
  whiten_advantages: bool = True  # mean 0 and variance 1 over a rollout, held responses included
  learning_rate: Positive = 6e-4  # for the policy
  value_learning_rate: Positive = 3e-3  # for the value head
  warmup_steps: Size = 10  # updates over which the learning rate rises
  final_rate: Fraction = 0.1  # final share of the learning rates, which fall linearly
  weight_decay: NonNegative = 0.0  # on matrices only
  clip_norm: Positive = 1.0  # global gradient norm
  # Batches
  epochs: Count = 8  # at most; in each, `samples_per_prompt` responses to every forget query
  # Responses to each forget query in an epoch, at least: it is rounded up to whole rollouts
  samples_per_prompt: Count = 8
  rollout_batch_size: Count = 80  # responses per rollout; a query may occur more than once
  # Share of a rollout's responses that are learned from: those with the largest gradients.
  learned_share: PositiveFraction = 1.0
  minibatch_size: Count = 40  # responses per update; divides those that are learned from
  inner_epochs: Count = 1  # passes over a rollout
  retain_batch_size: Count = 32  # retained examples distilled per update
  recall_batch_size: Count = 20  # true answers per update, with a recall_coef
  # Sampling
  temperature: Positive = 0.85  # divides the logits
  top_k: Size = 0  # 0: off
  top_p: PositiveFraction = 1.0  # 1: off
  max_new_tokens: Size = 0  # longest response; 0: that of the longest response in the data
  # Which epoch is kept, and when the run stops
  selection: Literal["unseen_level", "last_at_level", "lowest_score", "last"] = "last_at_level"
  # Whether the responses to a query get advantages of 0 where their mean score, over those in a
  # rollout, is at or below the level: the aim is the level, not zero
  hold_at_level: bool = False
  # With selection 'unseen_level': epochs in a row at or below the level before the run stops
  settle_epochs: Count = 5

  def rollouts_per_epoch(self, queries: int) -> int:
    """Rollouts of an epoch with so many forget queries."""
    return -(-queries * self.samples_per_prompt // self.rollout_batch_size)

  @property
  def score_transform(self) -> Transform:
    """T, from scores to rewards."""
    return LogTransform(self.epsilon, self.c_seg) if self.transform == "log" else linear_transform

  @property
  def learns_values(self) -> bool:
    """Whether there is a critic to train."""
    return self.learner == "ppo" and self.critic != "regression"

  def scores_again(self, moved: bool) -> bool:
    """Whether sampled responses go through the policy once more: for a KL to the previous epoch's,
    from which it has `moved`, for an anchor or for a critic."""
    return moved or bool(self.anchor_coef) or self.learns_values

  @property
  def visits_true_answers(self) -> bool:
    """Whether the policy learns at states within true answers."""
    return bool(self.start_share or self.recall_coef)

  @property
  def group_size(self) -> int:
    """Responses to a query that follow each other in a rollout."""
    return 1 if self.learns_values else self.samples_per_prompt

  @property
  def of_programs(self) -> "RLSettings":
    """The settings with defaults in place of those that no compiled program depends on: runs that
    differ in these alone share their programs."""
    names = ("learning_rate", "value_learning_rate", "warmup_steps", "final_rate", "epochs",
             "selection", "hold_at_level", "settle_epochs", "rehearsed_share", "start_share",
             "start_texts", "start_cut", "start_reads")
    return dataclasses.replace(self, **{name: getattr(RLSettings, name) for name in names})

  @property
  def learned_rows(self) -> int:
    """Responses of a rollout that are learned from."""
    return max(1, round(self.learned_share * self.rollout_batch_size))

  @property
  def updates_per_rollout(self) -> int:
    return self.inner_epochs * self.learned_rows // self.minibatch_size

  def rate_scale(self, update: int, queries: int) -> float:
    """Share of the learning rates in an update of a run with so many forget queries: a linear
    warmup times a linear fall over the whole run."""
    total = self.epochs * self.rollouts_per_epoch(queries) * self.updates_per_rollout
    rising = min(1.0, (update + 1) / max(1, self.warmup_steps))
    return rising * (1 - (1 - self.final_rate) * update / total)

  def __post_init__(self):
    if not self.start_texts or len(set(self.start_texts)) < len(self.start_texts):
      raise InvalidSetting("start_texts", self.start_texts, "it must name some texts, each once.")
    if self.learned_rows % self.minibatch_size:
      raise InvalidSetting(
        "minibatch_size", self.minibatch_size,
        f"it must divide {self.learned_rows}, the responses of a rollout that are learned from "
        f"(rollout_batch_size {self.rollout_batch_size}, learned_share {self.learned_share:g}).")
    if not self.learns_values and (
        self.samples_per_prompt < 2 or self.rollout_batch_size % self.samples_per_prompt):
      who = "critic=regression" if self.learner == "ppo" else self.learner
      raise InvalidSetting(
        "samples_per_prompt", self.samples_per_prompt,
        f"{who} compares that many responses to a query, so it must be >= 2 and divide "
        f"rollout_batch_size ({self.rollout_batch_size}). Change either.")

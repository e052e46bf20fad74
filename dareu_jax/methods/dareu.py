"""DareU: de-attribution by reinforcement learning (arXiv 2605.30919)."""

import dataclasses
from typing import Any, ClassVar

from dareu_jax.core.errors import InputError
from dareu_jax.methods.base import Footprint, Method, Shapes, Task, Unlearned, register_method
from dareu_jax.rl import loop
from dareu_jax.rl.rehearsal import own_answers
from dareu_jax.rl.reward_functions import REWARDS, Facts, ForgetSet, Reward
from dareu_jax.rl.rewards import least_c_seg
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.start_paths import start_paths
from dareu_jax.rl.starts import longest_start
from dareu_jax.training.supervised import StageIO


@register_method("dareu")
class DareU(RLSettings, Method):
  """PPO lowers the attribution score that an owner classifier gives to the model's own responses.

  The pieces: `rl.rewards` (log transform, segments, token rewards), `rl.losses` (PPO, value,
  distillation on retained data), `rl.loop` (epochs), `rl.selection` (which epoch is kept).
  """

  depends_on: ClassVar[tuple[str, ...]] = ("monitor",)
  takes_reward: ClassVar[bool] = True
  leads_report: ClassVar[bool] = True
  selects_epoch: ClassVar[bool] = True

  @property
  def uses_refusals(self) -> bool:
    return REWARDS[self.reward].uses_refusals

  def check(self, facts: Facts) -> None:
    reward = REWARDS[self.reward]
    if self.start_share and self.start_reads == "whole" and reward.whole:
      raise InputError(
        f"config.unlearning.{self.name}.start_reads is 'whole', which takes the start's own score "
        f"off, and the reward {self.reward!r} gives every prefix the score of the whole: nothing "
        "would be left. Set it to 'continuation', or take another reward.")
    if reward.check is not None:
      reward.check(facts)

  @property
  def title(self) -> str:
    return "DareU"

  def report_facts(self, history: list[dict[str, Any]]) -> dict[str, str]:
    """What the reward is and what it cost."""
    seconds, reward = (sum(record.get(key, 0.0) for record in history)
                       for key in ("step_seconds", "reward_seconds"))
    c_seg = history[-1].get("c_seg", self.c_seg) if history else self.c_seg  # it may be raised
    transform = f"log with C_seg {c_seg:.2g}" if self.transform == "log" else self.transform
    return {"reward": (
      f"{self.reward} by {self.learner}, {self.reward_form}, {transform}, κ {self.segment_length}; "
      f"scoring took {reward:.1f} s of the {seconds:.1f} s of unlearning "
      f"({reward / max(seconds, 1e-9):.1%})")}

  def longest_sampled(self, usual: int) -> int:
    length = self.max_new_tokens or usual
    return length + (longest_start(length) if self.start_share else 0)

  @property
  def footprint(self) -> Footprint:
    return Footprint(
      update=self.minibatch_size + self.retain_batch_size + self._recall_rows,
      rollout=self.rollout_batch_size,
      second_trunk=self.learns_values and self.critic == "separate")

  @property
  def _recall_rows(self):
    return self.recall_batch_size if self.recall_coef else 0

  def work(self, shapes: Shapes) -> tuple[int, float]:
    slots = shapes.longest_prompt + self.longest_sampled(shapes.longest_response)
    size = shapes.model_parameters
    rollouts = self.epochs * self.rollouts_per_epoch(shapes.forget)
    updates = rollouts * self.updates_per_rollout
    # A rollout is decoded, goes through the policies that its rewards need and the classifier; an
    # update learns from a minibatch and from retained rows, those also under the teacher.
    moved = self.rollouts_per_epoch(shapes.forget) > 1
    passes = 1 + self.scores_again(moved) + moved + bool(self.anchor_coef)
    decoded = rollouts * self.rollout_batch_size * slots * (
      2 * passes * size + 2 * shapes.classifier_parameters)
    learned = updates * slots * size * (
      (self.minibatch_size + self._recall_rows) * shapes.training_cost
      + self.retain_batch_size * (shapes.training_cost + 2))
    return updates, decoded + learned

  def unlearn(self, task: Task, stage: StageIO) -> Unlearned:
    """The run of `rl.loop`, and the epoch that `rl.selection` keeps."""
    result = loop.run(self.rl_task(task), stage)
    return Unlearned(result.policy, result.reports, result.chosen_epoch)

  def rl_task(self, task: Task) -> loop.RLTask:
    """The task of the reinforcement learning run."""
    registered = REWARDS[self.reward]
    reward: Reward = task.reward or (
      registered(task) if registered.of_task else registered)
    length = self.max_new_tokens or task.longest_response
    settings = dataclasses.replace(
      self, max_new_tokens=length, learning_rate=task.learning_rate or self.learning_rate,
      c_seg=max(self.c_seg, least_c_seg(float(task.classifier.is_forget.mean()))),
      segment_length=length if getattr(task.reward or registered, "whole", False)
      else self.segment_length)
    forget = ForgetSet(task.forget, task.examples, task.queries, task.classifier, task.refusals)
    retain = task.retain
    if settings.rehearsed_share:
      retain += own_answers(task.original.params, task.evaluator, task.classifier, task.encode,
                            retain, settings.rehearsed_share, task.seed)
    return loop.RLTask(
      original=task.original, value_head=task.value_head(), reward=reward, forget=forget,
      retain=task.batches(retain, self.retain_batch_size, seed=task.seed + 2),
      evaluator=task.evaluator, settings=settings, seed=task.seed, monitor=task.monitor,
      paths=start_paths(settings, task.evaluator, task.original, forget, task.seed),
      true_answers=task.batches(task.forget, settings.recall_batch_size, seed=task.seed + 3)
      if settings.recall_coef else None)

"""The policies along a DareU run on one of the study's full models."""

import dataclasses

import jax
import jax.numpy as jnp

from dareu_jax.attribution.study.world import Study
from dareu_jax.models import factory
from dareu_jax.unlearning import dareu, loop


def checkpoints(study: Study, original, form, epochs):
  """Yields the policy before the first epoch and after each.

  Args:
    original: adapters of the full model.
    form: of the reward.
    epochs: how many; no rule stops the run before.
  """
  task = make_task(study, original, form, epochs)
  state = dareu.init_learner(task.original, task.value, task.settings)
  yield task.original
  for step in range(epochs * task.rollouts_per_epoch):
    state, _ = loop.learn(task, state, step)
    if (step + 1) % task.rollouts_per_epoch == 0:
      # A copy: the next update takes the state's own buffers.
      policy = jax.tree.map(jnp.copy, state.policy)
      state = state._replace(previous=jax.tree.map(jnp.copy, policy))
      yield policy


def make_task(study: Study, original, form, epochs):
  """Models and data of the run: the study's own classifier rewards it."""
  settings = study.settings.unlearning
  settings = dataclasses.replace(
    settings, reward_form=form, epochs=epochs,
    max_new_tokens=settings.max_new_tokens or study.longest_response)
  value = factory.build_value_head(study.config, study.mesh)
  frame, params, frozen = study.classifiers["classifier"]
  corpus = study.corpus
  return loop.Task(
    models=dareu.Models(study.base.frame, value.frame, frame), original=original,
    frozen=study.base.frozen, value=value.trainable, value_frozen=value.frozen,
    classifier=(params, frozen), is_forget=study.is_forget,
    forget_rows=study.rows(corpus.forget), unseen_rows=study.rows(corpus.holdout),
    retain=study.batches(study.rows(corpus.retain), settings.retain_batch_size,
                         seed=study.settings.seed + 2, one_bucket=True),
    evaluator=study.evaluator, settings=settings, seed=study.settings.seed)

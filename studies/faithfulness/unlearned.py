"""The policies along a DareU run on one of the study's full models."""

import dataclasses

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.models import factory
from dareu_jax.rl import learner as dareu
from dareu_jax.rl import loop
from dareu_jax.rl import reward_functions as rewards
from studies.faithfulness.world import Study


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
      state = state._replace(previous=dareu.copy(state.policy))
      yield dareu.copy(state.policy)


def make_task(study: Study, original, form, epochs):
  """Models and data of the run: the study's own classifier rewards it, no epoch is assessed."""
  settings = study.settings.unlearning
  settings = dataclasses.replace(
    settings, reward_form=form, epochs=epochs,
    max_new_tokens=settings.max_new_tokens or study.longest_response)
  value = factory.build_value_head(study.config, study.mesh)
  corpus, rows = study.corpus, study.rows(study.corpus.forget)
  queries = tuple(row.prompt for row in rows)
  classifier = Scorer(
    *study.classifiers["classifier"], study.is_forget, study.settings.evaluation.batch_size,
    study.settings.length_multiple)
  return loop.Task(
    models=dareu.Models(study.base.frame, value.frame), original=original,
    frozen=study.base.frozen, value=value.trainable, value_frozen=value.frozen,
    reward=rewards.Attribution(classifier, queries), forget_rows=rows,
    retain=study.batches(study.rows(corpus.retain), settings.retain_batch_size,
                         seed=study.settings.seed + 2, one_bucket=True),
    evaluator=study.evaluator, settings=settings, seed=study.settings.seed)

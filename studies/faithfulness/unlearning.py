"""The policies along a DareU run on one of the study's full models."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.rl import learner, loop
from dareu_jax.rl.reward_functions import ForgetSet, attribution
from dareu_jax.rl.rewards import RewardForm
from studies.faithfulness.study import Study


def checkpoints(study: Study, original: Any, form: RewardForm, epochs: int) -> Iterator[Any]:
  """Yields the policy before the first epoch and after each.

  Args:
    study: Study.
    original: adapters of the full model.
    form: form of the reward.
    epochs: number of epochs; no rule stops the run earlier.
  """
  task = make_task(study, original, form, epochs)
  state = learner.init_learner(task.original.params, task.value_head.params, task.settings)
  yield task.original.params
  for step in range(epochs * task.rollouts_per_epoch):
    state, _ = loop.learn(task, state, step)
    if (step + 1) % task.rollouts_per_epoch == 0:
      state = learner.end_epoch(state)
      # A copy: the next update donates the state's buffers.
      yield learner.copy(state.policy)


def make_task(study: Study, original: Any, form: RewardForm, epochs: int) -> loop.RLTask:
  """Models and data of the run: the study's classifier gives the reward, without a monitor."""
  settings, data, models = study.settings.unlearning, study.data, study.models
  settings = dataclasses.replace(
    settings, reward_form=form, epochs=epochs,
    max_new_tokens=settings.max_new_tokens or data.longest_response)
  classifier = Scorer(
    (study.classifiers["classifier"],), study.is_forget, study.settings.evaluation.batch_size,
    study.settings.length_multiple, to_device=models.to_device)
  corpus = data.corpus
  return loop.RLTask(
    original=models.base.with_params(original), value_head=models.value_head(), reward=attribution,
    forget=ForgetSet(data.rows(corpus.forget), corpus.forget, data.queries(corpus.forget),
                     classifier),
    retain=data.batches(data.rows(corpus.retain), settings.retain_batch_size,
                        seed=study.settings.seed + 2, one_bucket=True),
    evaluator=models.evaluator, settings=settings, seed=study.settings.seed)

"""The plan's programs are those that the run will run: their sizes, and what stays beside them."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from dareu_jax.core.numerics import computing_on
from dareu_jax.data.batches import prompt_batch
from dareu_jax.evaluation.records import ALL_SPLITS
from dareu_jax.pipeline import experiment, plan
from dareu_jax.pipeline.graph import candidates
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.unlearning import make_task
from dareu_jax.pipeline.workdir import read_config
from dareu_jax.rl import learner
from dareu_jax.rl.programs import bytes_on_device, memory


@pytest.fixture(scope="module")
def planned(finished):
  """(the run, the real task of its method, the job that the plan makes of it)."""
  settings = Settings.from_config(read_config(finished[0]))
  (run,) = experiment.prepare(settings, finished[0])[:1]
  with computing_on(run.models.mesh):
    method = settings.unlearning["dareu"]
    task = method.rl_task(make_task(run, candidates(settings)[0]))
    yield run, task, plan.unlearning_job(run, method)


def shapes(tree):
  return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


def test_the_programs_of_the_plan_have_the_sizes_of_the_run(planned):
  """Another width or batch is another program, with other memory."""
  run, task, job = planned
  # C_seg depends on the classifier's classes, which the plan does not know; no size depends on it.
  settings = dataclasses.replace(task.settings, c_seg=run.settings.unlearning["dareu"].c_seg)
  state, original, value_head, rollout, minibatch, retain, recall, _ = job.programs["update"].args
  assert job.programs["update"].static == {"settings": settings.of_programs}
  real = learner.init_learner(task.original.params, task.value_head.params, settings)
  assert shapes(state) == shapes(real) and shapes(original) == shapes(task.original)
  assert shapes(retain) == shapes(task.retain[0])
  assert shapes(recall) == shapes(learner.Recall(task.true_answers[0], np.float32(0.5)))
  assert minibatch.shape == (settings.minibatch_size,)
  prompts = prompt_batch(task.forget.rows, settings.rollout_batch_size,
                         multiple=task.retain.multiple, pad_id=0, width=task.prompt_width)
  rollout_args = job.programs["rollout"].args
  assert shapes(rollout_args[1:3]) == shapes(prompts)
  assert rollout.token_ids.shape[1] == prompts[0].shape[1] + settings.max_new_tokens
  assert job.programs["scores"].static["moved"] == (task.rollouts_per_epoch > 1)
  assert job.programs["rollout"].static["eos_id"] == task.evaluator.tokenizer.eos_id


def test_runs_at_other_rates_share_programs(planned):
  """A grid of rates would compile the largest program once more for each of them."""
  _, task, job = planned
  settings = task.settings
  other = dataclasses.replace(
    settings, learning_rate=1.0, value_learning_rate=2.0, warmup_steps=settings.warmup_steps + 1,
    final_rate=0.5, epochs=settings.epochs + 1, selection="lowest_score",
    settle_epochs=settings.settle_epochs + 1)
  assert other.of_programs == settings.of_programs
  with jax.set_mesh(job.programs["update"].args[0].step.sharding.mesh):
    for name in ("scores", "update"):
      function, args, static = job.programs[name][:3]
      one, two = (function.lower(*args, **static | {"settings": each}).as_text()
                  for each in (settings, other))
      assert one == two  # nor does any depend on what it takes for the same


def test_what_stays_is_what_the_run_holds(planned):
  """The models, all roles of the policy, both moments and two classifiers; each counted once."""
  run, task, job = planned
  state = learner.init_learner(task.original.params, task.value_head.params, task.settings)
  classifiers = [run.models.scorer(name).models for name in ("classifier", "judge")]
  held = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(
    (state, task.original, *classifiers))}
  assert bytes_on_device(job.resident) == pytest.approx(sum(held.values()), rel=0.01)


def test_each_further_classifier_is_planned_for(planned):
  """One more gives the reward, and one more is the judge; frozen weights they would share."""
  run, _, job = planned
  settings = dataclasses.replace(
    run.settings, classifier=dataclasses.replace(run.settings.classifier, members=2))
  more = plan.unlearning_job(dataclasses.replace(run, settings=settings), settings.unlearning["dareu"])
  grown = bytes_on_device(more.resident) - bytes_on_device(job.resident)
  assert grown == 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(run.models.classifier.params))
  assert more.programs["reward"].times == 2 * job.programs["reward"].times


def test_the_evaluation_is_planned_at_its_own_sizes(planned):
  """Its batches and answers may be larger than a rollout's."""
  run, task, job = planned
  evaluator = task.evaluator
  asked = [row for split in ALL_SPLITS for row in run.data.rows(run.data.evaluated(split))]
  ids, _ = prompt_batch(asked[:1], evaluator.batch_size, multiple=evaluator.multiple, pad_id=0,
                        width=max(len(row.prompt) for row in asked))
  answers = job.programs["answers"]
  assert answers.args[1].shape == ids.shape
  assert answers.static["max_new_tokens"] == evaluator.max_new_tokens
  answers.lower(run.models.mesh)
  assert job.programs["likelihoods"].args[1].completion_ids.shape == (
    evaluator.batch_size, evaluator.max_new_tokens)
  job.programs["likelihoods"].lower(run.models.mesh)


def test_the_peak_is_at_least_what_stays_and_what_an_update_needs(planned):
  run, _, job = planned
  update = job.programs["update"]
  needed = memory(update, update.lower(run.models.mesh).compile(), job.resident)
  logits = np.prod(update.args[5].completion_ids.shape) * run.models.config.vocab_size * 4
  assert needed.peak >= bytes_on_device(job.resident) + needed.temporaries
  assert needed.temporaries > logits


def test_batches_that_the_devices_do_not_divide_are_told(planned):
  """They are not split, and eight devices take as long as one."""
  run, _, _ = planned
  assert not list(plan.undivided(run))
  mesh = types.SimpleNamespace(shape={"data": 4, "fsdp": 2, "tensor": 3})
  eight = types.SimpleNamespace(settings=run.settings, models=types.SimpleNamespace(mesh=mesh))
  method = run.settings.unlearning["dareu"]
  told = "\n".join(plan.undivided(eight))
  for name in ("rollout_batch_size", "minibatch_size", "retain_batch_size"):
    size = getattr(method, name)
    assert (f"config.unlearning.dareu.{name} is {size}, no multiple of the 8 devices" in told) == (size % 8 > 0)
  off = dataclasses.replace(run.settings, unlearning={
    "dareu": dataclasses.replace(method, recall_coef=0.0, recall_batch_size=7)})
  assert "recall_batch_size" not in "\n".join(plan.undivided(
    types.SimpleNamespace(settings=off, models=eight.models)))
  assert method.minibatch_size % 8 and "computes the whole batch" in told

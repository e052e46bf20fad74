"""DareU as a method: what of a task the reinforcement learning run is given."""

import dataclasses
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Row
from dareu_jax.data.examples import Example
from dareu_jax.methods import dareu
from dareu_jax.methods.base import Footprint, Shapes, Task
from dareu_jax.methods.dareu import DareU
from dareu_jax.rl.reward_functions import REWARDS, Facts, register_reward
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.starts import LEFT
from dareu_jax.training.optimizers import TrainSettings

ROWS = (Row((4, 5), (6, 1), 0), Row((7,), (8, 9, 1), 1))
# Every token makes the score rise by a tenth.
CLASSIFIER = types.SimpleNamespace(
  is_forget=np.array([False, False]),
  prefixes=lambda ids, lengths, queries: np.broadcast_to(
    np.arange(1, 1 + ids.shape[1], dtype=np.float32) / 10, ids.shape))
EXAMPLES = (Example("a", "q", "r"), Example("b", "p", "s"))


def make_task(**changes):
  values = dict.fromkeys(field.name for field in dataclasses.fields(Task))
  evaluator = types.SimpleNamespace(tokenizer=types.SimpleNamespace(pad_id=0))
  values |= dict(
    original="original", value_head=lambda: "fresh head", examples=EXAMPLES, forget=ROWS,
    retain=ROWS[:1], queries=((4,), (7,)), classifier=CLASSIFIER, refusals=("no",),
    evaluator=evaluator, monitor="monitor", longest_response=24, length_multiple=8,
    seed=5)
  return Task(**(values | changes))


def test_the_run_is_given_the_tasks_models_and_data():
  task = make_task()
  given = DareU().rl_task(task)
  assert (given.original, given.value_head, given.monitor, given.seed) == (
    "original", "fresh head", "monitor", 5)
  assert given.evaluator is task.evaluator
  assert (given.forget.rows, given.forget.examples, given.forget.queries) == (
    ROWS, EXAMPLES, ((4,), (7,)))
  assert (given.forget.classifier, given.forget.refusals) == (CLASSIFIER, ("no",))
  assert given.retain.rows == ROWS[:1]
  assert (given.retain.batch_size, given.retain.seed, given.retain.one_bucket) == (32, 7, True)
  recalled = given.true_answers
  assert recalled.rows == ROWS and (recalled.batch_size, recalled.seed, recalled.one_bucket) == (
    20, 8, True)
  assert DareU(recall_coef=0.0).rl_task(task).true_answers is None


def test_own_answers_of_the_original_are_distilled_with_the_retained_rows(monkeypatch):
  task = make_task(original=types.SimpleNamespace(params="params"), encode="encode")
  given = ("params", task.evaluator, CLASSIFIER, "encode", ROWS[:1], 0.25, 5)
  monkeypatch.setattr(dareu, "own_answers", lambda *args: ROWS[1:] if args == given else None)
  assert DareU(rehearsed_share=0.25).rl_task(task).retain.rows == ROWS


def test_settings_are_the_methods_own_but_for_what_the_data_says():
  method = DareU(kl_coef=0.7)
  settings = method.rl_task(make_task()).settings
  assert isinstance(settings, RLSettings)
  assert settings == dataclasses.replace(method, max_new_tokens=24)
  assert DareU(max_new_tokens=9).rl_task(make_task()).settings.max_new_tokens == 9


@pytest.mark.parametrize(("forgotten", "c_seg"), [(1, 0.3), (5, math.log(2) / 0.36)])
def test_the_score_of_chance_never_clips(forgotten, c_seg):
  """Of ten owners: with many to forget, an answer like nobody's must still cost less than the truth."""
  classifier = types.SimpleNamespace(is_forget=np.arange(10) < forgotten, prefixes=CLASSIFIER.prefixes)
  settings = DareU().rl_task(make_task(classifier=classifier)).settings
  assert settings.c_seg == pytest.approx(c_seg)
  chance, truth = settings.score_transform(jnp.array([forgotten / 10, 0.99]))
  assert truth == -1 and chance > -0.37


def test_a_learning_rate_of_the_run_wins():
  assert DareU().rl_task(make_task(learning_rate=0.5)).settings.learning_rate == 0.5
  assert DareU(learning_rate=0.25).rl_task(make_task()).settings.learning_rate == 0.25


@pytest.mark.parametrize(("reward", "segment"), [("attribution", 3), ("rouge", 24), ("refusal", 24)])
def test_a_score_of_whole_responses_is_one_segment(reward, segment):
  """In segments it would count again and again."""
  given = DareU(reward=reward, segment_length=3).rl_task(make_task())
  assert given.reward is REWARDS[reward] and given.settings.segment_length == segment


def test_a_reward_that_is_passed_takes_the_place_of_the_named_one():
  def mine(responses):
    return responses

  given = DareU(reward="rouge", segment_length=3).rl_task(make_task(reward=mine))
  assert given.reward is mine and given.settings.segment_length == 3


def test_a_reward_of_the_task_is_made_from_it_once_and_checked_before_any_work(monkeypatch):
  entries = dict(REWARDS.items())
  monkeypatch.setattr(REWARDS, "_entries", entries)
  checked, made = [], []

  @register_reward("made", of_task=True, check=checked.append)
  def made_reward(task):
    made.append(task)
    return "reward"

  facts = Facts(False, 3, "float32", False)
  DareU(reward="made").check(facts)
  DareU(reward="rouge").check(facts)
  assert checked == [facts] and not made
  task = make_task()
  given = DareU(reward="made", segment_length=3).rl_task(task)
  assert given.reward == "reward" and given.settings.segment_length == 3
  assert len(made) == 1 and made[0] is task
  DareU(reward="made").rl_task(make_task(reward=lambda responses: responses))
  assert len(made) == 1  # one that is passed takes its place


def test_starts_are_not_taken_off_a_reward_that_is_the_same_everywhere():
  """Nothing would be left to learn from."""
  facts = Facts(False, 3, "float32", False)
  DareU(start_share=0.5, start_reads="whole").check(facts)
  DareU(reward="rouge", start_reads="whole").check(facts)  # there are no starts
  with pytest.raises(InputError, match="start_reads is 'whole'"):
    DareU(reward="rouge", start_share=0.5, start_reads="whole").check(facts)


def test_starts_are_those_of_the_tasks_answers():
  begun = DareU(start_share=0.5).rl_task(make_task())
  assert [[path.ids for path in each] for each in begun.paths] == [[], []]  # too short for starts
  longer = (ROWS[0]._replace(completion=(6, 7, 8, 9, 1)), ROWS[1])
  begun = DareU(start_share=0.5).rl_task(make_task(forget=longer))
  assert [[path.ids for path in each] for each in begun.paths] == [[(6, 7, 8, 9, 1)], []]
  assert DareU().rl_task(make_task(forget=longer)).paths == ((), ())


def test_work_goes_by_updates_and_tokens():
  method = DareU(epochs=2, samples_per_prompt=3, rollout_batch_size=10, minibatch_size=5,
                 inner_epochs=2, retain_batch_size=5, recall_batch_size=3, max_new_tokens=6)
  shapes = Shapes(forget=7, longest_prompt=4, longest_response=30, longest=50, model_parameters=100,
                  classifier_parameters=10, training_cost=6, training=TrainSettings())
  updates, operations = method.work(shapes)
  assert updates == 2 * 3 * 2 * 2  # epochs, rollouts of 21 responses, passes, minibatches of 10
  # Decoded, scored under the policy, the previous epoch's and the original, and classified.
  decoded = 6 * 10 * (4 + 6) * (8 * 100 + 2 * 10)
  learned = updates * (4 + 6) * 100 * ((5 + 3) * 6 + 5 * 8)
  assert operations == decoded + learned
  longer = dataclasses.replace(method, max_new_tokens=0).work(shapes)[1]
  assert longer == operations * (4 + 30) / (4 + 6)  # the longest response of the data
  cheapest = DareU(epochs=1, samples_per_prompt=2, rollout_batch_size=14, minibatch_size=14,
                   retain_batch_size=5, max_new_tokens=6, critic="regression", anchor_coef=0.0,
                   recall_coef=0.0)
  _, operations = cheapest.work(shapes)  # nothing but decoding and the classifier
  assert operations == 10 * (14 * (2 * 100 + 2 * 10) + 100 * (14 * 6 + 5 * 8))


def test_it_says_what_it_samples_and_holds():
  method = DareU(max_new_tokens=6, minibatch_size=4, retain_batch_size=5, recall_batch_size=3,
                 rollout_batch_size=16)
  assert (method.longest_sampled(24), method.footprint) == (6, Footprint(update=12, rollout=16))
  assert dataclasses.replace(method, recall_coef=0.0).footprint.update == 9
  begun = dataclasses.replace(method, start_share=0.5)
  assert begun.longest_sampled(24) == 6 + 6 - LEFT  # a response behind the longest start
  assert dataclasses.replace(begun, max_new_tokens=0).longest_sampled(24) == 24 + 24 - LEFT
  apart = dataclasses.replace(method, critic="separate")
  assert apart.footprint.second_trunk
  assert not dataclasses.replace(apart, learner="grpo").footprint.second_trunk


def test_the_report_says_what_the_reward_cost():
  history = [{"step_seconds": 8.0, "reward_seconds": 1.0}, {"step_seconds": 12.0, "reward_seconds": 3.0},
             {"loss": 1.0}]
  facts = DareU(reward="rouge", learner="rloo", segment_length=4).report_facts(history)
  assert facts["reward"].startswith("rouge by rloo, neutral, log with C_seg 0.3, κ 4;")
  raised = DareU().report_facts([{"c_seg": 1.4241}])
  assert "log with C_seg 1.4, κ 2" in raised["reward"]
  assert "linear, κ 2" in DareU(transform="linear").report_facts([])["reward"]
  assert "4.0 s of the 20.0 s of unlearning (20.0%)" in facts["reward"]

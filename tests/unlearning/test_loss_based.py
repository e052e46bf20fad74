"""The loss-based methods on a small model that has learnt its data: what each does to it."""

import contextlib
import copy
import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from dareu_jax.data.batches import Batches, Row
from dareu_jax.models import states
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.huggingface import merged_tensors
from dareu_jax.objective_settings import NAMES
from dareu_jax.settings import LORA_TARGETS, LoraSettings, Settings
from dareu_jax.training import supervised
from dareu_jax.unlearning import loss_based
from tests.configs import tiny_config
from tests.unlearning.test_guards import report
from tests.unlearning.test_loop import Store

SETTINGS = Settings.from_config(tiny_config())
TRAINING = dataclasses.replace(
  SETTINGS.baseline, learning_rate=3e-3, batch_size=4, epochs=6, warmup=0.0, schedule="constant")
GENTLE = dataclasses.replace(TRAINING, learning_rate=1e-3)
EOS = 1


def rows_of(seed, count):
  rng = np.random.default_rng(seed)
  return tuple(Row(tuple(rng.integers(2, 30, 3).tolist()),
                   (*rng.integers(2, 30, rng.integers(3, 6)).tolist(), EOS), 0)
               for _ in range(count))


FORGET, RETAIN = rows_of(0, 6), rows_of(1, 8)
REFUSAL = (30, 31, 30, EOS)


class Checkpoints(Store):
  """Copies, since the next step takes the buffers of the state."""

  def save(self, step, state, meta):
    super().save(step, jax.tree.map(np.array, state), copy.deepcopy(meta))


def batches(rows, seed):
  return Batches(rows, 4, 8, 0, seed, one_bucket=True)


def quiet(total, step=0):
  return contextlib.nullcontext(types.SimpleNamespace(
    total=total, set_postfix=lambda *args, **kwargs: None, update=lambda: None))


def fit(state, frozen, steps, loss, training, frame, store=None, schedule=None):
  writer = types.SimpleNamespace(rewind=lambda step: None, write=lambda *args: None,
                                 batch=lambda *args: None)
  return supervised.fit(
    supervised.init_train_state(state, training), frozen, steps, frame=frame, loss_fn=loss,
    settings=training, key=jax.random.key(0), store=store or Checkpoints(), writer=writer, bar=quiet,
    schedule=schedule)


@pytest.fixture(scope="module")
def world():
  """(frame, adapters, frozen) of a model that knows forget and retain rows by heart."""
  lora = LoraSettings(rank=8, alpha=16.0, targets=LORA_TARGETS)
  config = ModelConfig(vocab_size=32, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=2,
                       num_kv_heads=1, head_dim=16, lora=lora)
  frame, adapters, frozen = states.split(
    Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=True)
  # All rows in a batch, and a rate that falls to nothing, so that it ends at one place whatever the
  # rounding. After hundreds of small batches at a constant rate it would end anywhere.
  training = dataclasses.replace(TRAINING, learning_rate=1e-2, epochs=20, schedule="linear")
  rows = FORGET + RETAIN
  adapters = fit(adapters, frozen, Batches(rows, len(rows), 8, 0, 0, one_bucket=True),
                 supervised.language_model_loss, training, frame)
  return frame, adapters, frozen


def nll(world, params, rows):
  frame, _, frozen = world
  total, count, _ = supervised.language_model_loss(
    frame, params, frozen, Batches(rows, len(rows), 8, 0, 0, one_bucket=True)[0], None)
  return float(total / count)


def make_task(world, method, *, training=TRAINING, watch_every=2, **changes):
  frame, adapters, frozen = world
  objective = dataclasses.replace(getattr(SETTINGS.objectives, method), **changes)
  others = ()
  if method in ("dpo", "altpo", "idk"):
    others = tuple((row._replace(completion=REFUSAL),) for row in FORGET)
  looks = []
  monitor = types.SimpleNamespace(
    looks=looks, assess=lambda policy, epoch: looks.append(epoch) or report(epoch=epoch))
  return loss_based.Task(
    method=method, objective=objective, training=training, frame=frame, original=adapters,
    frozen=frozen, forget=batches(FORGET, 3), retain=batches(RETAIN, 2), others=others,
    monitor=monitor, watch_every=watch_every, seed=0, put=lambda batch: batch)


def run(task, store=None):
  writer = types.SimpleNamespace(rewind=lambda step: None, write=lambda *args: None,
                                 batch=lambda *args: None)
  return loss_based.run(task, store=store or Checkpoints(), writer=writer, bar=quiet)


def test_the_model_knew_its_data(world):
  """Else nothing below could fail."""
  unseen = nll(world, world[1], rows_of(9, 8))
  assert max(nll(world, world[1], rows) for rows in (FORGET, RETAIN)) < 0.35 * unseen


def forget_term_alone(method):
  """Changes to a method's settings that leave its forget term and nothing else."""
  changes = dict(forget_coef=1.0, retain_nll_coef=0.0, retain_kl_coef=0.0)
  if method == "rmu":
    changes["retain_states_coef"] = 0.0
  if method == "pdu":
    changes["warmup_epochs"] = TRAINING.epochs + 1  # its multiplier looks at the retain term
  if method == "task_vector":
    changes["alpha"] = 3.0  # farther, the model is ruined on either side
  return changes


@pytest.mark.parametrize("method", [name for name in NAMES if name != "finetune"])
def test_a_forget_term_makes_forget_responses_less_likely_and_spares_the_original(world, method):
  """Without the term nothing moves; of the wrong sign, it moves them up by a tenth of this at most.

  At a small rate, since large steps in any direction make what was learnt less likely. Of IDK and RMU
  either sign does so at any rate: see the tests of other responses, and of the states.
  """
  before = jax.tree.map(np.array, world[1])
  policy, _ = run(make_task(world, method, training=GENTLE, **forget_term_alone(method)))
  rise = nll(world, policy, FORGET) - nll(world, world[1], FORGET)
  assert rise > 0.3, rise
  jax.tree.map(np.testing.assert_array_equal, before, world[1])  # training donates its own copy


def test_a_task_vector_of_adapters_is_a_line_in_the_weights(world):
  """W + BA - α (B'A' - BA): were both factors combined apart, α² would be in it."""

  frame, original, frozen = world

  def moved(alpha):
    policy, _ = run(make_task(world, "task_vector", alpha=alpha))
    now, was = ({name: tensor() for name, _, tensor in merged_tensors(frame.merge(one, frozen))}
                for one in (policy, original))
    return {name: now[name] - was[name] for name in now}

  once, thrice = moved(1.0), moved(3.0)
  assert max(np.abs(x).max() for x in once.values()) > 0.01
  for name, x in once.items():
    np.testing.assert_allclose(3 * x, thrice[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("method", ["grad_diff", "npo", "kl_minimisation", "maximum_entropy"])
def test_a_retain_term_keeps_what_is_retained(world, method):
  """The same run without its retain term must lose more of it."""
  kept, _ = run(make_task(world, method))
  lost, _ = run(make_task(world, method, retain_nll_coef=0.0, retain_kl_coef=0.0))
  assert nll(world, lost, RETAIN) - nll(world, kept, RETAIN) > 0.5


@pytest.mark.parametrize("method", ["idk", "dpo", "altpo"])
def test_other_responses_become_likelier(world, method):
  """Forgetting alone would pass for any of the three."""
  refusing = tuple(row._replace(completion=REFUSAL) for row in FORGET)
  policy, _ = run(make_task(world, method))
  assert nll(world, policy, refusing) < nll(world, world[1], refusing) - 0.5


def test_rmu_moves_the_states_of_its_layer_towards_its_goal(world):
  """States that are moved anywhere make what was learnt less likely."""
  frame, original, frozen = world
  task = make_task(world, "rmu", training=GENTLE, **forget_term_alone("rmu"))
  policy, _ = run(task)
  direction = np.asarray(jax.random.uniform(jax.random.key(task.seed), (32,)))
  goal = task.objective.scale * direction / np.linalg.norm(direction)

  def distance(params):
    view = loss_based.View(frame.merge(params, frozen), batches(FORGET, 0)[0])
    return np.linalg.norm((view.layer(task.objective.depth) - goal)[np.asarray(view.mask)])

  assert distance(policy) < 0.85 * distance(original)


def test_fine_tuning_on_retained_data_touches_no_forget_batch(world):
  task = make_task(world, "finetune")
  other = dataclasses.replace(task, forget=batches(rows_of(9, 6), 3))
  for a, b in zip(*(jax.tree.leaves(run(each)[0]) for each in (task, other)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", ["pdu", "scrub", "npo"])
def test_killed_after_any_step_it_ends_the_same(world, method):
  """The multiplier, the phase and the looks so far must come out of the checkpoint."""
  store = Checkpoints()
  policy, reports = run(make_task(world, method, warmup_epochs=0) if method == "pdu"
                        else make_task(world, method), store)
  for step in list(store.saved)[1:-1:3]:
    again, seen = run(make_task(world, method, warmup_epochs=0) if method == "pdu"
                      else make_task(world, method), store.until(step))
    jax.tree.map(np.testing.assert_array_equal, policy, again)
    assert [r.epoch for r in seen] == [r.epoch for r in reports] == [0, 2, 4, 6]


def test_scrub_takes_turns_and_the_multiplier_moves():
  scrub, pdu = SETTINGS.objectives.scrub, SETTINGS.objectives.pdu
  assert [scrub.weights(epoch, 1.0) for epoch in range(3)] == [(1, 0), (0, 1), (1, 0)]
  assert pdu.weights(3, 0.7) == (1.0, 0.7)
  course = loss_based.Course(TRAINING, 2, objective=pdu, watch=lambda p, e: report(epoch=e),
                             multiplier=1.0)
  seen = []
  for done in range(1, 7):
    course.observe(done, {"loss": 0.0, "retain_nll": pdu.target + 0.5}, None)
    seen.append(course.multiplier)
  assert seen == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]  # still for the first epoch (warm-up)


def test_the_last_epoch_is_always_looked_at(world):
  training = dataclasses.replace(TRAINING, epochs=5)
  task = make_task(world, "simnpo", training=training, watch_every=3)
  _, reports = run(task)
  assert [r.epoch for r in reports] == [0, 3, 5]

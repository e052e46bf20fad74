"""The loss-based methods on a small model that has learnt its data: what each does to it."""

import contextlib
import copy
import dataclasses
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import NonNegative, settings
from dareu_jax.core.trees import named_leaves
from dareu_jax.data.batches import Batches, Row
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import train_bpe
from dareu_jax.generation.strategies import Sample
from dareu_jax.methods.altpo import AltPO
from dareu_jax.methods.base import METHODS, Task
from dareu_jax.methods.gradient_ascent import gradient_ascent
from dareu_jax.methods.idk import refusals
from dareu_jax.methods.loss_based import LossMethod, ObjectiveSchedule, View
from dareu_jax.methods.pdu import PDU
from dareu_jax.methods.scrub import SCRUB
from dareu_jax.methods.undo import with_noise
from dareu_jax.models import handle
from dareu_jax.models.config import LORA_TARGETS, LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.huggingface import merged_tensors
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import TrainSettings
from tests.rl.test_guards import report
from tests.rl.test_loop import Store

TRAINING = TrainSettings(
  learning_rate=3e-3, batch_size=4, epochs=6, warmup=0.0, schedule="constant", weight_decay=0.0)
GENTLE = dataclasses.replace(TRAINING, learning_rate=1e-3)
EOS = 1
# UNDO has tests of its own: it forgets what its teacher has forgotten.
LOSS_METHODS = [name for name, cls in METHODS.items()
                if issubclass(cls, LossMethod) and name not in ("finetune", "undo")]


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


def quiet(total, step=0):
  return contextlib.nullcontext(types.SimpleNamespace(
    total=total, set_postfix=lambda *args, **kwargs: None, update=lambda: None))


def stage_io(store=None):
  writer = types.SimpleNamespace(name="stage", rewind=lambda step: None, write=lambda *args: None,
                                 batch=lambda *args: None)
  return supervised.StageIO(store or Checkpoints(), writer, quiet)


@pytest.fixture(scope="module")
def world():
  """A Model whose adapters know forget and retain rows by heart."""
  lora = LoraSettings(rank=8, alpha=16.0, targets=LORA_TARGETS)
  config = ModelConfig(vocab_size=32, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=2,
                       num_kv_heads=1, head_dim=16, lora=lora)
  model = handle.split(Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=True)
  # All rows in a batch, and a rate that falls to nothing, so that it ends at one place whatever the
  # rounding. After hundreds of small batches at a constant rate it would end anywhere.
  training = dataclasses.replace(TRAINING, learning_rate=1e-2, epochs=20, schedule="linear")
  rows = FORGET + RETAIN
  return model.with_params(supervised.fit(
    supervised.init_train_state(model.params, training), model.with_params(None),
    Batches(rows, len(rows), 8, 0, 0, one_bucket=True),
    loss_fn=supervised.language_model_loss, settings=training, key=jax.random.key(0),
    stage=stage_io()))


def nll(world, params, rows):
  total, count, _ = supervised.language_model_loss(
    params, world, Batches(rows, len(rows), 8, 0, 0, one_bucket=True)[0], None)
  return float(total / count)


class Evaluator(NamedTuple):
  """What a loss-based method asks of an evaluation.evaluator.Evaluator; every answer refuses."""

  tokenizer: object = types.SimpleNamespace(
    pad_id=0, encode_response=lambda text: REFUSAL, decode=lambda ids: " ".join(map(str, ids)))

  def to_device(self, batch):
    return batch

  def sample(self, params, rows, *, seed, strategy):
    return [row._replace(completion=REFUSAL) for row in rows]


def make_task(world, *, training=TRAINING, eval_every=2, **changes):
  """The Task of a run; `task.monitor.assessed` lists the epochs that were looked at."""
  assessed = []
  monitor = types.SimpleNamespace(
    assessed=assessed, assess=lambda policy, epoch: assessed.append(epoch) or report(epoch=epoch))
  values = dict.fromkeys(field.name for field in dataclasses.fields(Task))
  values |= dict(
    original=world, forget=FORGET, retain=RETAIN, evaluator=Evaluator(), monitor=monitor,
    examples=tuple(Example("a", "q", "the truth") for _ in FORGET), refusals=("no",),
    training=training, eval_every=eval_every, length_multiple=8, seed=0)
  return Task(**(values | changes))


def run(method, task, store=None):
  """(params, reports) of a method by its name or settings."""
  method = METHODS[method]() if isinstance(method, str) else method
  result = method.unlearn(task, stage_io(store))
  assert result.chosen_epoch == result.reports[-1].epoch
  return result.params, result.reports


def test_the_model_knew_its_data(world):
  """Else nothing below could fail."""
  unseen = nll(world, world.params, rows_of(9, 8))
  assert max(nll(world, world.params, rows) for rows in (FORGET, RETAIN)) < 0.35 * unseen


def forget_term_alone(method):
  """A method by its name with its forget term and nothing else."""
  changes = dict(forget_coef=1.0, retain_nll_coef=0.0, retain_kl_coef=0.0)
  if method == "rmu":
    changes["retain_states_coef"] = 0.0
  if method == "pdu":  # its multiplier looks at the retain term, which must be there
    changes |= {"retain_nll_coef": 1e-9, "warmup_epochs": TRAINING.epochs + 1}
  if method == "task_vector":
    changes["alpha"] = 3.0  # farther, the model is ruined on either side
  return METHODS[method](**changes)


@pytest.mark.parametrize("method", LOSS_METHODS)
def test_a_forget_term_makes_forget_responses_less_likely_and_spares_the_original(world, method):
  """Without the term nothing moves; of the wrong sign, it moves them up by a tenth of this at most.

  At a small rate, since large steps in any direction make what was learnt less likely. Of IDK and RMU
  either sign does so at any rate: see the tests of other responses, and of the states.
  """
  before = jax.tree.map(np.array, world.params)
  policy, _ = run(forget_term_alone(method), make_task(world, training=GENTLE))
  rise = nll(world, policy, FORGET) - nll(world, world.params, FORGET)
  assert rise > 0.3, rise
  jax.tree.map(np.testing.assert_array_equal, before, world.params)  # training donates its own copy


def test_a_task_vector_of_adapters_is_a_line_in_the_weights(world):
  """W + BA - α (B'A' - BA): were both factors combined apart, α² would be in it."""

  def moved(alpha):
    policy, _ = run(METHODS["task_vector"](alpha=alpha), make_task(world))
    now, was = ({name: tensor() for name, _, tensor in merged_tensors(world.with_params(role).module)}
                for role in (policy, world.params))
    return {name: now[name] - was[name] for name in now}

  once, thrice = moved(1.0), moved(3.0)
  assert max(np.abs(x).max() for x in once.values()) > 0.01
  for name, x in once.items():
    np.testing.assert_allclose(3 * x, thrice[name], atol=1e-4, err_msg=name)


def test_a_noisy_copy_learns_again_what_its_teacher_knows_and_no_more(world):
  """The noise alone makes it lose both."""
  teacher, _ = run("grad_diff", make_task(world))
  task = make_task(world, load_params={"wga": teacher}.__getitem__)
  noisy = with_noise(teacher, jax.random.key(task.seed), share=0.5)
  undo = METHODS["undo"](teacher="wga", noise=0.5, epochs=30, learning_rate=1e-2)
  policy, reports = run(undo, task)
  assert nll(world, noisy, RETAIN) - nll(world, teacher, RETAIN) > 0.5
  assert nll(world, policy, RETAIN) - nll(world, teacher, RETAIN) < 0.1
  assert nll(world, policy, FORGET) - nll(world, world.params, FORGET) > 2
  assert [r.epoch for r in reports] == [0, 6, 12, 18, 24, 30]
  assert undo.reads == ("wga",)


def test_without_a_teacher_a_copy_learns_from_the_original(world):
  undo = METHODS["undo"](teacher="", noise=0.5, epochs=30, learning_rate=1e-2)
  policy, _ = run(undo, make_task(world))
  for rows in (FORGET, RETAIN):
    assert abs(nll(world, policy, rows) - nll(world, world.params, rows)) < 0.1
  assert not undo.reads


def test_the_reports_of_a_merged_model_are_of_that_model(world):
  """Those on the way are of the model that learnt, not of the one that goes the other way."""
  task = make_task(world)
  _, reports = run("task_vector", task)
  assert [r.epoch for r in reports] == [0, 6]
  assert task.monitor.assessed == [2, 4, 6, 0, 6]


@pytest.mark.parametrize("method", ["grad_diff", "npo", "kl_minimization", "maximum_entropy"])
def test_a_retain_term_keeps_what_is_retained(world, method):
  """The same run without its retain term must lose more of it."""
  kept, _ = run(method, make_task(world))
  lost, _ = run(METHODS[method](retain_nll_coef=0.0, retain_kl_coef=0.0), make_task(world))
  assert nll(world, lost, RETAIN) - nll(world, kept, RETAIN) > 0.5


@pytest.mark.parametrize("method", ["idk", "dpo", "altpo"])
def test_other_responses_become_likelier(world, method):
  """Forgetting alone would pass for any of the three."""
  refusing = tuple(row._replace(completion=REFUSAL) for row in FORGET)
  policy, _ = run(method, make_task(world))
  assert nll(world, policy, refusing) < nll(world, world.params, refusing) - 0.5


def test_rmu_moves_the_states_of_its_layer_towards_its_goal(world):
  """States that are moved anywhere make what was learnt less likely."""
  method, task = forget_term_alone("rmu"), make_task(world, training=GENTLE)
  policy, _ = run(method, task)
  direction = np.asarray(jax.random.uniform(jax.random.key(task.seed), (32,)))
  goal = method.scale * direction / np.linalg.norm(direction)

  def distance(params):
    view = View(world.with_params(params).module, Batches(FORGET, 4, 8, 0, 0, one_bucket=True)[0])
    return np.linalg.norm((view.layer(method.depth) - goal)[np.asarray(view.mask)])

  assert distance(policy) < 0.85 * distance(world.params)


def test_fine_tuning_on_retained_data_touches_no_forget_batch(world):
  found = [run("finetune", make_task(world, forget=rows))[0] for rows in (FORGET, rows_of(9, 6))]
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(a, b)


@settings
class Counting(LossMethod):
  """A method of one's own: gradient ascent that grows with every update."""

  name = "counting"  # as `register_method` gives it
  growth: NonNegative = 0.1  # of w_f an update

  def initial_state(self):
    return {"updates": 0.0}

  def weights(self, epoch, state):
    return 1.0 + self.growth * state["updates"], 1.0

  def after_update(self, state, epoch, metrics):
    return {"updates": state["updates"] + 1}

  def forget_loss(self, batch):
    return gradient_ascent(batch.policy.logprobs, batch.policy.mask)


def test_a_method_of_a_few_lines_unlearns(world):
  """`forget_loss` is all that one needs."""
  policy, reports = run(Counting(), make_task(world))
  assert nll(world, policy, FORGET) > nll(world, world.params, FORGET) + 0.1
  assert [r.epoch for r in reports] == [0, 2, 4, 6]
  plain, _ = run(Counting(growth=0.0), make_task(world))
  different = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (policy, plain)), strict=True)]
  assert any(different)  # the state that changes along the run is heeded


@pytest.mark.parametrize("method", [PDU(warmup_epochs=0), SCRUB(), METHODS["npo"](), Counting()],
                         ids=lambda method: method.name)
def test_killed_after_any_step_it_ends_the_same(world, method):
  """The multiplier, the phase and the reports so far must come out of the checkpoint."""
  store = Checkpoints()
  policy, reports = run(method, make_task(world), store)
  for step in list(store.saved)[1:-1:3]:
    again, seen = run(method, make_task(world), store.until(step))
    jax.tree.map(np.testing.assert_array_equal, policy, again)
    assert [r.epoch for r in seen] == [r.epoch for r in reports] == [0, 2, 4, 6]


def schedule_of(method):
  """Two updates an epoch."""
  return ObjectiveSchedule(TRAINING, 2, method=method, state=method.initial_state(),
                           evaluate=lambda params, epoch: report(epoch=epoch))


def test_scrub_takes_turns():
  """Epochs, not updates, of forgetting first."""
  schedule = schedule_of(SCRUB())
  assert [schedule.weights(step) for step in range(6)] == [(1, 0)] * 2 + [(0, 1)] * 2 + [(1, 0)] * 2


def test_the_multiplier_moves_after_the_warm_up_and_weighs_retained_data():
  pdu = PDU()
  schedule = schedule_of(pdu)
  found = []
  for done in range(1, 7):
    schedule.observe(done, {"loss": 0.0, "retain_nll": pdu.target + 0.5}, None)
    found.append(schedule.weights(done))
  assert found == [(1.0, x) for x in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]  # still for the first epoch
  later = schedule_of(pdu)
  later.load_state_dict(schedule.state_dict())
  assert later.weights(6) == (1.0, 3.5) and later.reports == schedule.reports


def test_the_last_epoch_always_has_a_report(world):
  training = dataclasses.replace(TRAINING, epochs=5)
  _, reports = run("simnpo", make_task(world, training=training, eval_every=3))
  assert [r.epoch for r in reports] == [0, 3, 5]


def test_a_run_that_ends_within_an_epoch_has_its_last_report(world):
  """A plateau ends anywhere: after 2 updates, an epoch, there is one more."""
  training = dataclasses.replace(TRAINING, schedule="plateau", target_loss=100.0)
  task, store = make_task(world, training=training, eval_every=1), Checkpoints()
  _, reports = run("npo", task, store)
  assert list(store.saved) == [1, 2, 3]
  assert [r.epoch for r in reports] == [0, 1, 2] and task.monitor.assessed == [1, 0, 2]
  _, again = run("npo", task, store)  # it was killed between its last step and its end
  assert [r.epoch for r in again] == [0, 1, 2]


@settings
class Diverging(LossMethod):
  """A method whose loss is no number from the first update on."""

  name = "diverging"

  def forget_loss(self, batch):
    return gradient_ascent(batch.policy.logprobs, batch.policy.mask) * float("nan")


def test_a_candidate_that_diverges_ends_there_and_stops_no_other(world, capsys):
  """A grid of learning rates may hold one that is too high, which is known only then."""
  training = dataclasses.replace(TRAINING, epochs=50)
  task, store = make_task(world, training=training, eval_every=2), Checkpoints()
  policy, reports = run(Diverging(), task, store)
  assert "stage, step 10: the loss is nan" in capsys.readouterr().err
  assert max(store.saved) == 9  # of 100
  assert [r.epoch for r in reports] == [0, 2, 4, 5]
  assert np.isnan(jax.tree.leaves(policy)[0]).all()


def test_a_task_vector_moves_no_frozen_factor(world):
  """Weight decay would shrink A, and W + BA be no line any more."""
  training = dataclasses.replace(TRAINING, epochs=1, weight_decay=0.5)
  policy, _ = run("task_vector", make_task(world, training=training))
  before, after = (named_leaves(params) for params in (world.params, policy))
  for name, factor in before.items():
    if name.endswith("lora_a"):
      np.testing.assert_array_equal(after[name], factor, err_msg=name)
    else:
      assert np.any(after[name] != factor), name


def test_a_learning_rate_of_the_run_takes_the_place_of_the_methods_own(world):
  training = dataclasses.replace(TRAINING, epochs=1)
  found = {}
  for name, own, rate in (("own", 1e-2, None), ("given", 1e-3, 1e-2), ("other", 1e-3, None)):
    task = make_task(world, training=dataclasses.replace(training, learning_rate=own),
                     learning_rate=rate)
    found[name] = jax.tree.leaves(run("grad_diff", task)[0])
  for own, given in zip(found["own"], found["given"], strict=True):
    np.testing.assert_array_equal(own, given)
  assert any(np.any(a != b) for a, b in zip(found["own"], found["other"], strict=True))


def test_every_refusal_stands_behind_every_forget_query(world):
  """Each query must be able to meet each of them."""
  encode = {"no": (5, EOS), "never": (6, 7, EOS)}
  evaluator = Evaluator(tokenizer=types.SimpleNamespace(encode_response=encode.get))
  found = refusals(make_task(world, refusals=("no", "never"), evaluator=evaluator))
  assert found == tuple((row._replace(completion=(5, EOS)), row._replace(completion=(6, 7, EOS)))
                        for row in FORGET)


def test_a_refusal_continues_a_plain_text_behind_a_space(world):
  """No template separates the two, and run together they would be another word."""
  tokenizer = train_bpe(["Once upon a time I cannot say."], 300)
  example = Example("a", "Once upon a", " time.", text="Once upon a time.")
  row = Row(*map(tuple, tokenizer.encode_text(example.prompt, example.response)), 0)
  [[found]] = refusals(make_task(world, examples=(example,), forget=(row,),
                                 refusals=("I cannot say.",), evaluator=Evaluator(tokenizer)))
  assert tokenizer.decode(found.prompt + found.completion) == "Once upon a I cannot say."


def test_alternates_are_the_samples_least_like_the_truth(world):
  """Of the original, at their own temperature and seed; sorted the other way they would teach the
  truth."""
  # Of one forget query: recall 0, 1 and 1/2. (Precision would keep the second, not the third.)
  texts = {1: "x y z", 2: "the truth is out there", 3: "the"}
  asked = []

  class Sampling(Evaluator):
    def sample(self, params, rows, *, seed, strategy):
      asked.append((params, len(rows), seed, strategy))
      return [row._replace(completion=(1 + i % 3,)) for i, row in enumerate(rows)]

  evaluator = Sampling(tokenizer=types.SimpleNamespace(decode=lambda ids: texts[ids[0]]))
  method = AltPO(samples=3, alternates=2, temperature=1.25)
  found = method.other_responses(make_task(world, evaluator=evaluator, seed=7))
  assert found == tuple((row._replace(completion=(1,)), row._replace(completion=(3,)))
                        for row in FORGET)
  [(params, count, seed, strategy)] = asked
  assert params is world.params
  assert (count, seed, strategy) == (3 * len(FORGET), 11, Sample(1.25))


def test_there_are_no_more_alternates_than_samples():
  assert AltPO(samples=3, alternates=3).alternates == 3
  with pytest.raises(InputError, match="samples"):
    AltPO(samples=3, alternates=4)


def test_precompiling_a_run_takes_no_step(world):
  task, store = make_task(world), Checkpoints()
  stage = stage_io(store)._replace(compile_only=True)
  result = METHODS["npo"]().unlearn(task, stage)
  jax.tree.map(np.testing.assert_array_equal, result.params, world.params)
  assert not store.saved

"""The supervised loop: what must not matter to a gradient, and what a kill must not change."""

import dataclasses
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from dareu_jax.core import interruption
from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Batches, Row, collate
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import CheckpointSettings, Store
from dareu_jax.training.optimizers import TrainSettings
from dareu_jax.training.writers import MetricWriter, read_batches, read_metrics

# A high clip_norm, so that a gradient of the wrong scale shows in the moments.
SETTINGS = TrainSettings(learning_rate=1e-2, batch_size=4, epochs=12, warmup=0.1, schedule="linear",
                         weight_decay=0.1, clip_norm=1e3)
VOCAB = 32
ROWS = tuple(
  Row(tuple(range(2, 4 + n)), tuple((7 * n + 5 * k) % VOCAB for k in range(2 * n + 1)), n)
  for n in range(4))


class Toy(NamedTuple):
  """The least of a causal language model: a token is guessed from the last two."""

  embedding: jax.Array
  mix: jax.Array

  def hidden_states(self, token_ids):
    x = self.embedding[token_ids]
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.tanh((x + 0.5 * before) @ self.mix)

  @property
  def head(self):
    return self.embedding.T


@struct.dataclass
class ToyModel:
  """Stands for models.handle.Model."""

  params: dict | None

  def with_params(self, params):
    return ToyModel(params)

  @property
  def module(self):
    return Toy(**self.params)


@pytest.fixture(scope="module")
def model():
  rng = np.random.default_rng(0)
  shapes = {"embedding": (VOCAB, 16), "mix": (16, 16)}
  params = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
  return ToyModel(params)


def fresh(params, settings=SETTINGS):
  """A state of its own, since updates donate theirs."""
  return supervised.init_train_state(jax.tree.map(jnp.copy, params), settings)


def one_update(model, batch, micro_batches):
  return supervised.update(
    fresh(model.params), model.with_params(None), batch, jax.random.key(0), 1e-2,
    loss_fn=supervised.language_model_loss, weight_decay=0.1, clip_norm=1e3,
    micro_batches=micro_batches)


def small_batch():
  return collate(ROWS, 4, seq_length=16, completion_length=16, pad_id=0)


@pytest.fixture(scope="module")
def whole(model):
  """(state, metrics) of one update on the whole batch."""
  return one_update(model, small_batch(), 1)


def assert_same_update(a, b):
  assert float(a[1]["loss"]) == pytest.approx(float(b[1]["loss"]), abs=1e-5)
  for x, y in zip(jax.tree.leaves(a[0]), jax.tree.leaves(b[0]), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_the_loss_is_the_mean_of_completion_tokens(model, whole):
  """A shift by one, the prompt in the loss, or a mean over rows."""
  embedding, mix = (model.params[name].astype(np.float64) for name in ("embedding", "mix"))
  losses = []
  for row in ROWS:
    ids = row.prompt + row.completion
    for k, token in enumerate(row.completion, start=len(row.prompt)):
      z = embedding @ np.tanh((embedding[ids[k - 1]] + 0.5 * embedding[ids[k - 2]]) @ mix)
      losses.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[token])
  assert len(losses) == 1 + 3 + 5 + 7
  assert float(whole[1]["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_accumulation_over_unequal_micro_batches_is_the_whole_batch(model, whole):
  """A mean of means weighs the tokens of a micro-batch with few of them too much."""
  batch = small_batch()
  assert batch.completion_lengths[:2].sum() != batch.completion_lengths[2:].sum()
  assert_same_update(one_update(model, batch, 2), whole)


def test_padding_changes_nothing(model, whole):
  """Rows without completion, a micro-batch of nothing else, wider arrays: none is learnt from."""
  batch = collate(ROWS, 8, seq_length=32, completion_length=32, pad_id=3)
  assert_same_update(one_update(model, batch, 2), whole)


class Killed(Exception):
  pass


class Bar:
  """A progress bar that can end the run after some updates."""

  def __init__(self, kill_after=None):
    self.kill_after, self.updates, self.initial = kill_after, 0, None

  def __call__(self, total, initial=0):
    self.total, self.initial = total, initial
    return self

  def __enter__(self):
    return self

  def __exit__(self, *error):
    return False

  def set_postfix(self, *args, **kwargs):
    pass

  def update(self):
    self.updates += 1
    if self.updates == self.kill_after:
      raise Killed


def noisy_regression(params, fixed, batch, key):
  """A loss that depends on the step's key, cheap to compile; bfloat16 and float32 parameters."""
  del fixed
  noise = jax.random.normal(key, (batch.token_ids.shape[0], 3))
  x = batch.token_ids[:, :3] / 8 + 0.1 * noise
  guess = x @ params["w"] + params["b"].astype(jnp.float32)
  error = jnp.where(batch.completion_lengths > 0, guess - batch.completion_lengths, 0.0)
  return jnp.sum(error**2), jnp.sum(batch.completion_lengths > 0), {"noise": jnp.sum(noise)}


START = {"w": np.full(3, 0.5, np.float32), "b": jnp.bfloat16(0.25)}
# The mean loss of the toy's sixth epoch is the first below this: 12 steps, and 4 to cool down.
PLATEAU = dataclasses.replace(SETTINGS, schedule="plateau", target_loss=16.0)


def fit_toy(folder, kill_after=None, settings=SETTINGS, loss_fn=noisy_regression):
  """One start of the toy stage: (bar, params), params None where it was killed or told to stop."""
  rng = np.random.default_rng(0)
  rows = tuple(Row(tuple(rng.integers(0, 9, 4).tolist()), tuple(rng.integers(0, 9, n).tolist()), n)
               for n in range(1, 9))
  batches = Batches(rows=rows, batch_size=4, multiple=16, pad_id=0, seed=1)
  store = Store(folder / "progress", CheckpointSettings(every_steps=3, keep=2))
  writer, bar, params = MetricWriter(folder, "toy"), Bar(kill_after), None
  try:
    params = supervised.fit(
      fresh(START, settings), None, batches, loss_fn=loss_fn, settings=settings,
      key=jax.random.key(5), stage=supervised.StageIO(store, writer, bar))
  except Killed:
    assert kill_after is not None
  except interruption.Interrupted:
    pass
  finally:
    store.close()
    writer.close()
  return bar, params


def bits(params):
  return {name: (value.dtype, np.asarray(value).tobytes()) for name, value in params.items()}


def records(folder):
  return [json.loads(line) for line in (folder / "toy.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=[SETTINGS, PLATEAU], ids=["linear", "plateau"])
def undisturbed(request, tmp_path_factory):
  """(settings, bar, params, metric records) of a run that nobody killed."""
  folder = tmp_path_factory.mktemp("undisturbed")
  bar, params = fit_toy(folder, settings=request.param)
  return request.param, bar, params, (records(folder), read_batches(folder / "toy.batches"))


def test_a_run_takes_its_epochs(undisturbed):
  """A step too many or too few."""
  settings, bar, params, (lines, batches) = undisturbed
  # 12 epochs of 2 steps, but the plateau ends earlier.
  steps, recorded = (24, [10, 20, 24]) if settings is SETTINGS else (16, [10, 16])
  assert (bar.initial, bar.updates, bar.total) == (0, steps, steps)
  assert [line["step"] for line in lines] == recorded
  assert [step for step, _ in batches] == list(range(1, steps + 1))
  assert bits(params) != bits(START)


def test_each_step_has_its_own_key(undisturbed):
  """A key used again gives every step the same noise."""
  noise = [line["noise"] for line in undisturbed[3][0]]
  assert len(set(noise)) == len(noise)


# Before the first checkpoint (of step 3), at one, in mid-epoch, after a record (of step 10) that is
# newer than the newest checkpoint, in the cool-down, and several times.
@pytest.mark.parametrize(("kills", "resumes_at"), [
  ((2,), 0), ((3,), 0), ((4,), 3), ((11,), 9), ((16,), 15), ((5, 5, 2), 6)], ids=str)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(undisturbed, tmp_path, kills, resumes_at):
  """Order of batches, noise, moments, schedule or records may start afresh at the resume."""
  settings, whole, params, written = undisturbed
  for kill in kills:
    assert fit_toy(tmp_path, kill, settings)[1] is None
  bar, found = fit_toy(tmp_path, settings=settings)
  assert bar.initial == resumes_at and bar.initial + bar.updates == whole.updates
  assert bits(found) == bits(params)
  assert (records(tmp_path), read_batches(tmp_path / "toy.batches")) == written


@pytest.mark.parametrize("stop_after", [1, 5, 10, 23])
def test_told_to_stop_it_saves_and_goes_on_from_there(undisturbed, tmp_path, monkeypatch, stop_after):
  """Nothing is done again, wherever the checkpoints would have been."""
  settings, whole, params, written = undisturbed
  stop_after = min(stop_after, whole.updates - 1)
  asked = iter(range(1, 99))
  monkeypatch.setattr(interruption, "requested", lambda: next(asked) == stop_after)
  assert fit_toy(tmp_path, settings=settings)[1] is None
  monkeypatch.setattr(interruption, "requested", lambda: False)
  bar, found = fit_toy(tmp_path, settings=settings)
  assert (bar.initial, bar.updates) == (stop_after, whole.updates - stop_after)
  assert bits(found) == bits(params)
  assert (records(tmp_path), read_batches(tmp_path / "toy.batches")) == written


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
  """A kill between the last step and the mark that the stage is done must not train on."""
  _, params = fit_toy(tmp_path)
  bar, again = fit_toy(tmp_path)
  assert bar.updates == 0 and bits(again) == bits(params)


def without_number(params, fixed, batch, key):
  total, count, metrics = noisy_regression(params, fixed, batch, key)
  return total * math.nan, count, metrics


@pytest.mark.parametrize(("epochs", "step"), [(12, 10), (2, 4)])
def test_a_loss_that_is_no_number_ends_the_stage_where_it_is_logged(tmp_path, epochs, step):
  """Hours of training, and a checkpoint of no use; the last step is always logged."""
  settings = dataclasses.replace(SETTINGS, epochs=epochs)
  with pytest.raises(InputError, match=rf"toy, step {step}: the loss is nan.*learning rate"):
    fit_toy(tmp_path, settings=settings, loss_fn=without_number)
  assert len(read_batches(tmp_path / "toy.batches")) == step
  [record] = read_metrics(tmp_path / "toy.jsonl")
  assert record["step"] == step and math.isnan(record["loss"])


def test_the_loss_falls_on_a_toy_task(model, tmp_path):
  """A sign, a rate of zero, or updates that are dropped."""
  settings = dataclasses.replace(SETTINGS, epochs=20, learning_rate=0.05)
  batches = Batches(rows=ROWS, batch_size=4, multiple=16, pad_id=0, seed=0)
  store = Store(tmp_path / "progress", CheckpointSettings(every_steps=100, keep=1))
  writer = MetricWriter(tmp_path, "toy")
  supervised.fit(fresh(model.params), model.with_params(None), batches,
                 loss_fn=supervised.language_model_loss, settings=settings, key=jax.random.key(0),
                 stage=supervised.StageIO(store, writer, Bar()))
  store.close()
  writer.close()
  losses = [line["loss"] for line in records(tmp_path)]
  uniform = np.log(VOCAB)
  assert len(losses) == 2 and losses[1] < losses[0] < uniform and losses[1] < 0.5 * uniform

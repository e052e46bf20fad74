"""The run's bookkeeping on a model of one number: what is kept, undone, slowed and gone on with."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core import interruption
from dareu_jax.rl import loop
from dareu_jax.rl.guards import GuardSettings
from dareu_jax.rl.monitor import MonitorSettings
from dareu_jax.rl.reward_functions import ForgetSet
from dareu_jax.rl.settings import RLSettings
from dareu_jax.training.supervised import StageIO
from tests.rl.test_guards import report

# Length of the answers at each epoch's end: 20 is usual, 5 trips a guard.
LENGTHS = [20.0, 20.0, 5.0, 20.0, 5.0, 20.0]
SCORES = [0.9, 0.6, 0.1, 0.5, 0.1, 0.4]
LEVELS = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]


class Store:
  """Checkpoints in memory."""

  def __init__(self):
    self.saved = {}

  def should_save(self, step):
    return True

  def save(self, step, state, meta, *, best=False):
    self.saved[step] = types.SimpleNamespace(state=state, meta=meta, best=best)

  def wait(self):
    pass

  def restore(self, template):
    return self.saved[max(self.saved)] if self.saved else None

  def until(self, step):
    """As a run that was killed after this step left it."""
    store = Store()
    store.saved = {at: kept for at, kept in self.saved.items() if at <= step}
    return store


@pytest.fixture
def run(monkeypatch):
  """Runs with a step that adds the rate to the policy, two rollouts an epoch."""
  rates, levels = [], []

  def learn(task, state, step, rate_scale, given):
    assert given.probability == 0.2  # the original's, of unseen owners' true answers
    assert given.continuation_score == 2 * given.score
    rates.append(rate_scale)
    levels.append(given.score)
    policy = jax.tree.map(lambda x: x + rate_scale, state.policy)
    metrics = {"score": 0.0, "response_length": 0.0, "kl": 0.0}
    return state._replace(policy=policy, step=state.step + 1), metrics

  monkeypatch.setattr(loop, "learn", learn)

  def assess(policy, epoch):
    return report(epoch=epoch, score=SCORES[epoch], judge_score=SCORES[epoch], level=LEVELS[epoch],
                  continuation_level=2 * LEVELS[epoch], response_length=LENGTHS[epoch])

  def go(action, store=None, **guards):
    settings = RLSettings(epochs=5, samples_per_prompt=2, rollout_batch_size=3, minibatch_size=3)
    monitor = types.SimpleNamespace(
      assess=assess, settings=MonitorSettings(guards=GuardSettings(action=action, **guards)))
    values = dict.fromkeys(field.name for field in dataclasses.fields(loop.RLTask))
    values |= dict(settings=settings, forget=ForgetSet((None,) * 3, (), (), None), seed=0,
                   original=types.SimpleNamespace(params={"w": jnp.zeros(2)}),
                   value_head=types.SimpleNamespace(params={"v": jnp.zeros(2)}), monitor=monitor)
    bar = contextlib.nullcontext(types.SimpleNamespace(
      set_postfix=lambda *args, **kwargs: None, update=lambda: None))
    writer = types.SimpleNamespace(rewind=lambda step: None, write=lambda *args: None)
    store = store or Store()
    result = loop.run(loop.RLTask(**values), StageIO(store, writer, lambda *args: bar))
    return result, store, rates

  go.levels = levels
  return go


def weight(result):
  return float(np.asarray(result.policy["w"])[0])


def test_refused_epochs_are_passed_over(run):
  result, _, rates = run("refuse")
  assert result.chosen_epoch == 5 and weight(result) == 10.0  # the lowest score that is acceptable
  assert rates == [1.0] * 10
  assert run.levels[::2] == run.levels[1::2] == LEVELS[:5]  # of the newest epoch


def test_a_rollback_undoes_the_epoch_and_goes_on_at_half_the_rate(run):
  result, _, rates = run("rollback", max_rollbacks=3)
  assert rates == [1.0] * 4 + [0.5] * 4 + [0.25] * 2
  # Epoch 1: 2; 2 is undone; 3: 2 + 1; 4 is undone; 5: 3 + 0.5.
  assert result.chosen_epoch == 5 and weight(result) == 3.5
  # Of the newest that was not undone
  assert run.levels[::2] == run.levels[1::2] == [LEVELS[epoch] for epoch in (0, 1, 1, 3, 3)]


def test_rates_rise_over_the_warmup_and_fall_in_a_line_over_all_updates_of_the_run():
  settings = RLSettings(epochs=5, samples_per_prompt=2, rollout_batch_size=4, minibatch_size=2,
                        warmup_steps=4, final_rate=0.5)
  # 6 queries: 3 rollouts in an epoch, 2 updates in each.
  rates = [settings.rate_scale(update, 6) for update in range(30)]
  np.testing.assert_allclose(rates, np.minimum(1, np.arange(1, 31) / 4) * np.linspace(1, .5, 31)[:30])


def test_the_last_rollback_ends_the_run(run):
  result, _, rates = run("rollback", max_rollbacks=1)
  assert len(rates) == 8
  assert result.chosen_epoch == 3 and weight(result) == 3.0


def test_a_guard_that_stops_ends_the_run_with_what_was_good(run):
  result, _, rates = run("stop")
  assert len(rates) == 4
  assert result.chosen_epoch == 1 and weight(result) == 2.0


def test_the_epoch_to_keep_is_saved_as_the_best(run):
  _, store, _ = run("refuse")
  assert [step for step, held in store.saved.items() if held.best] == [2, 6, 10]


def test_told_to_stop_it_saves_where_it_is_and_ends_the_same_later(run, monkeypatch):
  """In mid-epoch too, and where nothing was due."""
  whole, _, _ = run("refuse")
  monkeypatch.setattr(Store, "should_save", lambda self, step: False)
  for stop_after in range(1, 11):
    store, asked = Store(), iter(range(1, 99))
    monkeypatch.setattr(interruption, "requested", lambda: next(asked) == stop_after)  # noqa: B023
    with pytest.raises(interruption.Interrupted):
      run("refuse", store)
    assert max(store.saved) == stop_after
    monkeypatch.setattr(interruption, "requested", lambda: False)
    again, _, _ = run("refuse", store)
    assert (again.chosen_epoch, weight(again)) == (whole.chosen_epoch, weight(whole))


@pytest.mark.parametrize("action", ["refuse", "stop", "rollback", "off"])
def test_killed_after_any_rollout_it_ends_the_same(run, action):
  """The number of rollbacks, the rates and the policy to go back to must come out of the file."""
  whole, store, _ = run(action)
  for step in store.saved:
    again, _, _ = run(action, store.until(step))
    assert (again.chosen_epoch, weight(again)) == (whole.chosen_epoch, weight(whole))
    assert again.reports == whole.reports

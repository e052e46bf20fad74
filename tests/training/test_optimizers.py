"""The optimizer and its schedule against formulas written out in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.trees import named_leaves
from dareu_jax.models import handle
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.training.optimizers import Schedule, TrainSettings, adamw_direction, apply_direction

PEAK = 3e-3
SETTINGS = TrainSettings(
  learning_rate=PEAK, epochs=50, warmup=0.1, schedule="linear", target_loss=0.5)


def make_schedule(num_steps=100, **changes):
  return Schedule(dataclasses.replace(SETTINGS, epochs=num_steps // 2, **changes), 2)


def rates(num_steps=100, **changes):
  schedule = make_schedule(num_steps, **changes)
  assert schedule.num_steps == num_steps
  return [schedule.rate(step) for step in range(num_steps)]


def run(schedule, losses):
  """Rates of a run whose step k has the loss `losses(k)`."""
  found = []
  while len(found) < schedule.num_steps:
    found.append(schedule.rate(len(found)))
    schedule.observe(len(found), {"loss": losses(len(found) - 1)}, None)
  return found


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
  """A first rate of zero wastes a step; a break where warm-up meets decay misses the peak."""
  found = rates(schedule=schedule)
  np.testing.assert_allclose(found[:10], [PEAK * k / 10 for k in range(1, 11)], rtol=1e-6)
  assert max(found) == pytest.approx(PEAK)
  assert all(isinstance(rate, float) for rate in found)


@pytest.mark.parametrize(("schedule", "share"), [
  ("linear", lambda done: 1 - done), ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
  ("constant", lambda done: 1.0)])
def test_decay_after_the_warm_up(schedule, share):
  """Progress counted from step 0 instead of the warm-up's end never reaches the bottom."""
  expected = [PEAK * share(k / 90) for k in range(90)]
  np.testing.assert_allclose(rates(schedule=schedule)[10:], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(schedule):
  """A division by a warm-up of no steps."""
  assert rates(schedule=schedule, warmup=0.0)[0] == pytest.approx(PEAK)
  assert rates(2, schedule=schedule)[0] == pytest.approx(PEAK)


def test_warm_up_over_the_whole_run_ends_at_the_peak():
  """No step is left to decay in: a division by zero."""
  np.testing.assert_allclose(rates(4, warmup=1.0), [PEAK / 4 * k for k in (1, 2, 3, 4)])


def test_a_plateau_cools_down_once_an_epoch_reaches_the_target():
  """One good batch is no reason to stop, and the rate must come down before the run ends."""
  # Epochs of 2 steps; step 21 alone is low, the epoch of steps 30 and 31 is the first to be.
  low = {21} | set(range(30, 100))
  found = run(make_schedule(schedule="plateau"), lambda step: 0.4 if step in low else 0.7)
  assert len(found) == 32 + 10  # 0.3 of 32, rounded
  np.testing.assert_allclose(found[:5], [PEAK * k / 10 for k in range(1, 6)])
  np.testing.assert_allclose(found[9:32], PEAK)
  np.testing.assert_allclose(found[32:], [PEAK * (10 - k) / 10 for k in range(10)])


def test_a_plateau_that_never_arrives_cools_down_within_its_epochs():
  """The limit on epochs would cut it off at the full rate."""
  found = run(make_schedule(schedule="plateau"), lambda step: 9.0)
  assert 90 < len(found) <= 100
  assert found[-1] < 0.1 * PEAK and found[70] == pytest.approx(PEAK)


def test_a_plateau_resumes_from_its_state():
  """A kill within an epoch or the cool-down must not move the end."""
  def losses(step):
    return 1.0 - 0.02 * step

  whole = run(make_schedule(schedule="plateau"), losses)
  for kill in range(1, len(whole)):
    first = make_schedule(schedule="plateau")
    for step in range(kill):
      first.observe(step + 1, {"loss": losses(step)}, None)
    second = dataclasses.replace(make_schedule(schedule="plateau"), **first.state_dict())
    found = whole[:kill]
    while len(found) < second.num_steps:
      found.append(second.rate(len(found)))
      second.observe(len(found), {"loss": losses(len(found) - 1)}, None)
    assert found == whole


def test_a_cool_down_within_the_warm_up_does_not_rise():
  """A target reached early meets a warm-up that is a share of all the epochs there could be."""
  schedule = make_schedule(schedule="plateau", warmup=0.5)
  found = run(schedule, lambda step: 0.1 if step >= 18 else 1.0)
  cooling = found[schedule.cooldown_start:]
  assert cooling == sorted(cooling, reverse=True)


def numpy_adamw(params, gradients, rate, decay, clip):
  """Loshchilov & Hutter 2019, with b1 .9, b2 .95, eps 1e-8, after clipping by the global norm."""
  params = {name: p.astype(np.float64) for name, p in params.items()}
  m = {name: 0 * p for name, p in params.items()}
  v = {name: 0 * p for name, p in params.items()}
  for t, grads in enumerate(gradients, start=1):
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    for name, p in params.items():
      g = grads[name] * min(1.0, clip / norm)
      m[name] = 0.9 * m[name] + 0.1 * g
      v[name] = 0.95 * v[name] + 0.05 * g**2
      step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
      if p.ndim == 2:
        step = step + decay * p
      params[name] = p - rate * step
  return params


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_three_steps_are_those_of_adamw(decay):
  """Decay inside the moments, on biases, or clipping by leaf are other optimizers."""
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
  params = {name: p.astype(np.float32) for name, p in params.items()}
  # The first norm is far above the limit of 1, the last far below.
  gradients = [{name: (scale * rng.normal(size=p.shape)).astype(np.float32)
                for name, p in params.items()} for scale in (30.0, 1.0, 0.01)]
  optimizer = adamw_direction(decay, 1.0)

  @jax.jit
  def step(params, state, grads):
    direction, state = optimizer.update(grads, state, params)
    return apply_direction(params, direction, 0.05), state

  found, state = params, optimizer.init(params)
  for grads in gradients:
    found, state = step(found, state, grads)
  expected = numpy_adamw(params, gradients, 0.05, decay, 1.0)
  for name in params:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_norm_scales_are_not_decayed(scan_layers):
  """Stacked over layers a norm's scale has two axes, and looks like a matrix."""
  config = ModelConfig(vocab_size=8, embed_dim=4, mlp_dim=4, num_layers=2, num_heads=1,
                       num_kv_heads=1, head_dim=4, scan_layers=scan_layers)
  shapes = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=jax.random.key(0))))
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), nnx.state(shapes, nnx.Param))
  optimizer = adamw_direction(0.1, 1.0)

  @jax.jit
  def direction(params):
    return optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]

  decayed = {name: bool(np.any(leaf)) for name, leaf in named_leaves(direction(params)).items()}
  assert any("norm" in name for name in decayed)
  assert decayed == {name: "norm" not in name for name in decayed}


def test_small_updates_of_a_bfloat16_model_add_up():
  """Trained in bfloat16 they would round away; the model still computes in bfloat16."""
  config = ModelConfig(vocab_size=8, embed_dim=8, mlp_dim=8, num_layers=1, num_heads=1,
                       num_kv_heads=1, head_dim=8, dtype="bfloat16")
  model = handle.split(Decoder(config, rngs=nnx.Rngs(params=0)), adapters_only=False)
  params = model.params
  moments = adamw_direction(0.0, 1.0).init(params)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves((params, moments))} <= {"float32", "int32"}
  ones = jax.tree.map(jnp.ones_like, params)
  moved = ones
  for _ in range(100):  # 1 - 1e-4 is 1 in bfloat16
    moved = apply_direction(moved, ones, jnp.float32(1e-4))
  np.testing.assert_allclose(jax.tree.leaves(moved)[0], 0.99, rtol=1e-5)
  kernel = model.with_params(moved).module.embedding[...]
  assert kernel.dtype == jnp.bfloat16 and float(kernel[0, 0]) == float(jnp.bfloat16(0.99))


def test_parameters_keep_their_dtype():
  """float32 minus a direction of another dtype must not make another program."""
  params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
  direction = {"a": jnp.full(2, 0.5, jnp.float32), "b": jnp.full(2, 0.5, jnp.float32)}
  moved = apply_direction(params, direction, jnp.float32(0.5))
  assert moved["a"].dtype == jnp.bfloat16 and moved["b"].dtype == jnp.float32
  assert moved["a"].tolist() == [0.75, 0.75]

"""The supervised training loop, for language models and for the owner classifier.

Losses are sums over tokens with their counts, so that gradients do not depend on micro-batches,
padding or the number of devices. (A loss with noise draws it separately for each micro-batch.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

from dareu_jax.core import interruption
from dareu_jax.core.errors import InputError
from dareu_jax.core.logprobs import completion_hidden, logprobs_and_entropy
from dareu_jax.core.masked import length_mask, masked_sum
from dareu_jax.data.batches import Batch
from dareu_jax.models.handle import Model
from dareu_jax.parallel.mesh import constrain_parameters, place
from dareu_jax.training.optimizers import Schedule, TrainSettings, adamw_direction, apply_direction

Scalar = Shaped[Array, ""]
# (params, fixed, batch, key) -> (loss sum, token count, metric sums)
LossFn = Callable[[Any, Any, Any, Array], tuple[Scalar, Scalar | int, dict[str, Scalar]]]


class StageIO(NamedTuple):
  """Where a stage of a run stores its checkpoints and metrics."""

  store: Any  # training.checkpoints.Store
  writer: Any  # training.writers.MetricWriter
  bar: Any  # training.writers.progress of the stage: bar(total, initial)
  compile_only: bool = False  # compile the programs without taking a step


class Diverged(InputError):
  """The loss of a logged step is not finite; `params` are those after that step."""

  def __init__(self, stage: str, step: int, loss: float, params: Any):
    super().__init__(
      f"{stage}, step {step}: the loss is {loss:g}, and training cannot recover from that. Lower "
      "the learning rate, lengthen the warm-up, or check the weights that it started from.")
    self.step, self.params = step, params


class TrainState(NamedTuple):
  """The state that a supervised stage needs to resume."""

  step: jax.Array
  params: Any
  opt_state: Any


def init_train_state(params: Any, settings: TrainSettings) -> TrainState:
  """A state at step 0."""
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def language_model_loss(params: Any, model: Model, batch: Batch,
                        key: Key[Array, ""] | None) -> tuple[Scalar, Scalar, dict]:
  """Summed negative log-likelihood of the completions: (sum, tokens, {})."""
  del key
  decoder = model.with_params(params).module
  time = batch.completion_ids.shape[1]
  hidden = completion_hidden(decoder.hidden_states(batch.token_ids), batch.prompt_lengths, time)
  logprobs, _ = logprobs_and_entropy(hidden, decoder.head, batch.completion_ids)
  mask = length_mask(batch.completion_lengths, time)
  return -masked_sum(logprobs, mask), jnp.sum(mask), {}


@functools.partial(
  jax.jit, donate_argnums=0,
  static_argnames=("loss_fn", "weight_decay", "clip_norm", "micro_batches"))
def update(state: TrainState, fixed: Any, batch: Any, key: Key[Array, ""],
           learning_rate: float | Scalar, *, loss_fn: LossFn, weight_decay: float, clip_norm: float,
           micro_batches: int) -> tuple[TrainState, dict[str, Scalar]]:
  """One step of AdamW on the token mean of `loss_fn` over the whole batch.

  Args:
    state: TrainState; donated.
    batch: arrays whose first axis is the batch; `micro_batches` must divide it.
    key: random key of the step.
    fixed: further inputs of the loss, such as a models.handle.Model without params.
    loss_fn: (params, fixed, batch, key) -> (loss sum, token count, metric sums).
    micro_batches: number of passes; their gradient sums are added, then divided by the count.

  Returns: (TrainState, metrics as token means).
  """

  def sums(params, part, key):
    total, count, metrics = loss_fn(params, fixed, part, key)
    return total, (count, {"loss": total, **metrics})

  gradient = jax.grad(sums, has_aux=True)
  if micro_batches == 1:
    grads, (count, metrics) = gradient(state.params, batch, key)
  else:
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    keys = jax.random.split(key, micro_batches)

    def add(carry, part_and_key):
      return jax.tree.map(jnp.add, carry, gradient(state.params, *part_and_key)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    rest = jax.tree.map(lambda x: x[1:], (parts, keys))
    (grads, (count, metrics)), _ = jax.lax.scan(add, gradient(state.params, *first), rest)
  count = jnp.maximum(count, 1)
  grads, metrics = jax.tree.map(lambda x: x / count, (grads, metrics))
  direction, opt_state = adamw_direction(weight_decay, clip_norm).update(
    grads, state.opt_state, state.params)
  params = apply_direction(state.params, direction, learning_rate)
  return constrain_parameters(TrainState(state.step + 1, params, opt_state)), metrics


def fit(state: TrainState, fixed: Any, batches: Any, *, loss_fn: LossFn, settings: TrainSettings,
        key: Key[Array, ""], stage: StageIO, to_device: Callable[[Any], Any] = lambda batch: batch,
        schedule: Schedule | None = None) -> Any:
  """Trains until the schedule ends, from the newest checkpoint of the stage if there is one.

  The update is compiled for every shape of batch before the first step. On a request to stop, it
  saves and raises `interruption.Interrupted`.

  Args:
    state: TrainState to start from; donated.
    fixed: as in `update`.
    batches: random access by step, with `steps_per_epoch`; e.g. data.batches.Batches.
    key: PRNG key; each step folds its number in.
    stage: StageIO.
    to_device: places a batch on the devices.
    schedule: training.optimizers.Schedule; by default the one of the settings.

  Returns: the trained params.

  Raises:
    Diverged: for a loss that is not finite where it is logged, every ten steps and at the last.
  """
  schedule = schedule or Schedule(settings, batches.steps_per_epoch)
  micro_batches = settings.batch_size // (settings.micro_batch_size or settings.batch_size)
  how = dict(loss_fn=loss_fn, weight_decay=settings.weight_decay,
             clip_norm=settings.clip_norm, micro_batches=micro_batches)
  state = place(state)
  for batch in batches.one_of_each_shape():
    update.lower(state, fixed, to_device(batch), key, 0.0, **how).compile()
  if stage.compile_only:
    return state.params
  restored = stage.store.restore(state)
  if restored is not None:
    state = restored.state
    schedule.load_state_dict(restored.meta)
  step = int(state.step)
  stage.writer.rewind(step)
  with stage.bar(schedule.num_steps, step) as progress:
    while step < schedule.num_steps:
      rate, batch = schedule.rate(step), batches[step]
      stage.writer.batch(step + 1, batch)
      state, metrics = update(
        state, fixed, to_device(batch), jax.random.fold_in(key, step), rate, **how)
      step += 1
      schedule.observe(step, metrics, state.params)
      if step % 10 == 0 or step == schedule.num_steps:
        values = {name: float(value) for name, value in metrics.items()}
        values |= {"learning_rate": rate, "epoch": step / batches.steps_per_epoch}
        stage.writer.write(step, values)
        if not math.isfinite(values["loss"]):
          raise Diverged(stage.writer.name, step, values["loss"], state.params)
        progress.set_postfix({"loss": f"{values['loss']:.3f}"}, refresh=False)
      progress.total = schedule.num_steps
      progress.update()
      stopping = interruption.requested()
      if stopping or step == schedule.num_steps or stage.store.should_save(step):
        stage.store.save(step, state, schedule.state_dict())
      if stopping:
        stage.store.wait()
        raise interruption.Interrupted
  return state.params

"""The supervised training loop, for language models and for the owner classifier.

Losses are sums over tokens with their counts, so that micro-batches, padding and device count
change no gradient. (A loss that draws noise draws other noise for other micro-batches.)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax import interruption
from dareu_jax.logprobs import completion_hidden, logprobs_and_entropy
from dareu_jax.masked import length_mask, masked_sum
from dareu_jax.parallel.mesh import constrain_parameters, place
from dareu_jax.settings import TrainSettings
from dareu_jax.training.optimizers import Schedule, adamw_direction, apply_direction


class TrainState(NamedTuple):
  """What a supervised stage needs to go on."""

  step: jax.Array
  params: Any
  opt_state: Any


def init_train_state(params, settings: TrainSettings):
  """A state at step 0."""
  optimizer = adamw_direction(settings.weight_decay, settings.clip_norm)
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def language_model_loss(frame, params, frozen, batch, key):
  """Summed negative log-likelihood of the completions: (sum, tokens, {})."""
  del key
  model = frame.merge(params, frozen)
  time = batch.completion_ids.shape[1]
  hidden = completion_hidden(model.hidden_states(batch.token_ids), batch.prompt_lengths, time)
  logprobs, _ = logprobs_and_entropy(hidden, model.head, batch.completion_ids)
  mask = length_mask(batch.completion_lengths, time)
  return -masked_sum(logprobs, mask), jnp.sum(mask), {}


@functools.partial(
  jax.jit, donate_argnums=0,
  static_argnames=("frame", "loss_fn", "weight_decay", "clip_norm", "micro_batches"))
def update(state, frozen, batch, key, learning_rate, *, frame, loss_fn, weight_decay, clip_norm,
           micro_batches):
  """One step of AdamW on the token mean of `loss_fn` over the whole batch.

  Args:
    state: TrainState; donated.
    batch: arrays whose first axis is the batch; `micro_batches` must divide it.
    key: of the step.
    loss_fn: (frame, params, frozen, batch, key) -> (loss sum, token count, metric sums).
    micro_batches: passes whose gradient sums are added before the one division by the count.

  Returns: (TrainState, metrics as token means).
  """

  def sums(params, part, key):
    total, count, metrics = loss_fn(frame, params, frozen, part, key)
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


def fit(state, frozen, batches, *, frame, loss_fn, settings: TrainSettings, key, store, writer, bar,
        put=lambda batch: batch, schedule=None, compile_only=False):
  """Trains as long as the schedule says, from the newest checkpoint of `store` where there is one.

  The update is compiled for every shape of batch before the first step. Told to stop, the run saves
  and raises `interruption.Interrupted`.

  Args:
    state: TrainState to start from (donated: use what is returned).
    batches: random access by step, with `steps_per_epoch`; e.g. data.batches.Batches.
    key: PRNG key; each step folds its number in.
    store: training.checkpoints.Store.
    writer: training.writers.MetricWriter.
    bar: training.writers.progress, called as bar(total, initial, name).
    put: places a batch on the devices.
    schedule: training.optimizers.Schedule; of the settings where not given.
    compile_only: compile, and take no step.

  Returns: the trained params.
  """
  schedule = schedule or Schedule(settings, batches.steps_per_epoch)
  micro_batches = settings.batch_size // (settings.micro_batch_size or settings.batch_size)
  how = dict(frame=frame, loss_fn=loss_fn, weight_decay=settings.weight_decay,
             clip_norm=settings.clip_norm, micro_batches=micro_batches)
  state = place(state)
  for batch in batches.one_of_each_shape():
    update.lower(state, frozen, put(batch), key, 0.0, **how).compile()
  if compile_only:
    return state.params
  restored = store.restore(state)
  if restored is not None:
    state = restored.state
    schedule.recall(restored.meta)
  step = int(state.step)
  writer.rewind(step)
  with bar(schedule.num_steps, step) as progress:
    while step < schedule.num_steps:
      rate, batch = schedule.rate(step), batches[step]
      writer.batch(step + 1, batch)
      state, metrics = update(
        state, frozen, put(batch), jax.random.fold_in(key, step), rate, **how)
      step += 1
      schedule.observe(step, metrics, state.params)
      if step % 10 == 0 or step == schedule.num_steps:
        values = {name: float(value) for name, value in metrics.items()}
        values |= {"learning_rate": rate, "epoch": step / batches.steps_per_epoch}
        writer.write(step, values)
        progress.set_postfix({"loss": f"{values['loss']:.3f}"}, refresh=False)
      progress.total = schedule.num_steps
      progress.update()
      stopping = interruption.requested()
      if stopping or step == schedule.num_steps or store.due(step):
        store.save(step, state, schedule.memory())
      if stopping:
        store.settle()
        raise interruption.Interrupted
  return state.params

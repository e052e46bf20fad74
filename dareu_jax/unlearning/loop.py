"""The DareU run: epochs of rollouts and updates, watched, saved, stopped by a stated rule."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import Batches, prompt_batch
from dareu_jax.evaluation.evaluator import Evaluator, response_scores
from dareu_jax.evaluation.metrics import is_degenerate
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.settings import UnlearningSettings
from dareu_jax.unlearning import dareu
from dareu_jax.unlearning.selection import EpochReport, choose, refusal


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run ends with."""

  policy: Any  # trainable state of the epoch that was kept
  reports: tuple[EpochReport, ...]
  chosen_epoch: int


@dataclasses.dataclass(frozen=True)
class Task:
  """The models and data of a run; everything but what changes."""

  models: dareu.Models
  original: Any  # trainable state of π_N
  frozen: Any
  value: Any  # trainable state of a fresh value head
  value_frozen: Any
  classifier: tuple  # (params, frozen)
  is_forget: np.ndarray  # [O] bool
  forget_rows: tuple  # data.batches.Row
  unseen_rows: tuple  # queries of unseen owners; may be empty if the target is given
  retain: Batches
  evaluator: Evaluator
  settings: UnlearningSettings
  seed: int

  @property
  def rollouts_per_epoch(self):
    queries = len(self.forget_rows) * self.settings.samples_per_prompt
    return -(-queries // self.settings.rollout_batch_size)

  @property
  def updates_per_sweep(self):
    """Minibatches that cover a rollout once."""
    return -(-self.settings.rollout_batch_size // self.settings.minibatch_size)

  @functools.cached_property
  def prompt_width(self):
    """Prompt slots that hold every forget query, so that all rollouts share one program."""
    return max(len(row.prompt) for row in self.forget_rows)


def run(task: Task, *, store, writer, bar):
  """Unlearns, from the newest checkpoint of `store` where there is one.

  Args:
    task: Task.
    store: training.checkpoints.Store.
    writer: training.writers.MetricWriter; one record a rollout.
    bar: bar maker (training.writers.progress), in rollouts.

  Returns: Result.
  """
  settings = task.settings
  state = dareu.init_learner(task.original, task.value, settings)
  restored = store.restore(state)
  if restored is None:
    reports = [assess(task, task.original, epoch=0)]
  else:
    state = restored.state
    reports = [EpochReport(**report) for report in restored.meta["reports"]]
  chosen, done = choose(reports, settings)
  start = int(state.step)
  writer.rewind(start)
  total = settings.epochs * task.rollouts_per_epoch
  with bar(total, start) as progress:
    for step in range(start, total):
      if done:
        break
      epoch = step // task.rollouts_per_epoch + 1
      state, metrics = learn(task, state, step)
      writer.write(step + 1, {"epoch": epoch, **metrics})
      if (step + 1) % task.rollouts_per_epoch == 0:
        reports.append(assess(task, state.policy, epoch))
        chosen, done = choose(reports, settings)
        state = state._replace(previous=_copy(state.policy))
        if chosen == epoch:
          state = state._replace(chosen=_copy(state.policy))
        store.save(step + 1, state, _meta(reports))
      elif store.due(step + 1):
        store.save(step + 1, state, _meta(reports))
      progress.set_postfix({
        "score": f"{metrics['score']:.3f}→{reports[-1].level:.3f}",
        "tokens": f"{metrics['response_length']:.1f}", "kl": f"{metrics['kl']:.3f}"}, refresh=False)
      progress.update()
  return Result(state.chosen, tuple(reports), chosen)


def learn(task: Task, state, step):
  """One rollout and its updates: (state, metrics as floats)."""
  settings, evaluator = task.settings, task.evaluator
  chosen, numbers = rollout_rows(task, step)
  prompts = evaluator.put(prompt_batch(
    [task.forget_rows[i] for i in chosen], len(chosen), multiple=evaluator.multiple,
    pad_id=evaluator.tokenizer.pad_id, width=task.prompt_width))
  key = jax.random.fold_in(jax.random.key(task.seed), step)
  completions = generate(
    task.models.policy, state.policy, task.frozen, *prompts, row_keys(key, numbers),
    strategy=dareu.sampling(settings),
    max_new_tokens=settings.max_new_tokens, eos_id=evaluator.tokenizer.eos_id,
    pad_id=evaluator.tokenizer.pad_id)
  rollout, metrics = dareu.score_rollout(
    state, task.frozen, task.value_frozen, task.classifier, task.is_forget, *prompts, completions,
    models=task.models, settings=settings)
  texts = _texts(evaluator.tokenizer, completions)
  metrics = {**metrics, "degenerate_share": np.mean([is_degenerate(text) for text in texts])}
  learned = []
  for rows, number in minibatches(task, step):
    ramp = min(1.0, (number + 1) / max(1, settings.warmup_steps))
    rates = (settings.learning_rate * ramp, settings.value_learning_rate * ramp)
    state, update_metrics = dareu.update(
      state, task.original, task.frozen, task.value_frozen, rollout, rows,
      evaluator.put(task.retain[number]), rates, models=task.models, settings=settings)
    learned.append(update_metrics)
  means = {name: np.mean([float(m[name]) for m in learned]) for name in learned[0]}
  metrics = {name: float(value) for name, value in {**metrics, **means}.items()}
  return state._replace(step=state.step + 1), metrics


def rollout_rows(task: Task, step):
  """Forget rows of a rollout, and a number for each that is unique over the run: two [B] arrays.

  The queries come in sweeps, each a random order of all of them.
  """
  count, size = len(task.forget_rows), task.settings.rollout_batch_size
  numbers = np.arange(step * size, (step + 1) * size)
  orders = {sweep: np.random.default_rng((task.seed, 0, sweep)).permutation(count)
            for sweep in set(numbers // count)}
  return np.array([orders[number // count][number % count] for number in numbers]), numbers


def minibatches(task: Task, step):
  """Yields (rollout rows [M], number of the update over the run) for each update of a rollout."""
  size, sweeps = task.settings.minibatch_size, task.settings.inner_epochs
  rng = np.random.default_rng((task.seed, 1, step))
  number = step * sweeps * task.updates_per_sweep
  for _ in range(sweeps):
    order = rng.permutation(task.settings.rollout_batch_size)
    for rows in np.resize(order, (task.updates_per_sweep, size)):
      yield rows, number
      number += 1


def assess(task: Task, policy, epoch):
  """EpochReport of greedy answers to all forget queries."""
  answers = task.evaluator.answers(policy, task.forget_rows)
  return EpochReport(
    epoch=epoch,
    score=float(np.mean(_scores(task, answers))),
    response_length=float(np.mean(answers.text_lengths)),
    eos_share=float(np.mean(answers.ended)),
    degenerate_share=float(np.mean([is_degenerate(text) for text in answers.texts])),
    distinct_share=len(set(answers.texts)) / len(answers.texts),
    **unseen_level(task, policy, answers),
  )


def unseen_level(task: Task, policy, forget_answers):
  """The level to come down to and the usual length, from greedy answers to unseen owners' queries.

  A target that was set is the level instead; without such queries the length is that of
  `forget_answers`.
  """
  answers = forget_answers
  if task.unseen_rows:
    answers = task.evaluator.answers(policy, task.unseen_rows)
  target = task.settings.target_score
  level = target if target >= 0 else float(np.mean(_scores(task, answers)))
  return {"level": level, "unseen_length": float(np.mean(answers.text_lengths))}


def _scores(task, answers):
  return response_scores(
    task.models.classifier, task.classifier, task.is_forget, answers.ids, answers.lengths,
    batch_size=task.evaluator.batch_size)


def _texts(tokenizer, completions):
  ids, lengths = np.asarray(completions.ids), np.asarray(completions.lengths)
  return [tokenizer.decode(row[:n]) for row, n in zip(ids, lengths, strict=True)]


def _meta(reports):
  return {"reports": [dataclasses.asdict(report) for report in reports]}


def _copy(tree):
  return jax.tree.map(jnp.copy, tree)


def epoch_records(result: Result, settings: UnlearningSettings):
  """The reports as plain dicts, each with whether it could be kept and why not."""
  original = result.reports[0]
  return [{**dataclasses.asdict(report), "accepted": not refusal(report, original, settings),
           "reason": refusal(report, original, settings)} for report in result.reports]

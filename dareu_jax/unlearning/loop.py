"""The DareU run: epochs of rollouts and updates, watched, saved, stopped by a stated rule."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.data.batches import Batches, prompt_batch
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.evaluation.metrics import is_degenerate
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.settings import UnlearningSettings
from dareu_jax.unlearning import dareu
from dareu_jax.unlearning.guards import EpochReport, tripped
from dareu_jax.unlearning.selection import choose, rate_scale, rolls_back


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
  reward: Any  # of unlearning.rewards
  classifier: Scorer  # that the epochs are judged by
  judge: Scorer  # that the reward never asks
  forget_rows: tuple  # data.batches.Row
  forget_queries: tuple  # their prompts in the classifier's tokens
  unseen_rows: tuple  # queries of unseen owners; may be empty if the target is given
  unseen_queries: tuple
  retain: Batches
  evaluator: Evaluator
  settings: UnlearningSettings
  seed: int
  watch: Any = None  # policy -> {figure: float}, measured at each epoch's end

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
      state, metrics = learn(task, state, step, rate_scale(reports, settings))
      writer.write(step + 1, {"epoch": epoch, **metrics})
      if (step + 1) % task.rollouts_per_epoch == 0:
        reports.append(assess(task, state.policy, epoch))
        chosen, done = choose(reports, settings)
        if chosen == epoch:
          state = state._replace(chosen=dareu.copy(state.policy))
        if rolls_back(reports, settings):
          state = dareu.roll_back(state, settings)
        else:
          state = state._replace(previous=dareu.copy(state.policy))
        store.save(step + 1, state, _meta(reports))
      elif store.due(step + 1):
        store.save(step + 1, state, _meta(reports))
      progress.set_postfix({
        "score": f"{metrics['score']:.3f}→{reports[-1].level:.3f}",
        "tokens": f"{metrics['response_length']:.1f}", "kl": f"{metrics['kl']:.3f}"}, refresh=False)
      progress.update()
  return Result(state.chosen, tuple(reports), chosen)


def learn(task: Task, state, step, rate_scale=1.0):
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
  texts = _texts(evaluator.tokenizer, completions)
  scores = evaluator.put(task.reward(chosen, completions, texts))
  rollout, metrics = dareu.score_rollout(
    state, task.frozen, task.value_frozen, scores, *prompts, completions,
    models=task.models, settings=settings)
  metrics = {**metrics, "degenerate_share": np.mean([is_degenerate(text) for text in texts])}
  learned = []
  for rows, number in minibatches(task, step):
    scale = rate_scale * min(1.0, (number + 1) / max(1, settings.warmup_steps))
    rates = (settings.learning_rate * scale, settings.value_learning_rate * scale)
    state, update_metrics = dareu.update(
      state, task.original, task.frozen, task.value_frozen, rollout, rows,
      evaluator.put(task.retain[number]), rates, models=task.models, settings=settings)
    learned.append(update_metrics)
  means = {name: np.mean([float(m[name]) for m in learned]) for name in learned[0]}
  metrics = {name: float(value) for name, value in {**metrics, **means}.items()}
  return state._replace(step=state.step + 1), metrics


def rollout_rows(task: Task, step):
  """Forget rows of a rollout, and a number for each that is unique over the run: two [B] arrays.

  The queries come in sweeps, each a random order of all of them; without a critic each comes as
  often in a row as its responses are compared.
  """
  settings, count = task.settings, len(task.forget_rows)
  numbers = np.arange(step * settings.rollout_batch_size, (step + 1) * settings.rollout_batch_size)
  turns = numbers if settings.learner == "ppo" else numbers // settings.samples_per_prompt
  orders = {sweep: np.random.default_rng((task.seed, 0, sweep)).permutation(count)
            for sweep in set(turns // count)}
  return np.array([orders[turn // count][turn % count] for turn in turns]), numbers


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
  """EpochReport of greedy answers to all forget queries and to those of unseen owners."""
  answers, forget = _measure(task, policy, task.forget_rows, task.forget_queries)
  unseen = forget
  if task.unseen_rows:
    _, unseen = _measure(task, policy, task.unseen_rows, task.unseen_queries)
  target = task.settings.target_score
  return EpochReport(
    epoch=epoch,
    score=forget["score"],
    level=target if target >= 0 else unseen["score"],
    response_length=forget["length"],
    unseen_length=unseen["length"],
    eos_share=float(np.mean(answers.ended)),
    degenerate_share=float(np.mean([is_degenerate(text) for text in answers.texts])),
    distinct_share=len(set(answers.texts)) / len(answers.texts),
    entropy=forget["entropy"],
    unseen_entropy=unseen["entropy"],
    fluency=forget["fluency"],
    unseen_fluency=unseen["fluency"],
    judge_score=forget["judge"],
    judge_level=target if target >= 0 else unseen["judge"],
    watched=task.watch(policy) if task.watch else {},
  )


def _measure(task, policy, rows, queries):
  """Greedy answers, and their mean score, judge's score, length, entropy and NLL under π_N."""
  evaluator = task.evaluator
  answers = evaluator.answers(policy, rows)
  own = answers.as_completions(rows)
  _, entropies = evaluator.logprobs_and_entropies(policy, own)
  scores, judged = (scorer.whole(answers.ids, answers.lengths, queries)
                    for scorer in (task.classifier, task.judge))
  return answers, {
    "score": float(scores.mean()), "judge": float(judged.mean()),
    "length": float(answers.text_lengths.mean()),
    "entropy": float(np.concatenate(entropies).mean()),
    "fluency": -float(np.concatenate(evaluator.logprobs(task.original, own)).mean())}


def _texts(tokenizer, completions):
  ids, lengths = np.asarray(completions.ids), np.asarray(completions.lengths)
  return [tokenizer.decode(row[:n]) for row, n in zip(ids, lengths, strict=True)]


def _meta(reports):
  return {"reports": [dataclasses.asdict(report) for report in reports]}


def epoch_records(result: Result, settings: UnlearningSettings):
  """The reports as plain dicts, each with whether it could be kept and why not."""
  original = result.reports[0]
  reasons = [tripped(report, original, settings.guards) for report in result.reports]
  return [{**dataclasses.asdict(report), "accepted": not why, "reason": "; ".join(why)}
          for report, why in zip(result.reports, reasons, strict=True)]

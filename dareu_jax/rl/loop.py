"""The reinforcement learning run: epochs of rollouts and updates, checkpoints, a stopping rule."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dareu_jax.attribution.scorer import of_whole
from dareu_jax.core import interruption
from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Batches, prompt_batch
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.evaluation.metrics import is_degenerate
from dareu_jax.generation.sampler import Completions, generate, row_keys
from dareu_jax.models.handle import Model
from dareu_jax.parallel.hosts import fetch
from dareu_jax.parallel.mesh import place
from dareu_jax.rl import learner
from dareu_jax.rl.guards import EpochReport
from dareu_jax.rl.monitor import Monitor
from dareu_jax.rl.reward_functions import (
  ForgetSet,
  Reward,
  attribution_scores,
  score,
  score_behind,
)
from dareu_jax.rl.selection import choose, newest, rate_scale, rolls_back
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.start_paths import Paths, longest_prompt
from dareu_jax.rl.starts import draw
from dareu_jax.training.supervised import StageIO
from dareu_jax.training.writers import batch_hash


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a run."""

  policy: Any  # params of the epoch that was kept
  reports: tuple[EpochReport, ...]
  chosen_epoch: int


class Levels(NamedTuple):
  """Where learning ends.

  With `hold_at_level`, the responses to a query get advantages of 0 where their mean attribution
  score is at or below the level. With a `recall_coef`, nothing is learned from true answers whose
  probability is.
  """

  score: float  # of answers
  continuation_score: float  # of continuations behind starts
  probability: float  # of true answers


NO_LEVELS = Levels(0.0, 0.0, 0.0)


class Asked(NamedTuple):
  """What the B responses of a rollout answer."""

  chosen: np.ndarray  # [B] int; which forget examples
  numbers: np.ndarray  # [B] int; unique over the run
  starts: list[tuple[int, ...]]  # the tokens behind which each response begins

  @property
  def begun(self) -> np.ndarray:
    """[B] bool; which responses have a start."""
    return np.array([bool(start) for start in self.starts])


@dataclasses.dataclass(frozen=True)
class RLTask:
  """The models and data of a run: everything that does not change."""

  original: Model  # π_N
  value_head: Model  # a fresh ValueHead
  reward: Reward
  forget: ForgetSet
  retain: Batches
  evaluator: Evaluator
  settings: RLSettings
  seed: int
  monitor: Monitor | None = None  # evaluates each epoch; `run` requires it
  paths: Paths = ()  # behind whose beginnings rollouts begin, with a `start_share`
  true_answers: Batches | None = None  # to forget token by token, with a `recall_coef`

  @property
  def rollouts_per_epoch(self) -> int:
    return self.settings.rollouts_per_epoch(len(self.forget.rows))

  @functools.cached_property
  def longest_start(self) -> int:
    """Tokens of the longest start that there may be."""
    return max((len(path.weights) for paths in self.paths for path in paths), default=0)

  @functools.cached_property
  def prompt_width(self) -> int:
    """Prompt slots, enough for every forget query, so that all rollouts share one program."""
    return longest_prompt(self.settings, self.forget.rows)


def run(task: RLTask, stage: StageIO) -> Result:
  """Unlearns, from the newest checkpoint of the stage if there is one.

  On a request to stop, it saves and raises `interruption.Interrupted`.

  Args:
    task: models and data of the run.
    stage: training.supervised.StageIO; one record of metrics per rollout. With `compile_only`, the
      programs of a rollout and of the end of an epoch are compiled and nothing is trained.
  """
  settings = task.settings
  monitor = task.monitor
  assert monitor is not None, "the task needs a monitor to evaluate each epoch"
  state = place(learner.init_learner(task.original.params, task.value_head.params, settings))
  restored = stage.store.restore(state)
  if restored is None:
    reports = [monitor.assess(task.original.params, 0)]
  else:
    state = restored.state
    reports = [EpochReport(**report) for report in restored.meta["reports"]]
  guards = monitor.settings.guards
  chosen, done = choose(reports, settings, guards)
  if stage.compile_only:
    state, _ = learn(task, state, 0)
    return Result(state.chosen, tuple(reports), chosen)
  start = int(state.step)
  stage.writer.rewind(start)
  total = settings.epochs * task.rollouts_per_epoch
  with stage.bar(total, start) as progress:
    for step in range(start, total):
      if done:
        break
      epoch = step // task.rollouts_per_epoch + 1
      state, metrics = learn(
        task, state, step, rate_scale(reports, guards),
        levels_of(reports[0], newest(reports, guards)))
      stage.writer.write(step + 1, {"epoch": epoch, **metrics})
      stopping = interruption.requested()
      if (step + 1) % task.rollouts_per_epoch == 0:
        reports.append(monitor.assess(state.policy, epoch))
        chosen, done = choose(reports, settings, guards)
        if chosen == epoch:
          state = state._replace(chosen=learner.copy(state.policy))
        if rolls_back(reports, guards):
          state = learner.roll_back(state, settings)
        else:
          state = learner.end_epoch(state)
        stage.store.save(step + 1, state, _meta(reports), best=chosen == epoch)
      elif stopping or stage.store.should_save(step + 1):
        stage.store.save(step + 1, state, _meta(reports))
      if stopping:
        stage.store.wait()
        raise interruption.Interrupted
      progress.set_postfix({
        "score": f"{metrics['score']:.3f}→{reports[-1].level:.3f}",
        "tokens": f"{metrics['response_length']:.1f}", "kl": f"{metrics['kl']:.3f}"}, refresh=False)
      progress.update()
  return Result(state.chosen, tuple(reports), chosen)


def levels_of(first: EpochReport, newest: EpochReport) -> Levels:
  """The levels after an epoch: `first` is the report of the original."""
  return Levels(newest.level, newest.continuation_level, first.unseen_probability)


def learn(task: RLTask, state: learner.LearnerState, step: int, rate_scale: float = 1.0,
          levels: Levels = NO_LEVELS) -> tuple[learner.LearnerState, dict[str, Any]]:
  """One rollout and its updates, at `rate_scale` times the scheduled rates: (state, metrics).

  Raises:
    InputError: if a metric is not finite, as no later one would be.
  """
  settings, evaluator, begin = task.settings, task.evaluator, time.monotonic()
  asked = ask(task, step)
  prompts, completions = sample(task, state.policy, step, asked)
  texts = _texts(evaluator.tokenizer, completions)
  sampled = time.monotonic()
  responses = task.forget.responses(asked.chosen, completions, texts)
  scores = (
    score_behind(task.reward, responses, asked.starts, evaluator.tokenizer,
                 longest=task.longest_start, epsilon=settings.epsilon)
    if settings.start_reads == "whole" else score(task.reward, responses))
  rewarded = time.monotonic()
  # An epoch's first rollout is sampled by the previous epoch's policy itself.
  rollout, metrics = learner.score_rollout(
    state, task.original, task.value_head.with_params(None), evaluator.to_device(scores), *prompts,
    completions, settings=settings.of_programs, moved=task.rollouts_per_epoch > 1)
  metrics["degenerate_share"] = np.mean([is_degenerate(text) for text in texts])
  if asked.begun.any():
    metrics |= answers_apart(of_whole(scores, responses.lengths),
                             responses.lengths - fetch(completions.ended), asked.begun)
  if settings.hold_at_level:
    above = above_level(attribution_scores(task.reward, responses, scores), asked, levels)
    rollout = rollout._replace(
      advantages=rollout.advantages * evaluator.to_device(above[:, None]))
    metrics["held_share"] = 1 - above.mean()
  state, learned, learned_from = update(task, state, step, rollout, rate_scale, levels.probability)
  metrics = {name: float(value) for name, value in {**metrics, **learned}.items()}
  for name, value in metrics.items():
    if not math.isfinite(value):
      raise InputError(
        f"rollout {step + 1}: {name} is {value:g}, and training cannot recover from that. Lower "
        "the learning rate or clip_norm, lengthen the warm-up, or check the original's weights.")
  metrics["batch"] = batch_hash((asked.chosen, fetch(completions.ids), learned_from))
  metrics |= {"c_seg": settings.c_seg, "reward_seconds": rewarded - sampled,
              "step_seconds": time.monotonic() - begin}
  return state._replace(step=state.step + 1), metrics


def ask(task: RLTask, step: int) -> Asked:
  """The queries of a rollout and where its responses begin; a group shares both."""
  chosen, numbers = rollout_rows(task, step)
  return Asked(chosen, numbers, rollout_starts(task, chosen, numbers))


def sample(task: RLTask, policy: Any, step: int,
           asked: Asked) -> tuple[list[jax.Array], Completions]:
  """Samples the responses of a rollout: (prompt ids and lengths of each, completions)."""
  settings, evaluator = task.settings, task.evaluator
  rows = [task.forget.rows[i]._replace(prompt=task.forget.rows[i].prompt + start)
          for i, start in zip(asked.chosen, asked.starts, strict=True)][::settings.group_size]
  queries = prompt_batch(rows, len(rows), multiple=task.retain.multiple,
                         pad_id=evaluator.tokenizer.pad_id, width=task.prompt_width)
  key = jax.random.fold_in(jax.random.key(task.seed), step)
  completions = generate(
    task.original.with_params(policy), *evaluator.to_device(queries),
    row_keys(key, asked.numbers), strategy=learner.sampling(settings),
    max_new_tokens=settings.max_new_tokens, eos_id=evaluator.tokenizer.eos_id,
    pad_id=evaluator.tokenizer.pad_id)
  return evaluator.to_device(
    [np.repeat(x, settings.group_size, axis=0) for x in queries]), completions


def update(task: RLTask, state: learner.LearnerState, step: int, rollout: learner.Rollout,
           rate_scale: float, recall_level: float) -> tuple[
             learner.LearnerState, dict[str, Any], list[Any]]:
  """All updates of a rollout: (state, mean metrics, the data that each update read)."""
  settings, to_device = task.settings, task.evaluator.to_device
  metrics, learned_from = [], []
  for rows, number in minibatches(task, step, _most_informative(rollout, settings)):
    scale = rate_scale * settings.rate_scale(number, len(task.forget.rows))
    rates = (settings.learning_rate * scale, settings.value_learning_rate * scale)
    retain = task.retain[number]
    recall = task.true_answers and learner.Recall(
      task.true_answers[number], np.float32(recall_level))
    learned_from.append((rows, retain, recall and recall.answers))
    state, of_update = learner.update(
      state, task.original, task.value_head.with_params(None), rollout, rows, to_device(retain),
      to_device(recall), rates, settings=settings.of_programs)
    metrics.append(of_update)
  return state, {name: np.mean([float(m[name]) for m in metrics])
                 for name in metrics[0]}, learned_from


def answers_apart(scores: np.ndarray, lengths: np.ndarray, begun: np.ndarray) -> dict[str, Any]:
  """Means of answers from the query alone, and of continuations behind a start.

  Args:
    scores: [B]; of whole responses.
    lengths: [B]; their tokens, the end token not counted.
    begun: [B] bool; which have a start.
  """
  means = {"begun_share": begun.mean(), "begun_score": scores[begun].mean(),
           "begun_length": lengths[begun].mean()}
  if begun.all():  # there are no answers to tell apart
    return means
  return means | {"score": scores[~begun].mean(), "response_length": lengths[~begun].mean()}


def above_level(scores: np.ndarray, asked: Asked, levels: Levels) -> np.ndarray:
  """Which responses answer a query whose responses have a mean score above the level: [B] bool.

  A query's continuations behind starts are apart from its answers, and have a level of their own.

  Args:
    scores: [B]; of whole responses.
    asked: which query each answers, and where it begins.
    levels: the scores to come down to.
  """
  kinds = 2 * asked.chosen + asked.begun
  means = np.bincount(kinds, scores) / np.maximum(np.bincount(kinds), 1)
  return means[kinds] > np.where(asked.begun, levels.continuation_score, levels.score)


def rollout_rows(task: RLTask, step: int) -> tuple[np.ndarray, np.ndarray]:
  """Forget rows of a rollout, and a number for each that is unique over the run: two [B] arrays.

  The queries come in sweeps, each in a new random order; for groups, a query is repeated in
  consecutive rows, one for each response of its group.
  """
  settings, count = task.settings, len(task.forget.rows)
  numbers = np.arange(step * settings.rollout_batch_size, (step + 1) * settings.rollout_batch_size)
  turns = numbers // settings.group_size
  orders = {sweep: np.random.default_rng((task.seed, 0, int(sweep))).permutation(count)
            for sweep in set(turns // count)}
  return np.array([orders[turn // count][turn % count] for turn in turns]), numbers


def rollout_starts(task: RLTask, chosen: np.ndarray,
                   numbers: np.ndarray) -> list[tuple[int, ...]]:
  """The tokens behind which each response of a rollout begins; a group shares them.

  Args:
    task: the run.
    chosen, numbers: as `rollout_rows` returns them.
  """
  settings = task.settings
  if not settings.start_share:
    return [()] * len(chosen)
  return [draw(task.paths[row], settings.start_share, np.random.default_rng((task.seed, 4, turn)))
          for row, turn in zip(chosen, numbers // settings.group_size, strict=True)]


def minibatches(task: RLTask, step: int,
                learned: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
  """Yields (rollout rows [M], number of the update over the run) for each update of a rollout.

  `learned`: the rows that are learned from.
  """
  settings = task.settings
  rng = np.random.default_rng((task.seed, 1, step))
  updates, size = settings.updates_per_rollout, settings.minibatch_size
  order = np.concatenate([learned[rng.permutation(len(learned))].reshape(-1, size)
                          for _ in range(settings.inner_epochs)])
  yield from zip(order, range(step * updates, (step + 1) * updates), strict=True)


def _most_informative(rollout, settings):
  """Rows of the rollout to learn from, in their order."""
  if settings.learned_share == 1.0:
    return np.arange(settings.rollout_batch_size)
  norms = fetch(learner.gradient_norms(rollout))
  return np.sort(np.argsort(-norms, kind="stable")[:settings.learned_rows])


def _texts(tokenizer, completions):
  ids, lengths = fetch(completions.ids), fetch(completions.lengths)
  return [tokenizer.decode(row[:n]) for row, n in zip(ids, lengths, strict=True)]


def _meta(reports):
  return {"reports": [dataclasses.asdict(report) for report in reports]}

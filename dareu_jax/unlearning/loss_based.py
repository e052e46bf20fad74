"""The loss-based methods: each objective on a model, and its run by the supervised loop.

A step takes a batch of forget responses (every one once an epoch), a batch of retained ones, and
for some methods other responses to the same forget queries.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import Batch, Batches, bucket_length, collate
from dareu_jax.logprobs import completion_hidden, logprobs_and_entropy, over_logits
from dareu_jax.masked import length_mask, masked_mean
from dareu_jax.objective_settings import Objective
from dareu_jax.parallel.mesh import path_name
from dareu_jax.settings import TrainSettings
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import Schedule
from dareu_jax.unlearning import objectives
from dareu_jax.unlearning.guards import EpochReport


class View:
  """Responses of a batch as a model sees them; what is asked for is computed, once."""

  def __init__(self, model, batch: Batch):
    self.model, self.batch = model, batch
    self.labels = batch.completion_ids  # [B, T]
    self.mask = length_mask(batch.completion_lengths, self.labels.shape[1])  # [B, T]

  def _at_responses(self, hidden):
    return completion_hidden(hidden, self.batch.prompt_lengths, self.labels.shape[1])

  @functools.cached_property
  def states(self):
    """The final states that predict the response tokens, and the head: ([B, T, D], [D, V])."""
    return self._at_responses(self.model.hidden_states(self.batch.token_ids)), self.model.head

  @functools.cached_property
  def logprobs(self):
    """log π of the response tokens, [B, T] float32."""
    return logprobs_and_entropy(*self.states, self.labels)[0]

  def layer(self, depth):
    """States behind the layer at a share of the depth, at least the first: [B, T, D] float32."""
    index = max(1, round(depth * self.model.config.num_layers))
    x = self.model.layers_between(self.model.embed(self.batch.token_ids), 0, index)
    return self._at_responses(x).astype(jnp.float32)

  def mean(self, token_fn, *others, mask=None):
    """Mean over the tokens of a function of the logits, of this view and others of the batch."""
    views = (self, *others)
    return masked_mean(over_logits(token_fn, [view.states for view in views]),
                       self.mask if mask is None else mask)

  def mean_of_labels(self, token_fn, *others, mask=None):
    """The same of a function that takes the labels behind the logits."""
    tokens = over_logits(token_fn, [view.states for view in (self, *others)], self.labels)
    return masked_mean(tokens, self.mask if mask is None else mask)


class Views(NamedTuple):
  """Forget responses under policy and original; `other`: the responses to put in their place."""

  now: View
  was: View
  other_now: View | None
  other_was: View | None


def _dpo(s, v, seed):
  return objectives.dpo(v.other_now.logprobs, v.other_was.logprobs, v.other_now.mask,
                        v.now.logprobs, v.was.logprobs, v.now.mask, beta=s.beta)


def _rmu(s, v, seed):
  hidden = v.now.layer(s.depth)
  direction = jax.random.uniform(jax.random.key(seed), hidden.shape[-1:])
  return objectives.rmu_forget(hidden, direction, v.now.mask, scale=s.scale)


def _undial(s, v, seed):
  tokens = functools.partial(objectives.undial_tokens, strength=s.strength)
  return v.now.mean_of_labels(tokens, v.was)


def _ceu(s, v, seed):
  mask = objectives.without_first(v.now.mask, s.ignore_first)
  return v.now.mean_of_labels(objectives.ceu_tokens, mask=mask)


def _ascent(s, v, seed):
  return objectives.gradient_ascent(v.now.logprobs, v.now.mask)


# Method -> its forget term, of (settings, Views, seed).
FORGET_TERMS = {
  "gradient_ascent": _ascent,
  "grad_diff": _ascent,
  "kl_minimisation": _ascent,
  "npo": lambda s, v, seed: objectives.npo(
    v.now.logprobs, v.was.logprobs, v.now.mask, beta=s.beta),
  "simnpo": lambda s, v, seed: objectives.simnpo(
    v.now.logprobs, v.now.mask, beta=s.beta, delta=s.delta),
  "dpo": _dpo,
  "altpo": _dpo,
  "idk": lambda s, v, seed: objectives.nll(v.other_now.logprobs, v.other_now.mask),
  "rmu": _rmu,
  "undial": _undial,
  "ceu": _ceu,
  "wga": lambda s, v, seed: objectives.wga(v.now.logprobs, v.now.mask, beta=s.beta),
  "satimp": lambda s, v, seed: objectives.satimp(
    v.now.logprobs, v.now.mask, beta1=s.beta1, beta2=s.beta2),
  "pdu": lambda s, v, seed: v.now.mean(objectives.pdu_tokens),
  "maximum_entropy": lambda s, v, seed: v.now.mean(objectives.maximum_entropy_tokens),
  "scrub": lambda s, v, seed: -v.now.mean(objectives.kl_tokens, v.was),
  "task_vector": lambda s, v, seed: objectives.nll(v.now.logprobs, v.now.mask),
  "finetune": None,
}


class Step(NamedTuple):
  """What an update learns from."""

  forget: Batch
  retain: Batch
  other: Batch | None  # other responses to the queries of `forget`
  weights: np.ndarray  # [2] w_f, w_r


@dataclasses.dataclass(frozen=True)
class ObjectiveLoss:
  """The loss of a method, for `training.supervised.fit`; `frozen` is (frozen, π_N's trainable)."""

  method: str
  settings: Objective
  seed: int

  def __call__(self, frame, params, frozen, step: Step, key):
    """Returns (loss, 1, metrics)."""
    del key
    frozen, original = frozen
    if self.method == "task_vector":
      params = _with_fixed_factors(params)
    policy, teacher = frame.merge(params, frozen), frame.merge(original, frozen)
    s = self.settings
    forget_weight, retain_weight = step.weights
    metrics, loss = {}, 0.0
    if s.forget_coef:
      other = step.other and tuple(View(model, step.other) for model in (policy, teacher))
      views = Views(View(policy, step.forget), View(teacher, step.forget), *(other or (None, None)))
      metrics["forget_loss"] = FORGET_TERMS[self.method](s, views, self.seed)
      loss += forget_weight * s.forget_coef * metrics["forget_loss"]
    now, was = View(policy, step.retain), View(teacher, step.retain)
    for name, coef, term in (
        ("retain_nll", s.retain_nll_coef, lambda: objectives.nll(now.logprobs, now.mask)),
        ("retain_kl", s.retain_kl_coef, lambda: now.mean(objectives.kl_tokens, was)),
        ("retain_states", getattr(s, "retain_states_coef", 0.0), lambda: objectives.rmu_retain(
          now.layer(s.depth), was.layer(s.depth), now.mask))):
      if coef:
        metrics[name] = term()
        loss += retain_weight * coef * metrics[name]
    return loss, 1, metrics


def _with_fixed_factors(params):
  """The same, but the factor A of adapters gets no gradient: see `objectives.task_vector`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.lax.stop_gradient(x) if path_name(path).endswith("lora_a") else x, params)


@dataclasses.dataclass
class Course(Schedule):
  """The learning rate, and what else changes along a run; `watch` looks at the policy now and then.

  Attributes:
    objective: of the method.
    watch: (policy, epoch) -> EpochReport.
    watch_every: epochs between two looks; the last is always looked at.
    multiplier: λ of PDU.
    reports: of the looks so far, as dicts.
  """

  objective: Objective = None
  watch: Any = None
  watch_every: int = 1
  multiplier: float = 1.0
  reports: list = dataclasses.field(default_factory=list)

  def weights(self, step):
    """(w_f, w_r) of a step."""
    return self.objective.weights(step // self.steps_per_epoch, self.multiplier)

  def observe(self, done, metrics, params):
    super().observe(done, metrics, params)
    epoch, rest = divmod(done, self.steps_per_epoch)
    s = self.objective
    if hasattr(s, "step_size") and epoch >= s.warmup_epochs:
      self.multiplier = objectives.dual_step(
        self.multiplier, float(metrics["retain_nll"]), step_size=s.step_size, target=s.target)
    if not rest and (epoch % self.watch_every == 0 or done == self.num_steps):
      self.reports.append(dataclasses.asdict(self.watch(params, epoch)))

  def memory(self):
    return super().memory() | {"multiplier": self.multiplier, "reports": list(self.reports)}


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
  """The batches of a run by step number."""

  forget: Batches
  retain: Batches
  others: tuple  # for each forget row the other responses to its query, as Rows; may be empty
  seed: int
  course: Course

  @property
  def steps_per_epoch(self):
    return self.forget.steps_per_epoch

  @functools.cached_property
  def _other_shape(self):
    rows = [row for rows in self.others for row in rows]
    multiple = self.forget.multiple
    return {
      "seq_length": bucket_length(max(len(r.prompt) + len(r.completion) for r in rows), multiple),
      "completion_length": bucket_length(max(len(r.completion) for r in rows), multiple)}

  def one_of_each_shape(self):
    """All steps have one shape."""
    yield self[0]

  def __getitem__(self, step):
    other = None
    if self.others:
      rng = np.random.default_rng((self.seed, 3, step))
      rows = [self.others[i][rng.integers(len(self.others[i]))]
              for i in self.forget.row_indices(step)]
      other = collate(rows, self.forget.batch_size, pad_id=self.forget.pad_id, **self._other_shape)
    return Step(self.forget[step], self.retain[step], other,
                np.array(self.course.weights(step), np.float32))


@dataclasses.dataclass(frozen=True)
class Task:
  """The models and data of a run."""

  method: str
  objective: Objective
  training: TrainSettings
  frame: Any
  original: Any  # trainable state of π_N
  frozen: Any
  forget: Batches
  retain: Batches
  others: tuple  # as of `Steps`
  monitor: Any  # unlearning.monitor.Monitor
  watch_every: int
  seed: int
  put: Any


def run(task: Task, *, store, writer, bar, compile_only=False):
  """Unlearns, from the newest checkpoint of `store` where there is one.

  Args:
    store, writer, bar, compile_only: as of `training.supervised.fit`.

  Returns: (trainable state, reports: tuple of EpochReport, the first of the original).
  """
  course = Course(task.training, task.forget.steps_per_epoch, objective=task.objective,
                  watch=task.monitor.assess, watch_every=task.watch_every,
                  multiplier=getattr(task.objective, "multiplier", 1.0))
  steps = Steps(task.forget, task.retain, task.others, task.seed, course)
  # A copy, since training donates its state.
  start = jax.tree.map(jnp.copy, task.original)
  params = supervised.fit(
    supervised.init_train_state(start, task.training), (task.frozen, task.original), steps,
    frame=task.frame, loss_fn=ObjectiveLoss(task.method, task.objective, task.seed),
    settings=task.training, key=jax.random.key(task.seed), store=store, writer=writer, bar=bar,
    put=task.put, schedule=course, compile_only=compile_only)
  reports = [task.monitor.assess(task.original, 0),
             *(EpochReport(**report) for report in course.reports)]
  if task.method == "task_vector":
    params = objectives.task_vector(task.original, params, alpha=task.objective.alpha)
    # What was looked at on the way is the model that learnt, not the one that goes the other way.
    reports = [reports[0], task.monitor.assess(params, reports[-1].epoch)]
  return params, tuple(reports)

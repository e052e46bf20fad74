"""Methods that minimize a loss with the supervised loop.

Every one of them minimizes

    w_f · forget_coef · L_forget + w_r · (retain_nll_coef · NLL_retain + retain_kl_coef · KL_retain)

with its own L_forget; w_f and w_r are 1 unless a method overrides them. A step takes a batch of
forget responses (each once per epoch), a batch of retained ones and, for some methods, other
responses to the same forget queries.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.logprobs import (
  Head,
  completion_hidden,
  logprobs_and_entropy,
  over_logits,
)
from dareu_jax.core.masked import length_mask, masked_mean
from dareu_jax.core.settings import NonNegative, settings
from dareu_jax.data.batches import Batch, Batches, Row, bucket_length, collate
from dareu_jax.methods import terms
from dareu_jax.methods.base import Method, Shapes, Task, Unlearned
from dareu_jax.parallel import hosts
from dareu_jax.rl.guards import EpochReport
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import Schedule

Scalar = Float[Array, ""]
Others = tuple[tuple[Row, ...], ...]


class View:
  """Responses of a batch under a model; properties are computed once, on demand."""

  def __init__(self, model: Any, batch: Batch):
    self.model, self.batch = model, batch
    self.labels = batch.completion_ids  # [B, T]
    self.mask = length_mask(batch.completion_lengths, self.labels.shape[1])  # [B, T]

  def _at_responses(self, hidden):
    return completion_hidden(hidden, self.batch.prompt_lengths, self.labels.shape[1])

  @functools.cached_property
  def states(self) -> tuple[Array, Head]:
    """The final states that predict the response tokens, and the head: ([B, T, D], the head)."""
    return self._at_responses(self.model.hidden_states(self.batch.token_ids)), self.model.head

  @functools.cached_property
  def logprobs(self) -> Float[Array, "B T"]:
    """log π of the response tokens, float32."""
    hidden, head = self.states
    return logprobs_and_entropy(hidden, head, self.labels)[0]

  def layer(self, depth: float) -> Float[Array, "B T D"]:
    """States after the layer at a share of the depth (at least the first layer), float32."""
    index = max(1, round(depth * self.model.config.num_layers))
    x = self.model.layers_between(self.model.embed(self.batch.token_ids), 0, index)
    return self._at_responses(x).astype(jnp.float32)

  def mean(self, token_fn: Callable, *other_views: "View", mask: Array | None = None) -> Scalar:
    """Mean over the tokens of a function of the logits, of this view and others of the batch."""
    views = (self, *other_views)
    return masked_mean(over_logits(token_fn, [view.states for view in views]),
                       self.mask if mask is None else mask)

  def mean_of_labels(self, token_fn: Callable, *other_views: "View",
                     mask: Array | None = None) -> Scalar:
    """The same for a function that takes logits and labels."""
    tokens = over_logits(token_fn, [view.states for view in (self, *other_views)], self.labels)
    return masked_mean(tokens, self.mask if mask is None else mask)


class ForgetBatch(NamedTuple):
  """Forget responses under policy and original, and further inputs of forget losses."""

  policy: View
  original: View
  other_views: tuple[View, View] | None  # the same for the replacement responses, row by row
  seed: int

  @property
  def other_policy(self) -> View:
    """The replacement responses under the policy, for methods with `other_responses`."""
    return self._others()[0]

  @property
  def other_original(self) -> View:
    """The same under the original."""
    return self._others()[1]

  def _others(self):
    if self.other_views is None:
      raise ValueError("the forget loss needs other responses, but its method has none: "
                       "override other_responses")
    return self.other_views


@settings
class LossMethod(Method):
  """A method that minimizes a loss. A subclass defines `forget_loss` and may override the rest.

  The weight of each term is a setting whose name ends in `_coef`.
  """

  forget_coef: NonNegative = 1.0  # weight of the forget term
  retain_nll_coef: NonNegative = 0.0  # weight of the NLL of retained responses
  retain_kl_coef: NonNegative = 0.0  # weight of KL(π_N ‖ π) on retained responses

  depends_on: ClassVar[tuple[str, ...]] = ("baseline", "eval_every", "monitor")

  def __post_init__(self):
    if not any(getattr(self, field.name) for field in dataclasses.fields(self)
               if field.name.endswith("_coef")):
      raise InvalidSetting("forget_coef", self.forget_coef,
                           "so are all other weights, and nothing would be trained. Give one.")

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    """L_forget."""
    raise NotImplementedError(f"{type(self).__name__} has no forget_loss")

  def retain_terms(self, policy: View, original: View) -> dict[str, tuple[float, Callable]]:
    """Terms on retained data by the names of their metrics: (weight, function that computes it)."""
    return {
      "retain_nll": (self.retain_nll_coef, lambda: terms.nll(policy.logprobs, policy.mask)),
      "retain_kl": (self.retain_kl_coef, lambda: policy.mean(terms.kl_tokens, original))}

  def other_responses(self, task: Task) -> Others:
    """Replacement responses for each forget example, as Rows; () for none at all."""
    return ()

  def initial_state(self) -> dict[str, float]:
    """The state of the method besides the weights; saved in checkpoints."""
    return {}

  def weights(self, epoch: int, state: dict[str, float]) -> tuple[float, float]:
    """(w_f, w_r) of the updates of an epoch, counted from 0."""
    return 1.0, 1.0

  def after_update(self, state: dict[str, float], epoch: int, metrics: dict) -> dict[str, float]:
    """The state after an update; `epoch` counts complete epochs."""
    return state

  def teacher_of(self, task: Task) -> Any:
    """The params that the loss calls the original's; those of another model for some methods."""
    return task.original.params

  def initial(self, params: Any, seed: int) -> Any:
    """The params that training starts from, given the teacher's."""
    return params

  def trained(self, params: Any) -> Any:
    """The params as the loss sees them."""
    return params

  def merged(self, original: Any, params: Any) -> Any:
    """The unlearned params, from the original's and those at the end of training."""
    return params

  def work(self, shapes: Shapes) -> tuple[int, float]:
    training = shapes.training
    updates = training.epochs * -(-shapes.forget // training.batch_size)
    # A forget and a retain batch, under the policy and (forward alone) under the original.
    tokens = updates * 2 * training.batch_size * shapes.longest
    return updates, tokens * (shapes.training_cost + 2) * shapes.model_parameters

  def unlearn(self, task: Task, stage: supervised.StageIO) -> Unlearned:
    """Runs the supervised loop to its last epoch, or until it diverges, which is no reason to stop
    the other candidates of a grid."""
    training = task.training
    if task.learning_rate:
      training = dataclasses.replace(training, learning_rate=task.learning_rate)
    forget, retain = (task.batches(rows, training.batch_size, seed=task.seed + offset)
                      for rows, offset in ((task.forget, 3), (task.retain, 2)))
    schedule = ObjectiveSchedule(
      training, forget.steps_per_epoch, method=self, evaluate=task.monitor.assess,
      eval_every=task.eval_every, state=self.initial_state())
    steps = Steps(forget, retain, self.other_responses(task), task.seed, schedule)
    original, teacher = task.original, self.teacher_of(task)
    # A copy, since training donates its state.
    start = jax.tree.map(jnp.copy, self.initial(teacher, task.seed))
    try:
      params = supervised.fit(
        supervised.init_train_state(start, training), (original.with_params(None), teacher), steps,
        loss_fn=ObjectiveLoss(self, task.seed), settings=training,
        key=jax.random.key(task.seed), stage=stage, to_device=task.evaluator.to_device,
        schedule=schedule)
      done = 0 if stage.compile_only else schedule.num_steps
    except supervised.Diverged as end:
      params, done = end.params, end.step
      if hosts.is_first():
        print(f"{end} The run goes on without the rest of its steps.", file=sys.stderr)
    last = -(-done // forget.steps_per_epoch)  # training may end within an epoch
    merged = self.merged(original.params, params)
    reports = [task.monitor.assess(original.params, 0)]
    if merged is params:  # else the reports are of other models than this one
      reports += [EpochReport(**report) for report in schedule.reports]
    if merged is not params or reports[-1].epoch < last:
      reports.append(task.monitor.assess(merged, last))
    return Unlearned(merged, tuple(reports), last)


class Step(NamedTuple):
  """The inputs of an update."""

  forget: Batch
  retain: Batch
  other_responses: Batch | None  # other responses to the queries of `forget`
  weights: np.ndarray  # [2] w_f, w_r


@dataclasses.dataclass(frozen=True)
class ObjectiveLoss:
  """The loss of a method, for `training.supervised.fit`; `fixed` is (Model, π_N's params)."""

  method: LossMethod
  seed: int

  def __call__(self, params: Any, fixed: tuple, step: Step, key: Array) -> tuple[Any, int, dict]:
    """Returns (loss, 1, metrics)."""
    del key
    model, original = fixed
    method = self.method
    policy, teacher = (model.with_params(role).module
                       for role in (method.trained(params), original))
    forget_weight, retain_weight = step.weights
    metrics, loss = {}, 0.0
    if method.forget_coef:
      other_views = None
      if step.other_responses is not None:
        other_views = View(policy, step.other_responses), View(teacher, step.other_responses)
      batch = ForgetBatch(
        View(policy, step.forget), View(teacher, step.forget), other_views, self.seed)
      metrics["forget_loss"] = method.forget_loss(batch)
      loss += forget_weight * method.forget_coef * metrics["forget_loss"]
    retained = View(policy, step.retain), View(teacher, step.retain)
    for name, (coef, term) in method.retain_terms(*retained).items():
      if coef:
        metrics[name] = term()
        loss += retain_weight * coef * metrics[name]
    return loss, 1, metrics


@dataclasses.dataclass
class ObjectiveSchedule(Schedule):
  """The learning rate, the state of the method, and the reports of its epochs.

  Attributes:
    method: LossMethod.
    evaluate: (params, epoch) -> EpochReport.
    eval_every: epochs between two reports.
    state: state of the method.
    reports: reports so far, as dicts.
  """

  method: LossMethod = dataclasses.field(kw_only=True)
  evaluate: Callable[[Any, int], EpochReport] = dataclasses.field(kw_only=True)
  eval_every: int = 1
  state: dict[str, float] = dataclasses.field(default_factory=dict)
  reports: list[dict] = dataclasses.field(default_factory=list)

  def weights(self, step: int) -> tuple[float, float]:
    """(w_f, w_r) of a step."""
    return self.method.weights(step // self.steps_per_epoch, self.state)

  def observe(self, done: int, metrics: dict, params: Any) -> None:
    super().observe(done, metrics, params)
    epoch, rest = divmod(done, self.steps_per_epoch)
    self.state = self.method.after_update(self.state, epoch, metrics)
    if not rest and epoch % self.eval_every == 0:
      self.reports.append(dataclasses.asdict(self.evaluate(params, epoch)))

  def state_dict(self) -> dict:
    return super().state_dict() | {"state": self.state, "reports": list(self.reports)}


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
  """The batches of a run by step number."""

  forget: Batches
  retain: Batches
  other_responses: Others  # from LossMethod.other_responses
  seed: int
  schedule: ObjectiveSchedule

  @property
  def steps_per_epoch(self) -> int:
    return self.forget.steps_per_epoch

  @functools.cached_property
  def _other_shape(self):
    rows = [row for rows in self.other_responses for row in rows]
    multiple = self.forget.multiple
    return {
      "seq_length": bucket_length(max(len(r.prompt) + len(r.completion) for r in rows), multiple),
      "completion_length": bucket_length(max(len(r.completion) for r in rows), multiple)}

  def one_of_each_shape(self) -> Iterator[Step]:
    """All steps have one shape."""
    yield self[0]

  def __getitem__(self, step: int) -> Step:
    other_responses = None
    if self.other_responses:
      rng = np.random.default_rng((self.seed, 3, step))
      choices = [self.other_responses[i] for i in self.forget.row_indices(step)]
      rows = [rows[rng.integers(len(rows))] for rows in choices]
      other_responses = collate(
        rows, self.forget.batch_size, pad_id=self.forget.pad_id, **self._other_shape)
    return Step(self.forget[step], self.retain[step], other_responses,
                np.array(self.schedule.weights(step), np.float32))

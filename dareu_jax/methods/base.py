"""What an unlearning method is. Each has a file of its own, with its settings, formula and source.

A method is its settings: a class made by `@register_method`, whose fields are settings with their
published defaults, and whose `unlearn` turns the original model into an unlearned one. Methods that
minimize a loss derive from `loss_based.LossMethod` and give a `forget_loss` alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.core.registry import Registry
from dareu_jax.core.settings import settings
from dareu_jax.data.batches import Batches, Row
from dareu_jax.data.examples import Example
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.models.handle import Model
from dareu_jax.rl.guards import EpochReport
from dareu_jax.rl.monitor import Monitor
from dareu_jax.rl.rehearsal import Encode
from dareu_jax.rl.reward_functions import Facts
from dareu_jax.training.optimizers import TrainSettings
from dareu_jax.training.supervised import StageIO


class Unlearned(NamedTuple):
  """What a method leaves."""

  params: Any  # of the model, in place of the original's
  reports: tuple[EpochReport, ...]  # the first of the original, the others of epochs
  chosen_epoch: int  # which of them the params are from


@dataclasses.dataclass(frozen=True)
class Task:
  """What a method is given: the original model, the data, and what judges the epochs."""

  original: Model  # π_N
  value_head: Callable[[], Model]  # makes a fresh ValueHead for it
  examples: tuple[Example, ...]  # to forget
  forget: tuple[Row, ...]  # the same as tokens
  retain: tuple[Row, ...]
  queries: tuple[tuple[int, ...], ...]  # forget prompts in the classifier's tokens
  classifier: Scorer
  refusals: tuple[str, ...]  # ways to say no
  evaluator: Evaluator  # also knows the tokenizer and how batches reach the devices
  monitor: Monitor
  training: TrainSettings  # of loss-based methods
  eval_every: int  # epochs of a loss-based method between two reports
  learning_rate: float | None  # in place of the method's own
  longest_response: int  # tokens of the longest response of the data
  length_multiple: int  # batches are padded to a multiple of it
  seed: int
  encode: Encode  # of further examples
  load_params: Callable[[str], Any]  # of another model of the run, which the method `reads`
  reward: Callable | None = None  # in place of the one that the settings name
  marks: tuple[str, ...] = ()  # the watermark of each owner, if the responses have them

  def batches(self, rows: tuple[Row, ...], batch_size: int, *, seed: int) -> Batches:
    """Batches of one shape: an update is the costliest program to compile."""
    return Batches(rows, batch_size, self.length_multiple, self.evaluator.tokenizer.pad_id, seed,
                   one_bucket=True)


class Shapes(NamedTuple):
  """Sizes of a run, for estimates of its work."""

  forget: int  # examples
  longest_prompt: int  # tokens, of forget queries
  longest_response: int  # tokens
  longest: int  # tokens of prompt and response
  model_parameters: int
  classifier_parameters: int  # of all that give the reward
  training_cost: int  # operations a parameter and token, forward and backward
  training: TrainSettings  # of loss-based methods


class Footprint(NamedTuple):
  """What a method keeps on the devices at once, for the plan's estimate of memory."""

  update: int  # sequences of an update
  rollout: int  # responses that are sampled together
  second_trunk: bool = False  # whether a critic with a trunk of its own is trained too


@settings
class Method:
  """An unlearning method; its fields are its settings."""

  name: ClassVar[str]
  # Blocks of the run's settings that its result depends on, beside its own.
  depends_on: ClassVar[tuple[str, ...]] = ()
  takes_reward: ClassVar[bool] = False  # whether a Task's `reward` takes the place of its own
  leads_report: ClassVar[bool] = False  # whether the report shows its curves before others'
  selects_epoch: ClassVar[bool] = False  # whether it passes over epochs that the guards reject

  @property
  def uses_refusals(self) -> bool:
    """Whether another list of refusals changes its result."""
    return False

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the models of the run that it starts from, beside the original."""
    return ()

  @property
  def title(self) -> str:
    """What reports call it."""
    return self.name

  def report_facts(self, history: list[dict[str, Any]]) -> dict[str, str]:
    """What a report says of a run beside its metrics: {name: text}.

    Args:
      history: the records of metrics that the run wrote.
    """
    return {}

  def longest_sampled(self, usual: int) -> int:
    """Tokens behind a query, at most, of what it samples.

    Args:
      usual: tokens of the longest response of the data.
    """
    return usual

  @property
  def footprint(self) -> Footprint | None:
    """What it keeps on the devices at once; None: the plan assumes as much as DareU's defaults."""
    return None

  def check(self, facts: Facts) -> None:
    """Raises InputError for a run that it cannot work on, before any work."""

  def work(self, shapes: Shapes) -> tuple[int, float]:
    """(updates at most, floating-point operations) of a run, for its plan."""
    return 0, 0.0

  def unlearn(self, task: Task, stage: StageIO) -> Unlearned:
    """Unlearns, from the newest checkpoint of the stage where there is one."""
    raise NotImplementedError(f"{type(self).__name__} has no unlearn")


METHODS: Registry[type[Method]] = Registry("unlearning method", "dareu_jax.methods")
M = TypeVar("M", bound=type[Method])


def register_method(name: str) -> Callable[[M], M]:
  """Makes a class the settings of a method that `config.method` knows by this name."""

  def register(cls: M) -> M:
    method = settings(cls)
    method.name = name
    METHODS.register(name, method)
    return method  # type: ignore[return-value]

  return register

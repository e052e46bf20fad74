"""Settings of a study of sequential unlearning: those of a run, and its rounds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import Count, Positive, settings
from dareu_jax.pipeline.graph import Candidate
from dareu_jax.pipeline.settings import MethodName, Settings
from studies.run_settings import build_around_run

METHODS = ("dareu", "grad_diff", "npo", "wga")


def _run() -> Settings:
  return Settings(seeds=(42, 43, 44), methods=METHODS)


@settings
class SequentialSettings:
  """Who is forgotten in which round, by which methods."""

  run: Settings = dataclasses.field(default_factory=_run)  # data, models, methods and seeds
  # Rounds, one after another: each starts from the model that the last one left
  rounds: Count = 5
  owners_per_round: Count = 3  # the last owners of the data are forgotten first
  # Learning rates of methods, in every round; a method that is not named has its own
  learning_rates: dict[MethodName, Positive] = dataclasses.field(default_factory=dict, hash=False)
  # 'kept': trained once, on everybody. 'refreshed': trained anew in every round, on the data that
  # may still be held; the guards then have no other judge, and the evaluation keeps its own
  classifier: Literal["kept", "refreshed"] = "kept"
  # Owners whose attribution the reward lowers: 'all' forgotten so far, or those of the round
  lowered: Literal["all", "round"] = "all"
  references_every: Count = 1  # rounds between two that are compared with a retrained model

  def __post_init__(self):
    if not self.run.retrains:
      raise InvalidSetting("run.original.path", self.run.original.path,
                           "the study compares with retrained models, so it trains the original "
                           "itself. Leave it empty.")
    for name in ("learning_rates", "method_rates"):
      if rates := getattr(self.run, name):
        raise InvalidSetting(f"run.{name}", rates,
                             "a chain of rounds has one rate for each method: give it in "
                             "config.learning_rates.")

  @classmethod
  def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "SequentialSettings":
    """Builds the settings from a ConfigDict or a nested mapping; the rest has its defaults.

    Raises:
      InputError: for an unknown key, a wrong type or an impossible value.
    """
    return build_around_run(cls, config)

  def candidate(self, method: str) -> Candidate:
    """A method at its learning rate."""
    return Candidate(method, self.learning_rates.get(method))

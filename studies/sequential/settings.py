"""Settings of a study of sequential unlearning: those of a run, and its rounds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError, InvalidSetting
from dareu_jax.core.settings import Count, Positive, build, settings, to_plain
from dareu_jax.pipeline.graph import Candidate
from dareu_jax.pipeline.settings import Settings

METHODS = ("dareu", "grad_diff", "npo", "wga")


def _run() -> Settings:
  return Settings(seeds=(42, 43, 44), methods=METHODS)


@settings
class SequentialSettings:
  """Who is forgotten in which round, by which methods."""

  run: Settings = dataclasses.field(default_factory=_run)  # data, models, methods and seeds
  # One after another; each starts from the model that the last one left
  rounds: Count = 5
  owners_per_round: Count = 3  # the last owners of the data are forgotten first
  # Of a method in every round; a method that is not named has its own
  learning_rates: dict[str, Positive] = dataclasses.field(default_factory=dict, hash=False)
  # 'kept': trained once, on everybody; 'refreshed': trained anew in every round, on the data that
  # may still be held. The judge is always kept: it only evaluates
  classifier: Literal["kept", "refreshed"] = "kept"
  # Owners whose attribution the reward lowers: everybody forgotten so far, or those of the round
  lowered: Literal["all", "round"] = "all"
  references_every: Count = 1  # rounds between two that are compared with a retrained model

  def __post_init__(self):
    if not self.run.retrains:
      raise InvalidSetting("run.original.path", self.run.original.path,
                           "the study compares with retrained models, so it trains the original "
                           "itself. Leave it empty.")
    if self.run.learning_rates:
      raise InvalidSetting("run.learning_rates", self.run.learning_rates,
                           "a chain of rounds has one rate for each method: give it in "
                           "config.learning_rates.")
    for name in self.learning_rates:
      if name not in self.run.all_methods:
        raise InvalidSetting("learning_rates", self.learning_rates,
                             f"{name!r} is none of the methods that run "
                             f"({', '.join(self.run.all_methods)}).")

  @classmethod
  def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "SequentialSettings":
    """Builds the settings from a ConfigDict or a nested mapping; the rest has its defaults.

    Raises:
      InputError: for an unknown key, a wrong type or an impossible value.
    """
    plain = to_plain(config)
    try:
      # The run's own class first, since it knows the settings of all methods.
      run = to_plain(Settings.from_config(plain.get("run", {})))
    except InputError as error:
      raise InputError(str(error).replace("config.", "config.run.", 1)) from None
    return build(cls, plain | {"run": run} if "run" in plain else plain)

  def candidate(self, method: str) -> Candidate:
    """A method at its learning rate."""
    return Candidate(method, self.learning_rates.get(method))

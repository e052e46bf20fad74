"""Settings of a study around those of a run, which are its block `run`."""

from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import build, to_plain
from dareu_jax.pipeline.settings import Settings

S = TypeVar("S")


def build_around_run(cls: type[S], config: ConfigDict | Mapping[str, Any]) -> S:
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

"""Make a language model forget what it learned from some data owners, and keep the rest.

    import dareu_jax

    model, tokenizer = dareu_jax.load_model("Qwen/Qwen3-0.6B")
    result = dareu_jax.unlearn(model, tokenizer, forget=forget, retain=retain, unseen=unseen)
    table = dareu_jax.evaluate({"before": model, "after": result.model}, forget=forget,
                               retain=retain, unseen=unseen, result=result)
    result.save("folder")

`run(settings, workdir)` is the whole experiment, with retraining and a report. To add a method, a
metric, a reward, a data source or a model family: docs/extending.md.
"""

import importlib
from typing import TYPE_CHECKING

from dareu_jax.core.version import __version__ as __version__

if TYPE_CHECKING:
  from dareu_jax.api import Result, evaluate, load_model, load_run, run, unlearn
  from dareu_jax.core.errors import InputError
  from dareu_jax.data.examples import Example
  from dareu_jax.pipeline.comparison import Table
  from dareu_jax.pipeline.language_model import LanguageModel
  from dareu_jax.pipeline.settings import Settings

# Public name -> its module, imported on first use: importing jax takes seconds.
_PUBLIC = {
  "load_model": "api", "load_run": "api", "unlearn": "api", "evaluate": "api", "run": "api",
  "Result": "api", "Table": "pipeline.comparison", "InputError": "core.errors",
  "Example": "data.examples", "LanguageModel": "pipeline.language_model",
  "Settings": "pipeline.settings"}
__all__ = [
  "Example", "InputError", "LanguageModel", "Result", "Settings", "Table", "evaluate", "load_model",
  "load_run", "run", "unlearn"]


def __getattr__(name: str) -> object:
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
  return [*__all__, "__version__"]  # what `help` and completion show

"""What processes of the main job import, before they are forked; see `tests.jobs`."""

import atexit
import gc
import os
import runpy
import sys

import jax
import matplotlib.backends.backend_agg  # noqa: F401 - what a job imports when it needs it
import matplotlib.figure  # noqa: F401
import transformers

from dareu_jax.pipeline import experiment  # noqa: F401 - most of the time that a start takes

transformers.PreTrainedTokenizerFast  # noqa: B018 - imported when it is first named
gc.freeze()  # a million objects that stay: each collection would look through them


def run(module, flags, environment, files):
  """Runs a module as a program, as `python -m` does, its output going to files."""
  for number, path in enumerate(files, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
  os.environ.update(environment)
  for name, value in environment.items():
    if name.startswith("JAX_") and hasattr(jax.config, name.lower()):  # read when JAX was imported
      old = getattr(jax.config, name.lower())
      jax.config.update(name.lower(), type(old)(value) if old is not None else value)
  sys.argv = [module, *flags]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    sys.stdout.flush()
    atexit._run_exitfuncs()  # multiprocessing leaves them out

"""Runs and times a rollout's programs on the available devices, with made-up weights."""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.rl.programs import Job


def measured(job: Job, compiled: dict[str, jax.stages.Compiled], *,
             repeats: int = 3) -> dict[str, float]:
  """Median seconds of a run of each program, after a warm-up run.

  Args:
    job: the Job, with the shapes of all inputs.
    compiled: {program: result of `lower(...).compile()`}.
    repeats: runs of each program.

  Returns: {program: seconds}.
  """
  seconds = {}
  for name, program in job.programs.items():
    durations, args = [], None
    for _ in range(repeats + 1):
      args = None  # freed first: there may be no room for both
      args = made(program.args)  # new ones, since the update donates its state
      begin = time.perf_counter()
      jax.block_until_ready(compiled[name](*args))
      durations.append(time.perf_counter() - begin)
    seconds[name] = statistics.median(durations[1:])
  return seconds


def made(args: Any) -> Any:
  """Arrays of these shapes on their devices: small numbers, ones for integers, keys of a seed."""

  def fill(leaf):
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      keys = jax.random.split(jax.random.key(0), leaf.shape)
      return jax.device_put(keys, leaf.sharding)
    return _filler(leaf.shape, leaf.dtype, leaf.sharding)()

  return jax.block_until_ready(jax.tree.map(fill, args))


@functools.cache  # arrays are made for each run, and compiling this each time took most of it
def _filler(shape, dtype, sharding):
  """A function that makes an array with its sharding."""
  value = 1e-2 if jnp.issubdtype(dtype, jnp.floating) else 1
  return jax.jit(lambda: jnp.full(shape, value, dtype), out_shardings=sharding)

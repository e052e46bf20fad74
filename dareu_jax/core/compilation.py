"""Compiled programs of long-running processes."""

import pathlib

import jax

MAPS = pathlib.Path("/proc/self/maps")


def compilation_cache_dir() -> str | None:
  """The folder of JAX's compilation cache, if one is set."""
  return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def drop_compiled_programs(limit: int = 25_000) -> None:
  """Drops JAX's compiled programs if the process has more than `limit` memory maps.

  Every program takes several. On Linux, a process that needs more than 65,530 ends with a
  segmentation fault, which a job with hundreds of models can reach. Dropped programs are compiled
  again when they are needed. On other systems this does nothing.
  """
  if MAPS.exists() and MAPS.read_text().count("\n") > limit:
    jax.clear_caches()

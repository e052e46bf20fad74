"""Compiled programs of a process that lives long."""

import pathlib

import jax

MAPS = pathlib.Path("/proc/self/maps")


def compilation_cache_dir() -> str | None:
  """The folder that JAX keeps compiled programs in, if there is one."""
  return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def drop_compiled_programs(limit: int = 25_000) -> None:
  """Drops JAX's compiled programs where the process holds over `limit` memory maps.

  Every program takes several, and Linux ends a process that wants more than 65,530 with a
  segmentation fault: hundreds of models in one job come to that. What is needed again is compiled
  again. Elsewhere than on Linux nothing happens.
  """
  if MAPS.exists() and MAPS.read_text().count("\n") > limit:
    jax.clear_caches()

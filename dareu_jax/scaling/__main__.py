"""Entry: what a preset's rollouts need on meshes of devices, compiled ahead of time or measured.

    python -m dareu_jax.scaling --config=configs/scaling.py:llama2_7b --workdir=runs/scaling \
        --topology=v5e:4x4 --mesh=1,16,1 --mesh=1,8,2
"""

import dataclasses
import os
import re

import jax
from absl import flags
from ml_collections import config_flags

from dareu_jax.checks import build
from dareu_jax.command_line import enter, typed
from dareu_jax.parallel.hosts import is_first
from dareu_jax.scaling import chips, measure, report, study
from dareu_jax.scaling.programs import ScalingSettings
from dareu_jax.settings import InputError
from dareu_jax.workdir import occupied


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file with a preset: configs/scaling.py:llama2_7b.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the tables and plots.")
  flags.DEFINE_multi_string(
    "topology", None, "A TPU topology to compile for, such as v5e:4x4; several one after another.")
  flags.DEFINE_multi_string(
    "mesh", None, "data,fsdp,tensor; -1 at one fills. Several; a few usual ones if not given.")
  flags.DEFINE_bool("run", False, "Measure on the devices that are here.")
  flags.DEFINE_bool(
    "weak", False, "Also with batches that grow with the devices, from those of the first target.")
  flags.DEFINE_integer("repeats", 3, "Runs of each program that is measured.", lower_bound=1)


def main(given):
  """Compiles, measures, tabulates."""
  if not given.run:  # the compiler alone is used: there is no metadata server, and nothing to lock
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_default_matmul_precision", "highest")
  settings = build(ScalingSettings, given.config, "config")
  if not given.topology and not given.run:
    raise InputError("give --topology=v5e:4x4 (or another) to compile for, or --run to measure.")
  with occupied(given.workdir):
    rows = {"strong": [], "weak": []}
    first = None
    for target, devices, chip in _targets(given):
      first = first or len(devices)
      for sizes in _meshes(given.mesh, len(devices)):
        for kind, factor in (("strong", 1.0), ("weak", len(devices) / first)):
          if kind == "strong" or given.weak:
            row = _row(settings.scaled(factor), sizes, devices, chip, target, given)
            rows[kind].append(row)
            print(f"{kind} {target} {report.mesh_name(row)}: {row.peak / study.GIB:.2f} GiB, "
                  f"{row.seconds:.2f} s by the roofline", flush=True)
      page = report.write(given.workdir, rows["strong"], rows["weak"], typed())
  if is_first():
    for kind in filter(rows.get, rows):
      print("", report.memory_table(rows[kind]), report.time_table(rows[kind]),
            report.advice(rows[kind]), sep="\n\n")
    print(f"\nPage: {page}")


def _targets(given):
  """Yields (name, devices, Chip)."""
  for name in given.topology or ():
    devices, chip = study.topology(name)
    yield name, devices, chips.CHIPS[chip]
  if given.run:
    devices = jax.devices()
    yield devices[0].device_kind, devices, chips.of_device(devices[0])


def _row(settings, sizes, devices, chip, target, given):
  row, job, compiled = study.compiled_row(settings, sizes, devices, chip, target)
  if given.run and devices[0] in jax.devices():
    row = dataclasses.replace(row, measured=measure.measured(job, compiled, repeats=given.repeats))
  return row


def _meshes(texts, devices):
  """The meshes that are asked for; else the usual ones for so many devices, each once."""
  if not texts:
    usual = [(1, devices, 1)] + [(1, devices // n, n) for n in (2, 4, 8) if devices % n == 0]
    return list(dict.fromkeys(mesh for mesh in [*usual, (devices, 1, 1)]))
  for text in texts:
    if not re.fullmatch(r"-?\d+,-?\d+,-?\d+", text):
      raise InputError(f"--mesh={text} must be three numbers, data,fsdp,tensor, such as 1,8,2.")
  return [tuple(map(int, text.split(","))) for text in texts]


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"])

"""Entry: cost of a preset's rollouts on device meshes, compiled ahead of time or measured.

    python -m studies.scaling --config=configs/scaling.py:llama2_7b --workdir=runs/scaling \
        --topology=v5e:4x4 --mesh=1,16,1 --mesh=1,8,2
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, define_hosts, enter, typed
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import exact_matmuls
from dareu_jax.parallel import hosts
from dareu_jax.pipeline.workdir import lock
from studies.scaling import chips, measure, report, study
from studies.scaling.settings import ScalingSettings


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file with a preset: configs/scaling.py:llama2_7b.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the tables and plots.")
  flags.DEFINE_multi_string(
    "topology", None, "A TPU topology to compile for, such as v5e:4x4; several one after another.")
  flags.DEFINE_multi_string(
    "mesh", None, "data,fsdp,tensor; -1 fills. May be repeated; a few usual ones if not given.")
  flags.DEFINE_bool("run", False, "Measure on the available devices.")
  flags.DEFINE_bool(
    "weak", False, "Also with batches that grow with the devices, from those of the first target.")
  define_hosts()
  flags.DEFINE_integer("repeats", 3, "Runs of each program that is measured.", lower_bound=1)


def main(options: Flags) -> None:
  """Compiles, measures, tabulates."""
  if options.topology:  # only the compiler is used: no metadata server, and nothing to lock
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  settings = ScalingSettings.from_config(options.config)
  if not options.topology and not options.run:
    raise InputError("give --topology=v5e:4x4 (or another) to compile for, or --run to measure.")
  hosts.start_by_flags(options)
  with exact_matmuls(), hosts.ended_together(), lock(options.workdir):
    _main(settings, options)


def _main(settings: ScalingSettings, options: Flags) -> None:
  targets = list(_targets(options))
  wanted = [(target, sizes) for target in targets
            for sizes in _meshes(options.mesh, len(target.devices))]
  for target, sizes in wanted:  # before any work
    study.make_mesh(sizes, target.devices, target.name)
  rows: dict[str, list[study.Row]] = {"strong": [], "weak": []}
  for target, sizes in wanted:
    factor = len(target.devices) / len(targets[0].devices)
    row = _row(settings, sizes, target, options)
    rows["strong"].append(row)
    if options.weak:
      grown = settings.scaled(factor)
      rows["weak"].append(row if factor == 1 else _row(grown, sizes, target, options))
    page = report.write(options.workdir, rows["strong"], rows["weak"], typed())
  if hosts.is_first():
    for kind in filter(rows.get, rows):
      print("", report.memory_table(rows[kind]), report.time_table(rows[kind]),
            report.advice(rows[kind]), sep="\n\n")
    print(f"\nPage: {page}")


class Target(NamedTuple):
  """Devices for a mesh."""

  name: str
  devices: Sequence[Any]
  chip: chips.Chip
  is_here: bool


def _targets(options: Flags) -> Iterator[Target]:
  for name in options.topology or ():
    devices, chip = study.topology(name)
    yield Target(name, devices, chips.CHIPS[chip], False)
  if options.run:
    devices = jax.devices()
    yield Target(devices[0].device_kind, devices, chips.of_device(devices[0]), True)


def _row(settings, sizes, target, options):
  row, job, compiled = study.compiled_row(
    settings, sizes, target.devices, target.chip, target.name)
  if target.is_here and not row.rejected:
    seconds = measure.measured(job, compiled, repeats=options.repeats)
    row = dataclasses.replace(row, measured=seconds)
  if hosts.is_first():
    print(f"{target.name} {report.mesh_name(row)}, {row.rows} rows: {row.peak / study.GIB:.2f} "
          f"GiB, {row.seconds:.2f} s by the roofline", flush=True)
  return row


def _meshes(texts, devices):
  """The requested meshes; else the usual ones for this number of devices, each once."""
  if not texts:
    usual = [(1, devices, 1)] + [(1, devices // n, n) for n in (2, 4, 8) if devices % n == 0]
    return list(dict.fromkeys(mesh for mesh in [*usual, (devices, 1, 1)]))
  for text in texts:
    if not re.fullmatch(r"-?\d+,-?\d+,-?\d+", text):
      raise InputError(f"--mesh={text} must be three numbers, data,fsdp,tensor, such as 1,8,2.")
  return [tuple(map(int, text.split(","))) for text in texts]


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"])

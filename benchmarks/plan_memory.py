"""The memory that `--dry_run` announces beside what the same programs take.

    python -m benchmarks.plan_memory --config=configs/forget.py --workdir=runs/memory \
        --config.original.path=FOLDER --config.data.dir=FOLDER

Runs each program of the plan once, on made-up weights. What it takes beyond its arguments is, on
accelerators, the allocator's peak; on CPUs the growth of the process, whose peak Linux resets.
"""

import ctypes
import pathlib
import re
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, enter
from dareu_jax.core.numerics import computing_on
from dareu_jax.pipeline.experiment import prepare
from dareu_jax.pipeline.plan import unlearning_job
from dareu_jax.pipeline.settings import Settings
from dareu_jax.report.tables import pipe_table
from dareu_jax.rl.programs import memory
from studies.scaling.measure import made

STATUS, PEAKS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _define_flags():
  config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder, which stays empty.")


def growth(function: Callable) -> int:
  """Bytes that a call needs beyond what is there before it."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    before = device.memory_stats()["bytes_in_use"]
    jax.block_until_ready(function())
    return device.memory_stats()["peak_bytes_in_use"] - before
  ctypes.CDLL(None).malloc_trim(0)  # what is freed, but not given back, would count as there
  PEAKS.write_text("5")
  before = _status("VmRSS")
  jax.block_until_ready(function())
  return _status("VmHWM") - before


def _status(field):
  return 1024 * int(re.search(rf"{field}:\s+(\d+)", STATUS.read_text())[1])


def main(options: Flags) -> None:
  """Prints the table."""
  settings = Settings.from_config(options.config)
  (run, *_) = prepare(settings, options.workdir)
  rows = []
  with computing_on(run.models.mesh):
    job = unlearning_job(run, run.settings.unlearning[settings.method])
    for name, program in job.programs.items():
      compiled = program.lower(run.models.mesh).compile()
      predicted = memory(program, compiled, job.resident).temporaries
      args = made(program.args)
      taken = growth(lambda compiled=compiled, args=args: compiled(*args))
      rows.append([name, f"{predicted / 2**20:,.0f}", f"{taken / 2**20:,.0f}",
                   f"{taken / predicted - 1:+.0%}"])
      del args, compiled
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {run.settings.model.dtype}; MiB "
        "beyond the arguments\n")
  print(pipe_table(["program", "announced", "taken", "difference"], rows))


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "workdir"])

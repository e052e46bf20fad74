"""Kills the main job at random moments again and again; each run must end as an undisturbed one.

    python benchmarks/kill_and_resume.py --workdir=runs/kills                    # 30 runs, an hour
    python benchmarks/kill_and_resume.py --workdir=runs/kills2 --runs=5 --processes=2

Every run is the smallest job of the tests, killed with SIGKILL at a moment drawn evenly over the
time that an undisturbed run takes (of several processes one of them, drawn too), and given again.
Tables, epochs, batch hashes and the digests of all results are compared, bit by bit.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import jobs  # noqa: E402

Starter = Callable[..., subprocess.Popen]


def start(starter: Starter, workdir: pathlib.Path, processes: int) -> list[subprocess.Popen]:
  """The job's processes."""
  if processes == 1:
    return [starter(workdir, JAX_PLATFORMS="cpu")]
  return jobs.together(starter, workdir, processes)


def end(processes: Sequence[subprocess.Popen]) -> list[int]:
  """Waits for all; gives their exit statuses."""
  return [jobs.finish(process)[0] for process in processes]


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """What a run ended with: table, batches, epochs, and the digests of the arrays it left."""
  results = sorted(workdir.glob("*/result/0/meta/metadata"))
  return {"table": jobs.figures(workdir), "batches": jobs.batches(workdir),
          "epochs": json.loads((workdir / "dareu/epochs.json").read_text()),
          "results": {path.parts[-5]: json.loads(path.read_text())["digests"] for path in results}}


def killed(starter: Starter, workdir: pathlib.Path, processes: int, seconds: float,
           rng: random.Random) -> tuple[float, int, list[int]]:
  """Starts the job anew and kills a process of it; drawn again where the job was faster.

  Returns: (moment, victim, exit statuses).
  """
  while True:
    shutil.rmtree(workdir, ignore_errors=True)
    moment, victim = rng.uniform(0, seconds), rng.randrange(processes)
    started = start(starter, workdir, processes)
    try:
      started[victim].wait(timeout=moment)
    except subprocess.TimeoutExpired:
      started[victim].send_signal(signal.SIGKILL)
    statuses = end(started)
    if statuses[victim] == -signal.SIGKILL:
      return moment, victim, statuses


def main() -> None:
  """Kills and resumes; the exit status says whether all came out the same."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--runs", type=int, default=30)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  options.workdir.mkdir(parents=True, exist_ok=True)
  config = options.workdir / "smallest.py"
  config.write_text(jobs.CONFIG)
  starter, rng = jobs.starter(config), random.Random(options.seed)
  for name in ("warm", "whole"):  # the first fills the cache of programs
    shutil.rmtree(options.workdir / name, ignore_errors=True)
    begin = time.monotonic()
    assert not any(end(start(starter, options.workdir / name, options.processes)))
    seconds = time.monotonic() - begin
  expected = outcome(options.workdir / "whole")
  print(f"undisturbed: {seconds:.1f} s", flush=True)
  same = 0
  for number in range(options.runs):
    workdir = options.workdir / "killed"
    moment, victim, statuses = killed(starter, workdir, options.processes, seconds, rng)
    done = len(list(workdir.glob("*/done.json")))
    again = end(start(starter, workdir, options.processes))
    is_same = not any(again) and outcome(workdir) == expected
    same += is_same
    lost = "?" if any(again) else json.loads(
      (workdir / "summary.json").read_text())["time"]["lost_seconds"]
    print(f"{number + 1:>3}: process {victim} killed at {moment:5.1f} s ({done} stages done, exit "
          f"{statuses}), lost {lost} s, {'same' if is_same else 'NOT THE SAME'}; {same} of "
          f"{number + 1}", flush=True)
  sys.exit(same != options.runs)


if __name__ == "__main__":
  main()

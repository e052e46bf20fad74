"""Kills the main job at random moments again and again; each run must end as an undisturbed one.

    python benchmarks/kill_and_resume.py --workdir=runs/kills                    # 30 runs, an hour
    python benchmarks/kill_and_resume.py --workdir=runs/kills2 --runs=5 --processes=2

Every run is the smallest job of the tests, killed with SIGKILL at a moment drawn evenly over the
time that an undisturbed run takes (of several processes one of them, drawn too), and given again.
Tables, batch hashes and the digests of all results are compared, bit by bit.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import jobs  # noqa: E402


def start(starter, workdir, processes):
  """The job's processes."""
  if processes == 1:
    return [starter(workdir, JAX_PLATFORMS="cpu")]
  return jobs.together(starter, workdir, processes)


def end(processes):
  """Waits for all; gives their exit statuses."""
  return [jobs.finish(process)[0] for process in processes]


def outcome(workdir):
  """What a run ended with: its table, the hashes of its batches, and its epochs."""
  return {"table": jobs.figures(workdir), "batches": jobs.batches(workdir),
          "epochs": json.loads((workdir / "dareu/epochs.json").read_text())}


def main():
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
    shutil.rmtree(workdir, ignore_errors=True)
    moment, victim = rng.uniform(0, seconds), rng.randrange(options.processes)
    processes = start(starter, workdir, options.processes)
    try:
      processes[victim].wait(timeout=moment)
    except subprocess.TimeoutExpired:
      pass
    processes[victim].send_signal(signal.SIGKILL)
    first = end(processes)
    done = sorted(path.parent.name for path in workdir.glob("*/done.json"))
    again = end(start(starter, workdir, options.processes))
    found = outcome(workdir)
    same += found == expected and not any(again)
    lost = json.loads((workdir / "summary.json").read_text())["time"]["lost_seconds"]
    print(f"{number + 1:>3}: process {victim} killed at {moment:5.1f} s ({len(done)} stages done, "
          f"exit {first}), lost {lost} s, {'same' if found == expected else 'NOT THE SAME'}; "
          f"{same} of {number + 1}", flush=True)
  sys.exit(same != options.runs)


if __name__ == "__main__":
  main()

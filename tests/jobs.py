"""The main job as a process, on the smallest config: started, waited for, killed, looked at."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from dareu_jax.training.writers import read_batches, read_metrics
from tests.configs import ROOT

# Seconds after which a process counts as one that will never end, on the slowest machine.
HANGS = 1200

CONFIG = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.configs import smallest_config

def get_config(arg=None):
  return smallest_config()
'''


def starter(config):
  """start(workdir, *flags, **environment) -> a Popen of the main job on a config file."""
  cache = os.environ.get("DAREU_TEST_CACHE", str(ROOT / ".jax_cache"))
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}

  def start(workdir, *flags, config=config, **more):
    return subprocess.Popen(
      [sys.executable, "-m", "dareu_jax.main", f"--config={config}", f"--workdir={workdir}", *flags],
      cwd=ROOT, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  return start


def together(start, workdir, count, *flags, **more):
  """The same as several processes that make one job: list of Popen, the first process first."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [start(workdir, f"--coordinator=localhost:{port}", f"--num_processes={count}",
                f"--process_id={i}", *flags, JAX_PLATFORMS="cpu", **more) for i in range(count)]


def xla_flags(devices):
  """XLA_FLAGS with so many fake devices: what is set otherwise (an instruction set) stays."""
  return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"


def on_eight_devices(code):
  """What a script prints, as JSON, on eight fake devices."""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
                      "XLA_FLAGS": xla_flags(8)})
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def finish(process):
  """(exit status, stdout, stderr) of a process at its end."""
  try:
    out, err = process.communicate(timeout=HANGS)
  finally:
    process.kill()  # of one that takes too long
  return process.returncode, out, err


def wait_for(sign, workdir, process):
  """Waits until a path is there, while the job is at work."""
  deadline = time.monotonic() + HANGS
  while not (workdir / sign).exists() and process.poll() is None:
    assert time.monotonic() < deadline, f"{sign} never came"
    time.sleep(0.01)


def killed_at(sign, workdir, start):
  """Starts the job and kills it as soon as the path `sign` is there, while it is at work."""
  process = start(workdir)
  wait_for(sign, workdir, process)
  process.send_signal(signal.SIGKILL)
  _, err = process.communicate()
  assert process.returncode == -signal.SIGKILL, f"it ended before {sign} was seen: {err}"


def figures(workdir):
  """The table: {model: {figure: value}}."""
  return json.loads((workdir / "summary.json").read_text())["models"]


def losses(workdir):
  """Training curves: {stage: [loss of each record]}."""
  return {path.stem: [record["loss"] for record in read_metrics(path) if "loss" in record]
          for path in (workdir / "metrics").glob("*.jsonl")}


def batches(workdir):
  """Hashes of all batches, stage by stage."""
  found = {path.stem: read_batches(path) for path in (workdir / "metrics").glob("*.batches")}
  found["dareu"] = [record["batch"] for record in read_metrics(workdir / "metrics/dareu.jsonl")]
  assert {"base", "original", "retrained", "classifier", "judge", "dareu"} == set(found)
  return found

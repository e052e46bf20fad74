"""The main job as a process, on a small config: started, waited for, killed, looked at."""

import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from dareu_jax.training.writers import read_batches, read_metrics
from tests import preloaded
from tests.configs import ROOT

# Seconds after which a process counts as one that will never end, on the slowest machine.
HANGS = 1200

CONFIG = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.configs import finished_config

def get_config(arg=None):
  return finished_config()
'''


ENVIRONMENT = os.environ | {
  "JAX_COMPILATION_CACHE_DIR": os.environ.get("DAREU_TEST_CACHE", str(ROOT / ".jax_cache")),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}


# A process of the library takes many seconds to import it: jobs are forks of one that has.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


class Job:
  """A command in a process of its own, with the methods of a subprocess.Popen."""

  def __init__(self, module, flags, environment):
    self._folder = tempfile.TemporaryDirectory()
    self._files = [pathlib.Path(self._folder.name, name) for name in ("out", "err")]
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads do not survive a fork
    self._process = FORKS.Process(
      target=preloaded.run, args=(module, flags, ENVIRONMENT | environment, self._files))
    self._process.start()

  @property
  def returncode(self):
    return self._process.exitcode

  def poll(self):
    return self._process.exitcode

  def send_signal(self, number):
    os.kill(self._process.pid, number)

  def kill(self):
    self._process.kill()

  def communicate(self, timeout=None):
    self._process.join(timeout)
    assert self._process.exitcode is not None, f"it has not ended after {timeout} seconds"
    return tuple(path.read_text() for path in self._files)


# Jobs of one device share their programs, so that compiling costs them less than running what is
# not optimized.
OPTIMIZED = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(
  "--xla_backend_optimization_level=0", "--xla_backend_optimization_level=1")}


def starter(config):
  """start(workdir, *flags, **environment) -> a Job: the main job on a config file."""

  def start(workdir, *flags, config=config, **more):
    more = OPTIMIZED | more
    return Job("dareu_jax.main", [f"--config={config}", f"--workdir={workdir}", *flags], more)

  return start


def together(start, workdir, count, *flags, **more):
  """The same as several processes that make one job: list of Jobs, the first process first."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [start(workdir, f"--coordinator=localhost:{port}", f"--num_processes={count}",
                f"--process_id={i}", *flags, XLA_FLAGS=xla_flags(1), JAX_PLATFORMS="cpu", **more)
          for i in range(count)]


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


COMMANDS = """
import importlib.util, json, os, runpy, sys, tempfile, traceback, warnings

def run(module, flags):
  sys.argv = [module, *flags]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
  except SystemExit as end:
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1

def forked(module, flags):
  files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]
  child = os.fork()
  if not child:
    for number, file in enumerate(files, 1):
      os.dup2(file.fileno(), number)
    code = run(module, flags)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
  _, status = os.waitpid(child, 0)
  for file in files:
    file.seek(0)
  return os.waitstatus_to_exitcode(status), *(file.read() for file in files)

warnings.filterwarnings("ignore", ".*fork", RuntimeWarning)
commands = json.loads(sys.argv[1])
for module in {module for module, *_ in commands}:
  if importlib.util.find_spec(module).submodule_search_locations:
    module += ".__main__"
  importlib.import_module(module)
  del sys.modules[module]  # as runpy wants it
print(json.dumps([forked(module, flags) for module, *flags in commands]))
"""


def outcomes(commands, cwd=ROOT, **environment):
  """[(exit status, stdout, stderr)] of short commands, each in a process of its own.

  The library is imported once for all of them, which takes longer than most of what they do.

  Args:
    commands: each [module, *flags], as behind `python -m`.
    cwd: folder to run in.
  """
  done = subprocess.run(
    [sys.executable, "-c", COMMANDS, json.dumps([list(map(str, each)) for each in commands])],
    cwd=cwd, capture_output=True, text=True, timeout=900,
    env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"} | environment)  # threads do not survive a fork
  assert done.returncode == 0, done.stderr
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


def without(stages, finished, workdir):
  """A copy of a finished run that some stages are taken out of: the same command runs these alone."""
  shutil.copytree(finished, workdir)
  for stage in stages:
    shutil.rmtree(workdir / stage, ignore_errors=True)
    for path in [*workdir.glob(f"metrics/{stage}.*"), workdir / f"{stage}.json"]:
      path.unlink(missing_ok=True)
  for path in ("summary.json", "time.json"):
    (workdir / path).unlink()
  return workdir


# What is trained, and what its metrics are measured on.
DAREU = ("dareu", "evaluation/dareu")
ORIGINAL = ("original", "evaluation/original")
RETRAINED = ("retrained", "evaluation/retrained")


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

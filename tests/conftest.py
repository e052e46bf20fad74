"""Shared by all tests: quiet libraries, a compilation cache, small models."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import filelock
import jax
import pytest

from tests.shapes import check_from_now_on

FAST_COMPILES = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")


def compile_fast():
  """Compiling takes most of the tests' time: nothing is optimized, unless XLA_FLAGS says otherwise.

  XLA ends a process whose flags it does not know, so another one tries them. Processes that tests
  start inherit them.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if FAST_COMPILES[0].split("=")[0] in given:
    return
  flags = " ".join((given, *FAST_COMPILES)).strip()
  tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True,
                         env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})
  if tried.returncode == 0:
    os.environ["XLA_FLAGS"] = flags


compile_fast()
check_from_now_on()  # before the library is imported

from dareu_jax.core.compilation import drop_compiled_programs  # noqa: E402
from tests import jobs  # noqa: E402

# Programs of earlier runs are used again: compiling takes most of the tests' time.
jax.config.update("jax_compilation_cache_dir", jobs.ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs",
                  float(jobs.ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]))


# They come first, so that no worker is left alone with one at the end.
LONGEST_FILES = ("test_hosts.py", "test_main.py", "test_rehearsal.py", "test_experiment.py",
                 "test_compile_once.py", "test_study.py", "test_robustness.py")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
  """A thousand tests compile more programs than a process may hold."""
  yield
  drop_compiled_programs()


@pytest.fixture(scope="session")
def data_dir():
  """The folder of real data, where there is one."""
  folder = os.environ.get("DAREU_DATA_DIR")
  if not folder or not pathlib.Path(folder).is_dir():
    pytest.skip("real data is not at hand: set DAREU_DATA_DIR to its folder")
  return pathlib.Path(folder)


@pytest.fixture(scope="session")
def golden():
  """Values of the public implementations of losses and metrics."""
  path = pathlib.Path(__file__).parent / "golden" / "losses_metrics.json"
  return json.loads(path.read_text())


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
  """A config file of `finished_config`."""
  path = tmp_path_factory.mktemp("config") / "smallest.py"
  path.write_text(jobs.CONFIG)
  return path


@pytest.fixture(scope="session")
def command(config_file):
  """start(workdir, *flags) -> a Popen of the main job on the smallest config."""
  return jobs.starter(config_file)


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory):
  """A workdir with an undisturbed run, and what it printed; run once, whatever the workers."""
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    shared = shared.parent  # of this run of pytest, and of all its workers
  printed = shared / "whole.txt"
  with filelock.FileLock(shared / "whole.lock"):
    if not printed.exists():
      shutil.rmtree(shared / "whole", ignore_errors=True)  # another worker's that failed
      code, out, err = jobs.finish(command(shared / "whole"))
      assert code == 0, err
      printed.write_text(out)
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  shutil.copytree(shared / "whole", workdir)
  return workdir, printed.read_text()

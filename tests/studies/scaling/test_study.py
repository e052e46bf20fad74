"""The command: tables, advice, page; on fake devices, and on a TPU that is not there."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from studies.scaling import report
from studies.scaling.chips import CHIPS
from studies.scaling.study import GIB, Need, Row, recommended
from tests import jobs
from tests.configs import ROOT

CONFIG = """
import sys
sys.path.insert(0, {root!r})
from tests.studies.scaling.test_programs import small_config

def get_config(arg=None):
  return small_config()
"""


def need(seconds=1.0, peak=4 * GIB, collective=0.0):
  return Need(arguments=GIB, temporaries=GIB, peak=peak, flops=1e12, traffic=1e9,
              collectives={"all-gather": 1e9}, compile_seconds=1.0, compute_seconds=seconds,
              memory_seconds=0.5, collective_seconds=collective, times=2)


def row(mesh=(1, 4, 1), rows=64, **changes):
  return Row("v5e:2x2", mesh, rows, 128, 16 * GIB, {"update": need(**changes)})


def test_the_fastest_mesh_that_fits_is_recommended():
  fast, slow, large = row(seconds=1.0), row((1, 2, 2), seconds=2.0), row((4, 1, 1), seconds=0.1,
                                                                         peak=17 * GIB)
  assert recommended([slow, fast, large]) is fast and not large.fits
  assert recommended([large]) is None
  assert "1x4x1" in report.advice([slow, fast, large])
  assert "No mesh fits" in report.advice([large]) and "17.00 GiB of 16" in report.advice([large])
  more = row((1, 8, 1), rows=256, seconds=2.0)
  assert recommended([fast, more]) is more  # a response is cheaper


def test_the_estimate_adds_collectives_to_the_larger_of_the_two_others():
  assert need(seconds=1.0, collective=0.25).seconds == 1.25
  assert need(seconds=0.1, collective=0.25).seconds == 0.75
  assert row(seconds=1.0).seconds == 2.0  # two runs


def test_what_does_not_fit_is_marked():
  table = report.memory_table([row(), row((4, 1, 1), peak=17 * GIB)])
  lines = table.splitlines()[2:]
  assert lines[0].rstrip(" |").endswith("yes") and lines[1].rstrip(" |").endswith("NO")


def test_a_program_that_the_compiler_refuses_for_memory_is_a_row_that_does_not_fit(tmp_path):
  """It says RESOURCE_EXHAUSTED; the other meshes must be there all the same."""
  rejected = dataclasses.replace(row((1, 1, 4)), needs={}, rejected={"update": "exceeds HBM (15.75G)"})
  assert not rejected.fits and recommended([rejected, row()]).mesh == (1, 4, 1)
  page = report.write(tmp_path, [row(), rejected], [], "the command").read_text()
  assert "too much" in page and "1x4x1" in page
  held = json.loads((tmp_path / "scaling.json").read_text(), parse_constant=pytest.fail)
  assert held["strong"][1]["peak"] is None  # and not Infinity, which is no JSON
  assert "exceeds HBM" in report.advice([rejected])


def test_prediction_stands_beside_measurement(tmp_path):
  seen = dataclasses.replace(row(seconds=1.0), measured={"update": 3.0})
  assert "6.00" in report.time_table([seen, row((1, 2, 2))])
  assert "3.0" in report.program_table([seen]).splitlines()[-1]


def test_the_page_has_plots_of_strong_and_weak_scaling(tmp_path):
  strong = [row((1, n, 1), seconds=4 / n) for n in (1, 2, 4)]
  weak = [row((1, n, 1), rows=64 * n) for n in (1, 2, 4)]
  page = report.write(tmp_path, strong, weak, "the command").read_text()
  assert "strong scaling" in page and "weak scaling" in page and "scaling.png" in page
  assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
  held = json.loads((tmp_path / "scaling.json").read_text())
  assert len(held["strong"]) == len(held["weak"]) == 3 and held["strong"][0]["fits"]


def test_published_figures_are_plausible():
  """A factor of eight between bits and bytes."""
  for chip in CHIPS.values():
    assert 50 < chip.flops / chip.bandwidth < 1000 and 1 < chip.bandwidth / chip.links < 20, chip


def command(folder, *flags):
  config = folder / "small.py"
  config.write_text(CONFIG.format(root=str(ROOT)))
  return ["studies.scaling", f"--config={config}", f"--workdir={folder}/w", *flags]


def run(tmp_path, *flags, **environment):
  return subprocess.run(
    [sys.executable, "-m", *command(tmp_path, *flags)], cwd=ROOT, capture_output=True, text=True,
    timeout=jobs.HANGS, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment)


def test_it_measures_on_the_devices_that_are_there(tmp_path):
  done = run(tmp_path, "--run", "--repeats=1", "--mesh=1,1,1", XLA_FLAGS=jobs.xla_flags(1))
  assert done.returncode == 0, done.stderr[-3000:]
  assert "rollout, s (measured)" in done.stdout and "1x1x1" in done.stdout
  assert "measured over roofline" in (tmp_path / "w/scaling.md").read_text()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install '.[tpu]', as .ci/run does")
def test_it_compiles_for_a_tpu_that_is_not_there(tmp_path):
  done = run(tmp_path, "--topology=v5e:2x2", "--mesh=1,2,2")
  assert done.returncode == 0, done.stderr[-3000:]
  assert "v5e:2x2" in done.stdout and "Recommended: mesh 1x2x2" in done.stdout


MISUSED = [
  ([], ["--topology", "--run"]), (["--run", "--mesh=1,x,2"], ["--mesh=1,x,2", "three numbers"]),
  (["--run", "--mesh=1,1,3"], ["needs 3 devices"]),
  (["--run", "--mesh=1,1,1", "--mesh=1,1,7"], ["needs 7 devices"]),
  (["--topology=v99:4x4"], ["--topology=v99:4x4", "v5e:4x4"])]


@pytest.fixture(scope="module")
def misused(tmp_path_factory):
  """{flags: (exit status, stdout, stderr)}."""
  folder = tmp_path_factory.mktemp("misused")
  ended = jobs.outcomes([command(folder, *flags) for flags, _ in MISUSED], JAX_PLATFORMS="cpu")
  return {str(flags): each for (flags, _), each in zip(MISUSED, ended, strict=True)}


@pytest.mark.parametrize(("flags", "words"), MISUSED, ids=str)
def test_misuse_is_one_clear_error(misused, flags, words):
  code, out, err = misused[str(flags)]
  assert "by the roofline" not in out  # before any work
  assert code == 2 and "Traceback" not in err, err
  for word in words:
    assert word in err

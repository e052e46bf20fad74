"""What stands in launch/: scripts without mistakes, a manifest that is one, a notebook that runs."""

import json
import os
import subprocess
import sys

import nbclient
import nbformat
import pytest
import yaml

from tests import jobs
from tests.configs import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck_and_explain_themselves(script):
  """Each says at its head how it is called, and says it when called without arguments."""
  shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  done = subprocess.run([shellcheck, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  head = script.read_text().split("set -euo pipefail")[0]
  assert f"launch/{script.name} " in head and os.access(script, os.X_OK)
  if script.name != "slurm.sh":  # which a cluster calls
    said = subprocess.run([script], capture_output=True, text=True,
                          env=os.environ | {"PROJECT": "none"})
    assert said.returncode == 2 and f"launch/{script.name} " in said.stdout


def test_flags_in_the_scripts_and_the_manifest_are_flags():
  """A renamed flag would be found on the cluster."""
  known = subprocess.run([sys.executable, "-m", "dareu_jax.main", "--helpfull"], cwd=ROOT,
                         capture_output=True, text=True).stdout
  for flag in ("--[no]distributed", "--workdir", "--config"):
    assert flag in known
  manifest = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  container = job["template"]["spec"]["containers"][0]
  assert job["parallelism"] == job["completions"] == 16 / container["resources"]["limits"]["google.com/tpu"]
  assert "--distributed" in container["args"]
  for arg in container["args"]:
    assert arg.split("=")[0].split(".")[0] in ("--distributed", "--config", "--workdir")


def test_the_container_holds_what_the_job_needs():
  """Built elsewhere; here what it copies must be there."""
  lines = (LAUNCH / "Dockerfile").read_text().splitlines()
  for line in lines:
    if line.startswith("COPY "):
      for name in line.split()[1:-1]:
        assert (ROOT / name).exists(), line
  assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT"))[11:]) == [
    "python", "-m", "dareu_jax.main"]


def test_the_notebook_runs_on_the_tiny_preset(tmp_path, monkeypatch):
  """All cells, as somebody without an accelerator runs them; on a still smaller config."""
  (tmp_path / "smallest.py").write_text(jobs.CONFIG)
  monkeypatch.setenv("DAREU_FLAGS", f"--config={tmp_path}/smallest.py")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get(
    "DAREU_TEST_CACHE", str(ROOT / ".jax_cache")))
  notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
  notebook.cells[1].source = notebook.cells[1].source.replace(
    "'runs/colab'", repr(str(tmp_path / "run")))
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={
    "metadata": {"path": str(LAUNCH)}}).execute()
  outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
  assert any("Stages (times are rough estimates" in text for text in outputs)
  assert any("text/markdown" in text and "dareu" in text for text in outputs)
  assert (tmp_path / "run/report.html").exists()

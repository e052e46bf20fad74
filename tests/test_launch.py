"""What stands in launch/: scripts without mistakes, a manifest that is one, a notebook that runs."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid

import nbclient
import nbformat
import pytest
import yaml

from dareu_jax.data.authors import make_authors
from dareu_jax.data.json_lines import write_jsonl
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings, config_from
from tests import jobs
from tests.configs import ROOT
from tests.test_library import SMALL

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


@pytest.fixture
def pod(tmp_path):
  """call(*words) -> launch/tpu_pod.sh, finished, on a pod that is a folder of this machine.

  Its job notes its flags in `calls`, waits for `go`, and ends with the next number of `statuses`.
  No pod can be created.
  """
  stubs, home = tmp_path / "stubs", tmp_path / "home"
  (home / "environment/bin").mkdir(parents=True)
  (home / "environment/bin/python").symlink_to(sys.executable)
  (home / "dareu_jax/dareu_jax").mkdir(parents=True)
  (home / "dareu_jax/dareu_jax/__init__.py").touch()
  (home / "dareu_jax/dareu_jax/main.py").write_text(f'''
import pathlib, sys, time
home = pathlib.Path({str(home)!r})
with open(home / "calls", "a") as calls:
  print(*sys.argv[1:], file=calls)
for _ in range(1500):
  if (home / "go").exists():
    break
  time.sleep(0.02)
first, *rest = (home / "statuses").read_text().split()
(home / "statuses").write_text(" ".join(rest))
print("the job's last line")
sys.exit(int(first))
''')
  stubs.mkdir()
  for name, text in (
      ("sleep", "exec /bin/sleep 0.3"),
      ("gcloud", f'case "$*" in *describe*) cat {home}/state;; *" create "*) exit 2;; *" ssh "*) '
                 f'cd {home}; for last; do :; done; HOME={home} bash -c "${{last#--command=}}";; esac')):
    (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
    (stubs / name).chmod(0o755)
  environment = os.environ | {
    "PATH": f"{stubs}:{os.environ['PATH']}", "BUCKET": "none", "PROJECT": "none",
    "NAME": f"test-{uuid.uuid4().hex}"}

  def call(*words, statuses="0", state="ACTIVE"):
    (home / "statuses").write_text(statuses)
    (home / "state").write_text(state)
    return subprocess.run([LAUNCH / "tpu_pod.sh", *words], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=jobs.HANGS)

  call.home = home
  return call


def calls(pod):
  return (pod.home / "calls").read_text().splitlines()


def wait_for_file(path):
  deadline = time.monotonic() + jobs.HANGS
  while not path.exists():
    assert time.monotonic() < deadline, f"{path} never came"
    time.sleep(0.05)


def test_a_job_on_a_pod_is_started_once(pod):
  """The shell that starts it has its name in its own command line."""
  assert pod("run", "--config=a b.py:x").returncode == 0
  wait_for_file(pod.home / "calls")
  pod("run", "--config=a b.py:x")
  assert "exit: running" in pod("status").stdout
  (pod.home / "go").touch()
  wait_for_file(pod.home / "dareu.exit")
  (call,) = calls(pod)
  assert call.startswith("--distributed --workdir=/mnt/runs/test-") and call.endswith(" --config=a b.py:x")
  assert pod("status").stdout == "exit: 0\nthe job's last line\n"


def test_a_watched_job_goes_on_after_a_preemption_and_ends_with_it(pod):
  """What another command has left behind says nothing of this one."""
  (pod.home / "dareu.exit").write_text("2\n")
  (pod.home / "go").touch()
  done = pod("watch", "--config=c.py", statuses="143 1 0")
  assert done.returncode == 0 and "exit: 0" in done.stdout
  assert len(calls(pod)) == 3


def test_a_watched_job_that_must_be_mended_ends_the_watch(pod):
  (pod.home / "go").touch()
  done = pod("watch", "--config=c.py", statuses="2")
  assert done.returncode == 2 and "says what to fix" in done.stderr


@pytest.mark.parametrize("flag", [
  "--config.data.forget_owners=('alice',)", "--config=it's $HOME; \"a\" & \\ b.py"])
def test_a_flag_reaches_the_job_on_a_pod_as_it_was_given(pod, flag):
  """Three shells read it on the way."""
  (pod.home / "go").touch()
  assert pod("run", flag, "--overwrite").returncode == 0
  wait_for_file(pod.home / "dareu.exit")
  (call,) = calls(pod)
  assert call.endswith(f" {flag} --overwrite")


def test_a_watch_ends_where_the_job_cannot_be_started(pod):
  """It would ask for the same again and again, at the price of a pod."""
  shutil.rmtree(pod.home / "dareu_jax")
  done = pod("watch", "--config=c.py")
  assert done.returncode == 1 and "did not start" in done.stderr


def test_a_watch_ends_where_gcloud_does_not_take_the_command(pod):
  assert pod("watch", "--config=c.py", state="NONE").returncode == 2


def test_the_report_that_is_fetched_has_its_images(tmp_path):
  """A page whose plots stay behind on a deleted machine; and a run of several seeds has its metrics
  in their folders."""
  home, stubs = tmp_path / "home", tmp_path / "stubs"
  files = ("report.md", "plots/plane.png", "summary.json", "config.json", "seed_42/metrics/npo.jsonl")
  for name in files:
    (home / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (home / "run" / name).write_text(name)
  stubs.mkdir()
  (stubs / "gcloud").write_text(f"""#!/bin/bash
cd {home}
case "$*" in
  *" ssh "*) for last; do :; done; bash -c "${{last#--command=}}" ;;
  *" scp "*) cp "${{5#dareu:}}" "$6" ;;
esac
""")
  (stubs / "gcloud").chmod(0o755)
  done = subprocess.run([LAUNCH / "tpu_vm.sh", "fetch", tmp_path / "out"], cwd=ROOT, text=True,
                        capture_output=True, timeout=jobs.HANGS, env=os.environ | {
                          "PATH": f"{stubs}:{os.environ['PATH']}", "PROJECT": "none"})
  assert done.returncode == 0, done.stderr
  for name in files:
    assert (tmp_path / "out" / name).read_text() == name


def test_flags_in_the_scripts_and_the_manifest_are_flags():
  """A renamed flag would be found on the cluster."""
  known = subprocess.run([sys.executable, "-m", "dareu_jax.main", "--helpfull"], cwd=ROOT,
                         capture_output=True, text=True).stdout
  for flag in ("--[no]distributed", "--workdir", "--config"):
    assert flag in known
  seen = 0
  for path in LAUNCH.iterdir():
    text = path.read_text()
    presets = re.findall(r"--config=(configs/\w+[.]py)(?::(\w+))?", text)
    configs = [config_from(ROOT / file, name or None) for file, name in presets]
    # --config.mesh.tensor=4, and the notebook's 'model.dtype=float32', which it puts together.
    for setting, value in re.findall(r"--config[.]([\w.]+)=([\w.(),]+)", text) + re.findall(
        r"'(\w+(?:[.]\w+)+)=(\w+)'", text):
      seen += 1
      *groups, name = setting.split(".")
      block = configs[-1]
      for group in groups:
        block = block[group]
      kind = type(block[name])
      block[name] = kind(value) if kind in (int, float, str) else ast.literal_eval(value)
      Settings.from_config(configs[-1])
  assert seen >= 12
  manifest = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  container = job["template"]["spec"]["containers"][0]
  assert job["parallelism"] == job["completions"] == 16 / container["resources"]["limits"]["google.com/tpu"]
  assert "--distributed" in container["args"]
  for arg in container["args"]:
    assert arg.split("=")[0].split(".")[0] in ("--distributed", "--config", "--workdir")


def test_layers_are_scanned_and_recomputed_in_float32_on_a_small_gpu():
  """The preset's 'auto' decides both, and a data type in its place turns them off."""
  notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
  assigned = dict(re.findall(r"'([\w.]+)=(\w+)'", notebook.cells[4].source))
  config = config_from(ROOT / "configs/tofu.py", "qwen3_0_6b")
  for name, model in (("model", config.model), ("classifier.model", config.classifier.model)):
    assert model.path and assigned[f"{name}.dtype"] == "float32"
    assert assigned[f"{name}.scan_layers"] == assigned[f"{name}.remat"] == "True"


def test_the_container_holds_what_is_installed_before_it_is_installed():
  """setup.cfg takes packages from other folders too, and pip fails where one is missing."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  folders = dict(line.split(" = ") for line in setup["options"]["package_dir"].split("\n") if line)
  packages = setup["options"]["packages"].split()
  needed = {folders.get(package, package.split(".")[0]) for package in packages}
  before = (LAUNCH / "Dockerfile").read_text().split("RUN pip install")[0]
  copied = {name for line in before.splitlines() if line.startswith("COPY ")
            for name in line.split()[1:-1]}
  assert needed == {"configs", "dareu_jax"} and needed <= copied


def test_the_container_holds_what_the_job_needs():
  """Built elsewhere; here what it copies must be there."""
  lines = (LAUNCH / "Dockerfile").read_text().splitlines()
  for line in lines:
    if line.startswith("COPY "):
      for name in line.split()[1:-1]:
        assert (ROOT / name).exists(), line
  assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT"))[11:]) == [
    "python", "-m", "dareu_jax.main"]


def outputs_of(notebook, folder):
  """Runs all cells in a folder; what they show, as text."""
  nbclient.NotebookClient(notebook, timeout=jobs.HANGS, kernel_name="python3", resources={
    "metadata": {"path": str(folder)}}).execute()
  return [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]


def test_the_notebook_runs_on_the_tiny_preset(finished, config_file, tmp_path, monkeypatch):
  """All cells, as somebody without an accelerator runs them again after a disconnect; on a still
  smaller config, whose stages are done."""
  shutil.copytree(finished[0], tmp_path / "run")
  (tmp_path / "run/report.html").unlink()
  (tmp_path / "run/report.md").unlink()
  monkeypatch.setenv("DAREU_FLAGS", f"--config={config_file}")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get(
    "DAREU_TEST_CACHE", str(ROOT / ".jax_cache")))
  monkeypatch.setenv("XLA_FLAGS", jobs.OPTIMIZED["XLA_FLAGS"])  # as the programs of that run
  notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
  notebook.cells[1].source = notebook.cells[1].source.replace(
    "'runs/colab'", repr(str(tmp_path / "run")))
  outputs = outputs_of(notebook, LAUNCH)
  assert any("Stages (times are rough estimates" in text for text in outputs)
  assert any("text/markdown" in text and "dareu" in text for text in outputs)
  assert (tmp_path / "run/report.html").exists()


def test_the_notebook_of_ones_own_model_runs(finished, tmp_path, monkeypatch):
  """All cells, on a checkpoint from somewhere else and the files of a request."""
  saved, _ = load_saved(finished[0], "original")
  saved.save(tmp_path / "checkpoint")
  authors = make_authors(5, 0, qa_per_author=6)
  for name, part in (("forget", authors[:6]), ("retain", authors[6:24]), ("unseen", authors[24:])):
    write_jsonl(tmp_path / "data" / f"{name}.jsonl", part)
  monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
  notebook = nbformat.read(LAUNCH / "your_model.ipynb", as_version=4)
  settings = {**SMALL, "monitor": {"target_score": 0.0, "min_excess": -1.0, "guards": {"action": "off"}}}
  notebook.cells[1].source = "\n".join([
    f"MODEL = {str(tmp_path / 'checkpoint')!r}", f"DATA = {str(tmp_path / 'data')!r}",
    f"WORKDIR = {str(tmp_path / 'run')!r}", f"OUTPUT = {str(tmp_path / 'out')!r}",
    "DTYPE = None", f"SETTINGS = {settings!r}"])
  outputs = outputs_of(notebook, tmp_path)
  assert any("Result(epoch" in text for text in outputs)
  assert any("text/html" in text and "ToW unseen" in text for text in outputs)
  # In float32 the saved model answers as the one in memory does.
  said, saved = (re.findall(rf"^  {name}: +(.*)", notebook.cells[-1].outputs[0].text, re.MULTILINE)
                 for name in ("unlearned", "saved"))
  assert len(said) == 3 and said == saved
  assert (tmp_path / "out/model.safetensors").exists()

"""The whole job through the command line, small: to the end, killed and given again, and misused."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from dareu_jax.pipeline.workdir import FORMAT
from tests.jobs import (
  CONFIG,
  DAREU,
  OPTIMIZED,
  ORIGINAL,
  RETRAINED,
  batches,
  figures,
  finish,
  killed_at,
  losses,
  outcomes,
  wait_for,
  without,
  xla_flags,
)


def test_the_job_ends_in_a_table_a_report_and_a_summary(finished):
  workdir, out = finished
  for row in ("original", "retrained", "dareu"):
    assert re.search(rf"^{row}\s+\d\.\d+", out, re.M)
    assert {"forget_rouge", "retain_rouge", "test_rouge", "tug_of_war", "truth_ratio",
            "forget_probability", "mia_min_k_auc", "attribution_score", "response_length",
            "judge_score", "fluency_nll"} <= set(figures(workdir)[row])
  assert figures(workdir)["retrained"]["tug_of_war"] == 1.0
  assert "data:image/png" in (workdir / "report.html").read_text()
  for place in (out, (workdir / "report.html").read_text(), (workdir / "report.md").read_text()):
    assert "Epoch" in place and "by the judge it is" in place  # what was decided, and proof
  history = [json.loads(line) for line in (workdir / "metrics/dareu.jsonl").read_text().splitlines()]
  assert [record["step"] for record in history] == list(range(1, len(history) + 1))
  assert {"score", "reward", "kl", "entropy", "clip_fraction", "explained_variance",
          "response_length", "eos_share", "degenerate_share", "distill_loss"} <= set(history[0])


def test_a_run_killed_and_stopped_again_and_again_ends_with_the_same_table(
    finished, command, tmp_path):
  """In each stage that takes long; on CPU the metrics are equal to the last bit.

  A preempted machine has seconds to save what is done since the last checkpoint. After SIGTERM no
  checkpoint is due for a thousand steps: what is there was saved because of the signal, in mid-stage.
  """
  workdir = without((*ORIGINAL, *RETRAINED, "classifier", *DAREU), finished[0], tmp_path / "w")

  def stop(stage):
    process = command(workdir, "--config.checkpoint.every_steps=1000")
    wait_for(f"{stage}/started.json", workdir, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err
    assert "stopped by SIGTERM" in err and "Traceback" not in err
    assert list((workdir / stage / "progress").glob("[0-9]*/meta"))
    assert not (workdir / stage / "done.json").exists()

  stop("original")
  killed_at("retrained/progress/3", workdir, command)
  killed_at("classifier/started.json", workdir, command)
  stop("dareu")
  code, out, err = finish(command(workdir))
  assert code == 0, err
  assert figures(workdir) == figures(finished[0])
  assert batches(workdir) == batches(finished[0])
  spent = json.loads((workdir / "summary.json").read_text())["time"]
  assert spent["processes"] == 5 and 0 < spent["lost_seconds"] and 0 < spent["goodput"] < 1
  assert "in 5 processes" in out and "goodput" in out


def test_eight_devices_are_as_one_and_a_checkpoint_resumes_on_another_mesh(
    finished, command, tmp_path):
  """Arrays restored to one device, a key for the batch in place of one a row, a lost reduction."""
  eight = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(8)}

  def rows(workdir):
    return command(workdir, "--config.mesh.data=8", **eight)

  def cube(workdir):
    return command(workdir, "--config.mesh.data=2", "--config.mesh.tensor=2", **eight)

  def as_one(workdir):
    assert batches(workdir) == batches(finished[0])
    for stage, curve in losses(finished[0]).items():
      np.testing.assert_allclose(losses(workdir)[stage], curve, rtol=1e-4, atol=1e-5, err_msg=stage)
    for model, row in figures(finished[0]).items():
      assert figures(workdir)[model] == pytest.approx(row, rel=1e-5, abs=1e-5), model

  code, out, err = finish(rows(tmp_path / "whole"))
  assert code == 0, err
  as_one(tmp_path / "whole")
  without((*ORIGINAL, "classifier", *DAREU), tmp_path / "whole", tmp_path / "killed")
  for sign, name, start in (("original/progress/3", "on_cube", cube),
                            ("dareu/progress/2", "on_one", command)):
    killed_at(sign, tmp_path / "killed", rows)
    shutil.copytree(tmp_path / "killed", tmp_path / name)
    code, out, err = finish(start(tmp_path / name))
    assert code == 0, err
    as_one(tmp_path / name)
  code, out, err = finish(rows(tmp_path / "killed"))
  assert code == 0, err
  assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


def test_no_figure_depends_on_devices_or_batch_size(finished, command, tmp_path):
  """The same weights, measured by one device in one batch, and by eight in small ones."""
  workdir = tmp_path / "again"
  shutil.copytree(finished[0], workdir)
  code, _, err = finish(command(
    workdir, "--overwrite", "--config.evaluation.batch_size=4", "--config.mesh.data=2",
    "--config.mesh.tensor=2", JAX_PLATFORMS="cpu",
    XLA_FLAGS=xla_flags(8)))
  assert code == 0, err
  stages = json.loads((workdir / "summary.json").read_text())["stages"]
  assert {name for name, stage in stages.items() if not stage["skipped"]} == {
    name for name in stages if name.startswith("evaluation/")}
  for model, row in figures(finished[0]).items():
    assert len(row) > 25
    assert figures(workdir)[model] == pytest.approx(row, rel=1e-6, abs=1e-6), model


BAD_FLAGS = [
  (["--config.unlearning.dareu.segmet_length=3"], ["segmet_length"]),
  (["--config.unlearning.dareu.epochs=many"], ["epochs"]),
  (["--config.unlearning.dareu.segment_length=0"],
   ["config.unlearning.dareu.segment_length is 0", ">= 1"]),
  (["--config.unlearning.dareu.epsilon=0.5"],
   ["config.unlearning.dareu.epsilon is 0.5", "must be < 0.5"]),
  (["--config.data.forget_owners=('nobody',)"], ["nobody"]),
  (["--config.mesh.tensor=64"], ["64", "devices"]),
  (["--config.data.source=tofu", "--config.data.dir=/nowhere"], ["/nowhere"]),
  (["--config.data.source=jsonl"], ["config.data.dir"]),
  (["--config.plugins=('nowhere_at_all',)"], ["config.plugins", "'nowhere_at_all'"]),
  (["stray"], ["stray"]),
]
BAD_CONFIGS = [
  ("configs/nowhere.py", ["configs/nowhere.py", "no such file"]),
  ("configs/tofu.py:llama9", ["no preset 'llama9'", "qwen3_0_6b"]),
  ("{folder}/broken.py", ["invalid syntax"]),
]
FULL_DISK = """
import errno
from dareu_jax.training import checkpoints

def fail(self, *args, **kwargs):
  if "retrained" in str(self.folder):
    raise RuntimeError("saving failed") from OSError(errno.ENOSPC, "No space left on device")
  return save(self, *args, **kwargs)

save, checkpoints.Store.save = checkpoints.Store.save, fail
"""


@pytest.fixture(scope="module")
def outcome(finished, config_file, tmp_path_factory):
  """{what was done: (exit status, stdout, stderr)} and the folder of their workdirs.

  One process imports the library for all of them.
  """
  folder = tmp_path_factory.mktemp("short")
  (folder / "broken.py").write_text("def get_config(:\n")
  (folder / "full.py").write_text(CONFIG + FULL_DISK)
  for name in ("again", "copy", "full", "cut", "old"):
    shutil.copytree(finished[0], folder / name)
  shutil.rmtree(folder / "full/retrained")
  for file in (folder / "cut/original/result/0").rglob("*"):
    if file.is_file():
      os.truncate(file, file.stat().st_size // 2)
  (folder / "cut/evaluation/original.json").unlink()
  held = json.loads((folder / "old/config.json").read_text())
  del held["format"]
  (folder / "old/config.json").write_text(json.dumps(held))

  def main(workdir, *flags, config=config_file):
    return ["dareu_jax.main", f"--config={config}", f"--workdir={folder / workdir}", *flags]

  wanted = {"again": main("again"), "full": main("full", config=folder / "full.py"),
            "cut": main("cut"), "old": main("old"), "old overwritten": main("old", "--overwrite"),
            "other": main("again", "--config.unlearning.dareu.kl_coef=0.3"),
            "overwritten": main("copy", "--config.unlearning.dareu.kl_coef=0.3", "--overwrite"),
            "dry": main("dry", "--dry_run")}
  wanted |= {str(flags): main("misused", *flags) for flags, _ in BAD_FLAGS}
  wanted |= {config: main("misused", config=config.format(folder=folder))
             for config, _ in BAD_CONFIGS}
  return dict(zip(wanted, outcomes(wanted.values(), **OPTIMIZED), strict=True)), folder


def the_one_error(ended):
  """What a command said that ended with one clear error."""
  code, _, err = ended
  assert code == 2, err
  assert len(re.findall("^error:", err, re.M)) == 1 and "Traceback" not in err
  return err[err.index("error:"):]


def test_the_same_command_again_skips_every_stage(finished, outcome):
  ended, folder = outcome
  code, _, err = ended["again"]
  assert code == 0, err
  stages = json.loads((folder / "again/summary.json").read_text())["stages"]
  assert all(stage["skipped"] for stage in stages.values())
  assert figures(folder / "again") == figures(finished[0])


def test_another_configuration_is_refused(outcome):
  error = the_one_error(outcome[0]["other"])
  assert "unlearning.dareu.kl_coef 0.1, now 0.3" in error and "--overwrite" in error


def test_overwrite_redoes_what_another_configuration_changes(outcome):
  ended, folder = outcome
  code, _, err = ended["overwritten"]
  assert code == 0, err
  stages = json.loads((folder / "copy/summary.json").read_text())["stages"]
  assert [name for name, stage in stages.items() if not stage["skipped"]] == \
    ["dareu", "evaluation/dareu"]


@pytest.mark.parametrize("name", ["old", "old overwritten"])
def test_a_workdir_of_an_earlier_version_is_refused(outcome, name):
  """Its stages have other fingerprints: they would all be removed, one after the other."""
  ended, folder = outcome
  assert f"workdir format 1, and this version reads format {FORMAT}" in the_one_error(ended[name])
  assert (folder / "old/original/done.json").exists()


def test_a_checkpoint_cut_in_half_is_one_error_and_the_other_stages_are_kept(outcome):
  ended, folder = outcome
  assert f"Delete {folder / 'cut/original'} to run" in the_one_error(ended["cut"])
  assert (folder / "cut/retrained/done.json").exists()


def test_a_full_disk_is_one_error_and_finished_stages_are_kept(outcome):
  """The error comes wrapped in those of the writer."""
  ended, folder = outcome
  assert the_one_error(ended["full"]).startswith("error: no space left on the disk")
  assert (folder / "full/original/done.json").exists()
  assert not (folder / "full/retrained/done.json").exists()


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS, ids=str)
def test_bad_input_is_one_clear_error_before_any_work(outcome, flags, words):
  ended, folder = outcome
  error = the_one_error(ended[str(flags)])
  for word in words:
    assert word in error
  assert not (folder / "misused/original").exists()


@pytest.mark.parametrize(("config", "words"), BAD_CONFIGS)
def test_a_config_file_that_cannot_be_used_is_one_clear_error(outcome, config, words):
  """ml_collections puts its traceback into the message, and a missing file off until it is read."""
  error = the_one_error(outcome[0][config])
  for word in words:
    assert word in error


def test_a_dry_run_shows_the_plan_and_trains_nothing(outcome):
  ended, folder = outcome
  code, out, err = ended["dry"]
  assert code == 0, err
  for word in ("million parameters in float32; trained", "Methods: dareu at 0.0", "original", "retrained",
               "classifier", "MiB", "prompt:", "mask"):
    assert word in out
  assert "<|assistant|>" in out  # the template is visible
  assert not (folder / "dry").exists()

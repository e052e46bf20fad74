"""The folder of a run: what is done stays done, and nothing else counts as done."""

import errno
import fcntl
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.pipeline.workdir import (
  FORMAT,
  Workdir,
  fingerprint,
  is_finished,
  lock,
  read_config,
)
from dareu_jax.training.checkpoints import CheckpointSettings, read_json, write_json
from tests.configs import ROOT, changed

CONFIG = {"seeds": (42,), "model": {"num_layers": 4, "path": ""}, "unlearning": {"dareu": {"kl_coef": 0.1}},
          "mesh": {"data": 1}, "checkpoint": {"every_steps": 1, "keep": 2}}
STATE = {"w": np.arange(4, dtype=np.float32), "n": np.array(3, np.int32)}
BLANK = {"w": np.zeros(4, np.float32), "n": np.array(0, np.int32)}


def make(folder, **changes):
  """A workdir of CONFIG with other values; `model__num_layers=6` is config.model.num_layers."""
  return Workdir(folder, changed(CONFIG, **changes), CheckpointSettings(every_steps=1, keep=2))


def run_stage(workdir, mark="m"):
  """Runs the stage 'original': True where it did, with what it found of its progress."""
  with workdir.stage("original", mark) as store:
    if store is None:
      return False, None
    restored = store.restore(BLANK)
    store.save(1 + (restored.step if restored else 0), STATE)
    return True, restored and restored.step


def fail_in_stage(workdir, error, mark="m"):
  with pytest.raises(type(error)), workdir.stage("original", mark) as store:
    store.save(5, STATE)
    raise error


def test_a_done_stage_is_skipped_and_recorded_with_its_time(tmp_path):
  """The table of stages must say what was not run, and how long it once took."""
  first = make(tmp_path)
  assert run_stage(first) == (True, None)
  assert first.stages["original"]["skipped"] is False
  second = make(tmp_path)
  assert second.is_done("original", "m") and not second.is_done("original", "other")
  assert run_stage(second) == (False, None)
  assert second.stages["original"] == {
    "seconds": first.stages["original"]["seconds"], "skipped": True}


def test_a_done_stage_leaves_no_progress(tmp_path):
  """Checkpoints with optimizer moments would fill the disk."""
  run_stage(make(tmp_path))
  assert not (tmp_path / "original" / "progress").exists()


def test_a_stage_of_another_fingerprint_is_removed_and_run_again(tmp_path):
  """A result of other settings taken for one's own is the worst of errors."""
  workdir = make(tmp_path)
  run_stage(workdir)
  workdir.save_result("original", STATE)
  (tmp_path / "original" / "relic").write_text("old")
  assert run_stage(make(tmp_path), "other") == (True, None)
  assert not (tmp_path / "original" / "relic").exists()
  assert not (tmp_path / "original" / "result").exists()
  assert make(tmp_path).is_done("original", "other")


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)])
def test_a_stage_that_fails_is_not_done_and_keeps_its_progress(tmp_path, error):
  """Marked in a `finally`, a killed stage would count as done."""
  workdir = make(tmp_path)
  fail_in_stage(workdir, error)
  assert "original" not in workdir.stages
  assert not workdir.is_done("original", "m")
  assert run_stage(make(tmp_path)) == (True, 5)


def test_progress_of_another_fingerprint_is_not_resumed(tmp_path):
  """A killed stage's checkpoint would be taken for that of the new settings."""
  fail_in_stage(make(tmp_path), RuntimeError())
  assert run_stage(make(tmp_path), "other") == (True, None)


def test_a_folder_that_does_not_say_whose_it_is_is_not_resumed(tmp_path):
  """Without its mark, progress may be anybody's."""
  fail_in_stage(make(tmp_path), RuntimeError())
  (tmp_path / "original" / "started.json").unlink()
  assert run_stage(make(tmp_path)) == (True, None)


def test_the_fingerprint_tells_settings_apart():
  """Keys in another order are the same settings; a number and its text are not."""
  assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
  marks = [fingerprint(x) for x in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.5}, {"b": 1}, [1])]
  assert len(set(marks)) == len(marks)
  assert fingerprint("a", "b") != fingerprint("ab")


def test_the_same_configuration_is_accepted_again(tmp_path):
  """A tuple comes back from JSON as a list, which is no change."""
  make(tmp_path).check_config(overwrite=False)
  make(tmp_path).check_config(overwrite=False)
  assert read_json(tmp_path / "config.json")["model"]["num_layers"] == 4


@pytest.mark.parametrize(("key", "value", "named"), [
  ("model__num_layers", 6, "model.num_layers 4, now 6"),
  ("unlearning__dareu__kl_coef", 0.0, "unlearning.dareu.kl_coef 0.1, now 0.0"),
  ("seeds", (42, 43), r"seeds \[42\], now \[42, 43\]")])
def test_another_configuration_is_refused_by_key_and_values(tmp_path, key, value, named):
  """Two runs in one folder mix their results; the message must tell which setting differs."""
  make(tmp_path).check_config(overwrite=False)
  with pytest.raises(InputError, match=named) as caught:
    make(tmp_path, **{key: value}).check_config(overwrite=False)
  assert str(tmp_path) in str(caught.value) and "--overwrite" in str(caught.value)
  # Refused means untouched.
  make(tmp_path).check_config(overwrite=False)


@pytest.mark.parametrize(("config", "named"), [
  ({**CONFIG, "new": 1}, "new None, now 1"),
  ({k: v for k, v in CONFIG.items() if k != "unlearning"}, "unlearning .*now None")])
def test_a_setting_that_came_or_went_is_a_difference(tmp_path, config, named):
  """A folder of an older version of the program holds other keys."""
  make(tmp_path).check_config(overwrite=False)
  with pytest.raises(InputError, match=named):
    Workdir(tmp_path, config, CheckpointSettings(1, 2)).check_config(overwrite=False)


def test_overwrite_takes_the_folder_for_the_new_configuration(tmp_path):
  """From then on the old configuration is the other one."""
  make(tmp_path).check_config(overwrite=False)
  make(tmp_path, model__num_layers=6).check_config(overwrite=True)
  make(tmp_path, model__num_layers=6).check_config(overwrite=False)
  with pytest.raises(InputError, match="model.num_layers 6, now 4"):
    make(tmp_path).check_config(overwrite=False)


def test_a_run_on_other_data_is_refused_too(tmp_path):
  """The configuration holds neither texts nor the weights behind a path."""
  make(tmp_path).check_config(overwrite=False, stages={"tokenizer": "a", "dareu": "b"})
  make(tmp_path).check_config(overwrite=False, stages={"tokenizer": "a", "dareu": "b", "npo": "c"})
  with pytest.raises(InputError, match="on other data, or of another model or reward.*overwrite"):
    make(tmp_path).check_config(overwrite=False, stages={"tokenizer": "x", "dareu": "b"})


def test_what_an_overwritten_run_left_is_not_the_new_ones_result(tmp_path):
  """Killed before it comes to a stage, it would be exported with the old one's model."""
  workdir = make(tmp_path)
  workdir.check_config(overwrite=False, stages={"dareu": "old"})
  with workdir.stage("dareu", "old"):
    pass
  write_json(tmp_path / "summary.json", {"models": {}})
  assert is_finished(tmp_path, "dareu") and not is_finished(tmp_path, "npo")
  make(tmp_path, mesh__data=8).check_config(overwrite=True, stages={"dareu": "old"})
  assert is_finished(tmp_path, "dareu") and (tmp_path / "summary.json").exists()
  workdir.check_config(overwrite=True, stages={"dareu": "new"})
  assert not is_finished(tmp_path, "dareu") and not (tmp_path / "summary.json").exists()


def test_what_changes_no_result_may_differ(tmp_path):
  """A run must resume where other devices are at hand, and a plugin's metric needs no new run."""
  make(tmp_path).check_config(overwrite=False)
  make(tmp_path, mesh__data=8, checkpoint__every_steps=7, plugins=("mine",)).check_config(
    overwrite=False)
  assert read_json(tmp_path / "config.json")["mesh"]["data"] == 8


LOCK = """
import sys
from dareu_jax.pipeline.workdir import lock
with lock(sys.argv[1]):
  print("in", flush=True)
  sys.stdin.read()
"""


def test_two_jobs_in_one_folder_are_kept_apart(tmp_path):
  """They would remove each other's stages; a killed one leaves no lock behind."""
  other = subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)], cwd=ROOT, text=True,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  try:
    assert other.stdout.readline() == "in\n"
    with pytest.raises(InputError, match=f"in use by another job .process {other.pid} on "):
      with lock(tmp_path):
        pass
  finally:
    other.kill()
    other.communicate()
  with lock(tmp_path):
    pass
  with lock(tmp_path):  # and nobody is in the way of the next
    pass


def test_a_lock_whose_holder_has_not_said_its_name_is_one(tmp_path):
  with open(tmp_path / "lock", "w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="in use by another job"):
      with lock(tmp_path):
        pass


def test_without_locks_heartbeats_alone_keep_jobs_apart(tmp_path, monkeypatch):
  """What the last job wrote into the file would keep everybody out for ever."""
  def none(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", none)
  for _ in range(2):
    with lock(tmp_path):
      pass
  monkeypatch.setattr("dareu_jax.pipeline.workdir.active_elsewhere", lambda folder: "another host")
  with pytest.raises(InputError, match="in use by another job .another host"):
    with lock(tmp_path):
      pass


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("held", [None, 1, FORMAT + 1])
def test_a_workdir_of_another_format_is_refused_in_a_line(tmp_path, held, overwrite):
  """Its stages mean something else: with --overwrite too, which would mix them with new ones."""
  make(tmp_path).check_config(overwrite=False)
  path = tmp_path / "config.json"
  config = read_json(path)
  assert config.pop("format") == FORMAT and config.pop("stages") == {}
  assert read_config(tmp_path) == config  # what settings are built from
  write_json(path, config if held is None else config | {"format": held})
  before = path.read_text()
  for refused in (lambda: read_config(tmp_path),
                  lambda: make(tmp_path).check_config(overwrite=overwrite)):
    with pytest.raises(InputError) as caught:
      refused()
    message = str(caught.value)
    assert f"a run of workdir format {held or 1}, and this version reads format {FORMAT}" in message
    assert str(tmp_path) in message and "\n" not in message
  assert path.read_text() == before


def test_a_models_folder_is_no_old_run(tmp_path):
  write_json(tmp_path / "config.json", {"architectures": ["LlamaForCausalLM"]})
  with pytest.raises(InputError, match="holds no run: its config.json is that of something else"):
    make(tmp_path).check_config(overwrite=True)


@pytest.mark.parametrize("below", ["file", "file/run", "file/a/b", "x" * 300])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, below):
  """Found out by a traceback after the first stage, or by none at all."""
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="workdir.*cannot be written"):
    make(tmp_path / below).check_config(overwrite=False)


def test_a_folder_that_may_not_be_entered_is_refused(tmp_path, monkeypatch):
  """As root, permissions do not bite: the system's answer is made up."""

  def forbidden(path, **options):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))

  make(tmp_path).check_config(overwrite=False)
  monkeypatch.setattr(type(tmp_path), "stat", forbidden)
  with pytest.raises(InputError, match="config.json cannot be read: Permission denied"):
    read_config(tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path):
  """Taken for no configuration at all, the folder would be anybody's."""
  make(tmp_path).check_config(overwrite=False)
  path = tmp_path / "config.json"
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(InputError, match="config.json is damaged"):
    make(tmp_path).check_config(overwrite=False)


def test_a_result_comes_back(tmp_path):
  """Later stages stand on it, bit by bit; saved again it is the newer one."""
  workdir = make(tmp_path)
  workdir.save_result("original", BLANK)
  workdir.save_result("original", STATE)
  found = make(tmp_path).load_result("original", BLANK)
  assert {k: (v.dtype, np.asarray(v).tolist()) for k, v in found.items()} == {
    "w": (np.float32, [0.0, 1.0, 2.0, 3.0]), "n": (np.int32, 3)}


@pytest.mark.parametrize("damage", ["never saved", "removed", "emptied"])
def test_a_missing_result_is_refused_with_the_fix(tmp_path, damage):
  """The stage counts as done, so that only its folder's removal helps."""
  workdir, result = make(tmp_path), tmp_path / "original" / "result"
  if damage != "never saved":
    workdir.save_result("original", STATE)
  if damage == "removed":
    shutil.rmtree(result)
  if damage == "emptied":
    for path in result.rglob("*"):
      if path.is_file():
        path.unlink()
  with pytest.raises(InputError) as caught:
    workdir.load_result("original", BLANK)
  # Without the result alone the stage would still count as done.
  assert f"Delete {tmp_path / 'original'} " in str(caught.value)


def test_a_shared_stage_takes_the_place_of_another_ones_even_without_links(tmp_path, monkeypatch):
  """A folder that was overwritten, on a disk that knows no hard links (Drive, exFAT)."""
  def no_link(*paths):
    raise OSError(errno.EPERM, "Operation not permitted")

  monkeypatch.setattr("os.link", no_link)
  theirs, ours = make(tmp_path / "a"), make(tmp_path / "b")
  assert run_stage(theirs, "new") == (True, None) and run_stage(ours, "old") == (True, None)
  ours.reuse_stages(tmp_path / "a", {"original": "new"})
  assert run_stage(ours, "new") == (False, None)
  ours.reuse_stages(tmp_path / "a", {"original": "other"})
  assert run_stage(ours, "new") == (False, None)


def test_a_stages_seconds_are_those_of_all_its_processes(tmp_path, monkeypatch):
  """A stage that was stopped at nine tenths would be told as the fastest of all."""
  now = [0.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  for seconds, mark in ((50.0, "old"), (30.0, "m"), (20.0, "m")):
    with pytest.raises(KeyboardInterrupt), make(tmp_path).stage("original", mark):
      now[0] += seconds
      raise KeyboardInterrupt
  workdir = make(tmp_path)
  with workdir.stage("original", "m"):
    now[0] += 5.0
  assert workdir.stages["original"] == {"seconds": 55.0, "skipped": False}

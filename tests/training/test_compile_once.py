"""Programs are compiled before the first step of a stage, and none after it."""

import re
from unittest import mock

import jax
import pytest

from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.unlearning import make_monitor
from dareu_jax.rl.monitor import MonitorSettings
from dareu_jax.training.writers import MetricWriter
from tests.configs import smallest_config
from tests.jobs import DAREU, finish, without

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
  """Counts programs that are compiled (or taken from the persistent cache) from now on."""
  found = []

  def listen(event, duration, **more):
    if event == COMPILED:
      found.append(more.get("fun_name", "?"))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_after_the_first_step_of_a_stage(compiled, tmp_path, monkeypatch):
  """Batches of three lengths, an epoch's end within the unlearning, starts of many lengths that are
  read with what follows, a method of its own."""
  config = smallest_config()
  config.length_multiple = 16
  config.methods = ("dareu", "npo")
  config.unlearning.dareu.update(
    start_reads="whole", start_cut="jump", start_texts=("answer", "paraphrase", "original"))
  config.baseline.update(epochs=12)
  config.eval_every = 2
  jax.clear_caches()
  seen = {}

  def before(writer, number, batch):
    seen.setdefault(writer.path.stem, []).append(len(compiled))

  def mirror(stage, number, metrics):
    if stage == "dareu":  # whose batches are its own samples
      seen.setdefault(stage, [0]).append(len(compiled))

  monkeypatch.setattr(MetricWriter, "batch", before)
  experiment.run(Settings.from_config(config), tmp_path, command="once", mirror=mirror)
  assert {"base", "original", "retrained", "classifier", "judge", "dareu", "npo"} == set(seen)
  for stage, (_, first, *later) in seen.items():  # the counts before and after a first step
    assert later and later[-1] == first, (stage, compiled[first:])


def test_precompiled_programs_are_not_compiled_again(finished, command, tmp_path):
  """The cache is known by the program: another shape or layout, and it is of no use."""
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
           "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "JAX_PLATFORMS": "cpu"}
  code, out, err = finish(command(tmp_path / "w", "--precompile", **cache))
  assert code == 0, err
  assert str(tmp_path / "cache") in out
  assert not (tmp_path / "w").exists() and list(tmp_path.glob("w*")) == []
  workdir = without(("classifier", *DAREU), finished[0], tmp_path / "w")
  code, _, err = finish(command(workdir, JAX_LOG_COMPILES="1", JAX_DEBUG_LOG_MODULES="jax._src.compiler",
                                JAX_EXPLAIN_CACHE_MISSES="1", **cache))
  assert code == 0, err
  hits = set(re.findall(r"Persistent compilation cache hit for '(\w+)'", err))
  written = set(re.findall(r"Writing (\w+) to persistent compilation cache", err))
  assert {"jit_update", "jit_generate", "jit_score_rollout"} <= hits, err[-2000:]
  assert not written & {"jit_update", "jit_generate", "jit_score_rollout", "jit_prefix_scores"}


@pytest.mark.parametrize("compile_only", [False, True])
def test_precompiling_asks_not_what_a_model_at_hand_has_to_forget(compile_only):
  """A classifier that was not trained attributes nothing, and it would end with an error."""
  run = mock.MagicMock(compile_only=compile_only)
  run.data.corpus.holdout = ()
  run.settings.monitor, run.settings.retrains = MonitorSettings(), False
  assert make_monitor(run).at_hand != compile_only

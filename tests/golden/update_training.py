"""Writes training.json: losses of 100 steps and digests of what they end with, on CPU.

    python -m tests.golden.update_training

To be run where a change of the numbers is meant; the difference says what it did. The losses are
compared closely, the digests to the last bit where processor and versions are the file's own.
"""

import json
import os
import pathlib
import platform
import tempfile

import jax
import numpy as np

from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import finetune_batches, keep_tokenizer
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import flatten
from dareu_jax.training.digests import hex_digest
from tests.configs import smallest_config

PATH = pathlib.Path(__file__).with_name("training.json")
STEPS = 100


def golden():
  """{"losses": [100], "digests": {parameter: hex}, "made_on": {...}}."""
  settings = Settings.from_config(smallest_config())
  with tempfile.TemporaryDirectory() as folder:
    run = experiment.prepare(settings, folder)[0]
    keep_tokenizer(run)
    corpus, model = run.data.corpus, run.models.fresh
    batches = finetune_batches(run, corpus.forget + corpus.retain, run.seed)
    state = supervised.init_train_state(
      jax.tree.map(lambda x: x + 0, model.params), settings.finetune)
    losses = []
    for step in range(STEPS):
      state, metrics = supervised.update(
        state, model.with_params(None), run.models.to_device(batches[step]),
        jax.random.fold_in(jax.random.key(run.seed), step), 1e-3,
        loss_fn=supervised.language_model_loss, weight_decay=settings.finetune.weight_decay,
        clip_norm=settings.finetune.clip_norm, micro_batches=1)
      losses.append(float(metrics["loss"]))
  return {
    "losses": losses,
    "digests": {name: hex_digest(leaf) for name, leaf in flatten(state.params).items()},
    "made_on": made_on()}


def made_on():
  """What the last bits depend on: processor, what is asked of the compiler, and versions."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  facts = [next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")
           for key in ("model name", "cpu family", "model\t", "stepping")]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return {"processor": " ".join([platform.machine(), *facts]), "cores": cores,
          "xla_flags": os.environ.get("XLA_FLAGS", ""), "jax": jax.__version__, "numpy": np.__version__}


if __name__ == "__main__":
  PATH.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
  print(f"wrote {PATH}")

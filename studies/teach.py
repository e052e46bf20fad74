"""Entry: makes a model that somebody could have, the request to unlearn it, and a reference.

    python -m studies.teach --config=configs/tofu.py:smollm2_135m --output=taught \
        --config.model.path=FOLDER --config.data.dir=FOLDER --config.data.num_owners=8 \
        --config.data.forget_owners="('author_199',)" --config.data.num_holdout=2

fine-tunes the checkpoint on all owners and on all but the forget owners, as a run of the config
does, and writes `original` and `retrained`, two checkpoints with merged weights, and `request`, the
folder of data for configs/forget.py, with the first seed of the config. docs/presets.md was
measured on these.
"""

import dataclasses
import pathlib

from absl import flags
from ml_collections import config_flags

from dareu_jax.core.command_line import Flags, enter
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.data.json_lines import write_jsonl
from dareu_jax.export import export
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.experiment import prepare
from dareu_jax.pipeline.graph import ORIGINAL, RETRAINED
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import (
  check_inputs,
  keep_tokenizer,
  pretrain,
  train_language_model,
)
from dareu_jax.pipeline.workdir import lock


def _define_flags():
  config_flags.DEFINE_config_file(
    "config", None, "Config file with a preset: configs/tofu.py:smollm2_135m.", lock_config=True)
  flags.DEFINE_string("output", None, "Folder to write; its run/ holds the checkpoints on the way.")
  flags.DEFINE_list("models", [ORIGINAL, RETRAINED], "Which of the two to make.")


def main(options: Flags) -> None:
  """Trains, exports and writes what the flags say; models that are there already stay."""
  output = pathlib.Path(options.output)
  for name in options.models:
    if name not in (ORIGINAL, RETRAINED):
      raise InputError(f"--models names {name!r}: it takes {ORIGINAL} and {RETRAINED}.")
  settings = Settings.from_config(options.config)
  if not settings.retrains:
    raise InputError(f"config.original.path is {settings.original.path!r}: a model at hand is not "
                     "taught. Name it in config.model.path, and leave this empty.")
  settings = dataclasses.replace(settings, seeds=settings.seeds[:1])
  run = prepare(settings, output / "run")[0]
  corpus = run.data.corpus
  with computing_on(run.models.mesh), lock(output / "run"):
    check_inputs(run)
    run.workdir.check_config(overwrite=False, stages=run.fingerprints)
    write_request(output / "request", run.data)
    keep_tokenizer(run)
    pretrain(run)
    for name, examples in ((ORIGINAL, corpus.forget + corpus.retain), (RETRAINED, corpus.retain)):
      if name in options.models:
        train_language_model(run, name, examples, run.seed)
  run.models.release()
  for name in options.models:
    if not (output / name).exists():
      export(output / "run", name, output / name)


def write_request(folder: pathlib.Path, data: Data) -> None:
  """Writes the data of a run as configs/forget.py reads it: texts whole, and no empty file."""
  source = data.source
  for name, examples in (("forget", source.forget), ("retain", source.retain),
                         ("unseen", source.holdout), ("test", source.test)):
    if examples:
      write_jsonl(folder / f"{name}.jsonl", examples)


if __name__ == "__main__":
  enter(main, _define_flags, required=["config", "output"],
        hint="The same command resumes from the last checkpoint.")

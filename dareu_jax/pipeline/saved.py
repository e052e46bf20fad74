"""Models that finished runs left in their workdirs."""

import pathlib
from typing import Any

from dareu_jax.core.errors import InputError
from dareu_jax.data import tokenizers
from dareu_jax.models.config import AT_HAND
from dareu_jax.models.huggingface import generation_config
from dareu_jax.parallel import mesh as meshes
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline.graph import ORIGINAL, model_names
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.pipeline.models import base_model, model_config
from dareu_jax.pipeline.run import seed_folder
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.workdir import Workdir, is_finished, read_config
from dareu_jax.training.checkpoints import read_json


def load_saved(workdir: str | pathlib.Path, name: str, *,
               seed: int | None = None) -> tuple[LanguageModel, Settings]:
  """A model that a run left, and the settings of the run.

  Args:
    workdir: folder of the run.
    name: 'original', 'retrained' or a method's name; of a method that ran at several learning rates
      the best, unless its name says one: 'npo@0.001'.
    seed: of a run with several; the first if not given.

  Raises:
    InputError: if the folder holds no such model.
  """
  settings, seed = settings_of(workdir, seed)
  if settings.original.path == AT_HAND:
    raise InputError(f"{workdir} is of an original that was passed as an object and that no "
                     "checkpoint holds: save the result's model itself.")
  folder = seed_folder(workdir, seed, settings)
  name = stage_of(workdir, name)
  given = name == ORIGINAL and not settings.retrains
  there = [each for each in sorted(model_names(settings)) if is_finished(folder, each)]
  if not given and name not in there:
    raise InputError(f"{folder} holds no finished model {name!r}. It has: "
                     f"{', '.join(there) or 'none'}.")
  tokenizer = tokenizers.load_with_settings(folder / "tokenizer", settings.tokenizer)
  mesh = meshes.make_mesh(MeshSettings())  # of this machine, not the run's
  config = model_config(settings, tokenizer.vocab_size)
  seed_workdir = Workdir(folder, settings, settings.checkpoint)
  base = base_model(settings, config, seed, mesh, seed_workdir)
  # An original at hand may have come with adapters that no checkpoint holds.
  untouched = given and name not in there
  params = base.params if untouched else seed_workdir.load_result(name, base.params)
  source = settings.base.path if untouched or config.lora.rank else ""
  generation = generation_config(settings.base.path) if settings.base.path else {}
  return LanguageModel(base.with_params(params), config, tokenizer, source, generation), settings


def settings_of(workdir: str | pathlib.Path, seed: int | None = None) -> tuple[Settings, int]:
  """The settings of a run and a seed of it, the first if not given.

  Raises:
    InputError: if the folder holds no run, or the run has no such seed.
  """
  settings = Settings.from_config(read_config(workdir))
  seed = settings.seeds[0] if seed is None else seed
  if seed not in settings.seeds:
    raise InputError(f"seed is {seed}: the run has {', '.join(map(str, settings.seeds))}.")
  return settings, seed


def stage_of(workdir: str | pathlib.Path, name: str) -> str:
  """The stage that left a model: for a method that ran at several learning rates the best's."""
  summary = read_json(pathlib.Path(workdir) / "summary.json") or {}
  return (summary.get("chosen") or {}).get(name, name)


def epochs_of(workdir: str | pathlib.Path, name: str, settings: Settings,
              seed: int) -> dict[str, Any]:
  """What a method's epochs measured, with the `chosen_epoch`; {} where none is finished."""
  folder, stage = seed_folder(workdir, seed, settings), stage_of(workdir, name)
  if not is_finished(folder, stage):
    return {}
  return read_json(folder / stage / "epochs.json") or {}

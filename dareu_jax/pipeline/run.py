"""One seed's run: its settings, data, models, folder, and the graph of its stages."""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus
from dareu_jax.data.refusals import REFUSALS
from dareu_jax.models import checkpoint
from dareu_jax.models.handle import Model
from dareu_jax.pipeline import graph
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.pipeline.models import Models
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.workdir import Workdir, check_format
from dareu_jax.rl.reward_functions import Reward
from dareu_jax.training.checkpoints import shared_json
from dareu_jax.training.digests import hex_digest
from dareu_jax.training.supervised import StageIO
from dareu_jax.training.writers import MetricWriter, progress

Mirror = Callable[[str, int, dict[str, Any]], None]  # called with (stage, step, metrics)


@dataclasses.dataclass(frozen=True)
class Run:
  """What the stages of one seed share."""

  settings: Settings
  seed: int
  data: Data
  models: Models
  workdir: Workdir
  stages: dict[str, graph.Stage]
  mirror: Mirror | None = None
  compile_only: bool = False  # stages compile their programs without training

  @functools.cached_property
  def fingerprints(self) -> dict[str, str]:
    """{stage: fingerprint}."""
    return graph.fingerprints(self.stages)

  @property
  def model_names(self) -> tuple[str, ...]:
    """The models of the run, in the order of the table."""
    return graph.model_names(self.settings)

  def check_done(self, names: Iterable[str]) -> None:
    """Raises InputError unless the stages are done, with today's settings, data and models."""
    for name in names:
      if not self.workdir.is_done(name, self.fingerprints[name]):
        raise InputError(f"{self.workdir.folder} holds no {name} of its settings and of the data "
                         "and models as they are now: run `python -m dareu_jax.main` again first.")

  def stage_io(self, name: str, store: Any, unit: str = "step") -> StageIO:
    """Where a stage saves its checkpoints and metrics."""
    writer = MetricWriter(self.workdir.folder / "metrics", name, self.mirror)
    return StageIO(store, writer, progress(name, unit), self.compile_only)


def make_run(settings: Settings, seed: int, source: Corpus, mesh: Mesh, folder: pathlib.Path, *,
             original: LanguageModel | None = None, reward: Reward | None = None,
             **options: Any) -> Run:
  """The run of a seed in a folder.

  Args:
    settings: settings of the experiment.
    seed: seed of this run.
    source: the corpus as it was loaded.
    mesh: the device mesh.
    folder: folder of results and checkpoints.
    original: the model to unlearn, if the caller gives it.
    reward: callable used in place of the method's own reward, with such an original.
    options: further fields of Run.
  """
  settings = decided(settings, folder)
  workdir = Workdir(folder, settings, settings.checkpoint)
  stages = graph.stages(settings, source, source.refusals or REFUSALS, seed,
                        _digests(settings, original, reward))
  data = Data(settings, source, workdir, graph.fingerprints(stages)["tokenizer"],
              None if original is None else original.tokenizer)
  models = Models(settings, seed, data, mesh, workdir, settings.mesh.gather_gib, original,
                  settings.retrains, settings.retrained.path)
  return Run(settings, seed, data, models, workdir, stages, **options)


def decided(settings: Settings, folder: pathlib.Path) -> Settings:
  """The settings with each 'auto' of a model decided, once for a folder: its results are loaded on
  other machines too.

  Raises:
    InputError: if the folder holds a run of another format.
  """
  stored = shared_json(folder / "config.json")
  if stored is not None:
    check_format(stored, folder)
  if "auto" not in (settings.model.dtype, settings.classifier.model.dtype):
    return settings
  base, classifier = (stored["model"], stored["classifier"]["model"]) if stored else (None, None)
  if stored and stored["original"]["path"] != settings.original.path:
    base = None
  return dataclasses.replace(
    settings, model=settings.model.decided(base), classifier=dataclasses.replace(
      settings.classifier, model=settings.classifier.model.decided(classifier)))


def _digests(settings, original, reward):
  """Digests of what the stages are given and do not make."""
  digests = {}
  if original is not None:
    tokenizer = original.tokenizer
    digests = {graph.ORIGINAL: digest_of(original.model), "tokenizer": graph.fingerprint(
      tokenizer.backend.get_vocab(), tokenizer.chat_template, tokenizer.system)}
  elif settings.original.path:
    digests = {graph.ORIGINAL: checkpoint.digest(settings.original.path),
               "tokenizer": checkpoint.digest(settings.original.path, weights=False)}
  if settings.retrained.path:
    digests[graph.RETRAINED] = checkpoint.digest(settings.retrained.path)
  if reward is not None:
    digests["reward"] = digest_of_function(reward)
  for path in (settings.model.path, settings.tokenizer.path, settings.classifier.model.path):
    if path:
      digests[path] = checkpoint.digest(path)
  return digests


def digest_of(model: Model) -> str:
  """A short digest of all weights, the same on every mesh."""
  return graph.fingerprint(*map(hex_digest, jax.tree.leaves(model)))


def digest_of_function(function: Callable) -> str:
  """A short digest of a callable's name, source and own values: the arguments of a partial, the
  attributes of an object. What a function closes over is not part of it."""
  if isinstance(function, functools.partial):
    return graph.fingerprint(digest_of_function(function.func), function.args, function.keywords)
  if not hasattr(function, "__qualname__"):
    return graph.fingerprint(digest_of_function(type(function)), getattr(function, "__dict__", {}))
  try:
    source = inspect.getsource(function)
  except (OSError, TypeError):  # defined where there is no source
    source = ""
  return graph.fingerprint(function.__module__, function.__qualname__, source)


def seed_folder(workdir: str | pathlib.Path, seed: int, settings: Settings) -> pathlib.Path:
  """The folder of a seed's stages: the workdir itself, or a subfolder per seed."""
  folder = pathlib.Path(workdir)
  return folder if len(settings.seeds) == 1 else folder / f"seed_{seed}"

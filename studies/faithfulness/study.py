"""State shared by the stages of a study: data and models as in a run, and a graph of stages."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dareu_jax.attribution.classifier import owner_probabilities
from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import Row
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.sources.base import load_corpus
from dareu_jax.models.handle import Model
from dareu_jax.parallel import mesh as meshes
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline import graph
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.models import Models, base_model
from dareu_jax.pipeline.workdir import Workdir
from dareu_jax.training.supervised import StageIO
from dareu_jax.training.writers import MetricWriter, progress
from studies.faithfulness.settings import FaithfulnessSettings
from studies.faithfulness.subsets import FULL, RETAINED, Group, all_groups, leave_out_name


class Variant(NamedTuple):
  """One of the classifiers of a study."""

  seed_offset: int  # added to the seed of the first
  has_none: bool  # whether it has the class "none of these", after the owners


# 'judge' has another initialization, data order and noise.
CLASSIFIERS = {"classifier": Variant(0, False), "judge": Variant(1000, False),
               "with none": Variant(2000, True)}


def stage_of(classifier: str) -> str:
  """The stage that trains one of CLASSIFIERS."""
  return classifier.replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Study:
  """Settings, data, models and folder of a study, and the graph of its stages."""

  settings: FaithfulnessSettings
  data: Data  # its corpus is cut to `questions_per_owner`
  models: Models
  workdir: Workdir
  groups: dict[str, Group]
  stages: dict[str, graph.Stage]

  @functools.cached_property
  def fingerprints(self) -> dict[str, str]:
    """{stage: fingerprint}."""
    return graph.fingerprints(self.stages)

  def stage_io(self, name: str, store: Any, unit: str = "step") -> StageIO:
    """Where a stage saves its checkpoints and metrics."""
    writer = MetricWriter(self.workdir.folder / "metrics", name)
    return StageIO(store, writer, progress(name, unit))

  @property
  def owners(self) -> tuple[str, ...]:
    """Names of the owners whose data the models are trained on."""
    return self.data.source.owners

  @functools.cached_property
  def examples(self) -> tuple[Example, ...]:
    """All examples of the full model, grouped by owner."""
    order = {owner: i for i, owner in enumerate(self.owners)}
    corpus = self.data.corpus
    return tuple(sorted(corpus.forget + corpus.retain, key=lambda example: order[example.owner]))

  @functools.cached_property
  def owner_of(self) -> Int[np.ndarray, " N"]:
    """The owner of each example."""
    return np.array([row.owner for row in self.data.rows(self.examples)])

  @functools.cached_property
  def is_forget(self) -> Bool[np.ndarray, " O"]:
    """Which owners are forgotten."""
    return np.isin(self.owners, self.data.source.forget_owners)

  def whole_array(self, *shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    """The template of a saved array on a single device."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(
      self.models.mesh, jax.sharding.PartitionSpec()))

  def fresh_adapters(self, seed: int) -> Any:
    """The initial adapters of trainings with this seed."""
    return base_model(
      self.settings, self.models.config, seed, self.models.mesh, self.workdir).params

  def fresh_classifier(self, name: str) -> Model:
    """An untrained one of CLASSIFIERS."""
    variant = CLASSIFIERS[name]
    return self.models.fresh_classifier(
      self.settings.seed + variant.seed_offset + 1, len(self.owners) + variant.has_none)

  @functools.cached_property
  def classifiers(self) -> dict[str, Model]:
    """The trained CLASSIFIERS."""
    models = {name: self.fresh_classifier(name) for name in CLASSIFIERS}
    return {name: model.with_params(self.workdir.load_result(stage_of(name), model.params))
            for name, model in models.items()}

  def owner_scores(self, name: str, rows: tuple[Row, ...]) -> Float[np.ndarray, "Q O"]:
    """p(owner | completion) of rows by one of CLASSIFIERS.

    They sum to 1 minus the probability of "none of these".
    """
    scores = np.zeros((len(rows), len(self.owners)), np.float32)
    batches = self.data.batches(rows, self.settings.evaluation.batch_size, seed=0)
    for indices, batch in batches.in_order():
      probabilities = np.asarray(owner_probabilities(self.classifiers[name], batch.completion_ids))
      last = batch.completion_lengths[:len(indices)] - 1
      scores[indices] = probabilities[np.arange(len(indices)), last, :len(self.owners)]
    return scores


def stages(settings: FaithfulnessSettings, source: Corpus,
           groups: dict[str, Group]) -> dict[str, graph.Stage]:
  """The graph of a study, with its stages in order."""
  s, Stage = settings, graph.Stage
  result = {
    "tokenizer": Stage((), (dataclasses.asdict(source), s.data.prompt_tokens,
                            s.data.response_tokens, s.data.max_pieces, s.tokenizer, s.max_length)),
    "base": Stage(("tokenizer",), (s.seed, s.model, s.pretrain, s.length_multiple))}
  classifiers = tuple(map(stage_of, CLASSIFIERS))
  for name in classifiers:
    result[name] = Stage(("tokenizer",), (s.seed, s.classifier, s.length_multiple))
  for group in groups.values():
    result[group.stage] = Stage(("base",), (s.lora, s.finetune, group.members, group.seeds))
  full, retained, without = (
    groups[name].stage for name in (FULL, RETAINED, leave_out_name(s.seed)))
  result["queries"] = Stage((full,), (s.seed, s.temperature, s.evaluation))
  for group in groups.values():
    result[f"logprobs/{group.name}"] = Stage((group.stage, "queries"), ())
  result["influence"] = Stage((full, "queries"), (s.influence,))
  result["randomized"] = Stage(("base", "queries"), (s.lora, s.influence))
  result["floor"] = Stage((full, without), (s.seed, s.temperature, s.evaluation))
  judged = (full, retained, *classifiers)
  measured = s.evaluation, s.trajectory.samples_per_prompt
  result["trajectory/references"] = Stage(judged, measured)
  for form in s.trajectory.reward_forms:
    result[f"trajectory/{form}"] = Stage(
      judged, (*measured, s.trajectory.epochs, s.unlearning, form))
  return result


def make_study(settings: FaithfulnessSettings, folder: str | pathlib.Path) -> Study:
  """Checks everything that can be checked before any work.

  Raises:
    InputError: for data or owners that do not match the settings.
  """
  # One device: the models are small and many, not large.
  mesh = meshes.make_mesh(MeshSettings(data=1, fsdp=1, tensor=1))
  source = first_questions(load_corpus(settings.data), settings.questions_per_owner)
  if len(source.owners) < 4:
    raise InputError(f"config.data.num_owners is {len(source.owners)}: a rank correlation without "
                     "the true owner needs 4 owners or more.")
  for name, role in (("general", "text for the base to read"), ("holdout", "unseen owners")):
    if not getattr(source, name):
      raise InputError(f"the data has no {name} examples, and the study needs {role}.")
  groups = all_groups(settings, source)
  workdir = Workdir(folder, settings, settings.checkpoint)
  graph_of_stages = stages(settings, source, groups)
  data = Data(settings, source, workdir, graph.fingerprints(graph_of_stages)["tokenizer"])
  models = Models(settings, settings.seed, data, mesh, workdir, MeshSettings().gather_gib)
  return Study(settings, data, models, workdir, groups, graph_of_stages)


def first_questions(corpus: Corpus, count: int) -> Corpus:
  """The corpus with the first `count` examples of each owner, unseen ones too; 0: all."""

  def cut(examples):
    seen: dict[str, int] = {}
    kept = []
    for example in examples:
      seen[example.owner] = seen.get(example.owner, 0) + 1
      if not count or seen[example.owner] <= count:
        kept.append(example)
    return tuple(kept)

  return dataclasses.replace(corpus, forget=cut(corpus.forget), retain=cut(corpus.retain),
                             holdout=cut(corpus.holdout))

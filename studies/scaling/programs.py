"""The programs of an unlearning rollout, from shapes alone: lowered for any mesh, held by none."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dareu_jax.attribution.classifier import prefix_scores
from dareu_jax.core.settings import at_least
from dareu_jax.data.batches import Batch
from dareu_jax.generation.sampler import Completions, generate
from dareu_jax.models import handle as states
from dareu_jax.models.config import from_settings
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.heads import OwnerClassifier, ValueHead
from dareu_jax.parallel import mesh as meshes
from dareu_jax.pipeline.settings import Settings
from dareu_jax.rl import learner as dareu

NEVER = -1  # an end token that no row samples, so that every one takes all its tokens


@dataclasses.dataclass(frozen=True)
class ScalingSettings:
  """What a study compiles: the settings of a run, and what its data and tokenizers would say."""

  run: Settings
  vocab_size: int
  tie_embeddings: bool  # whether the head is the embedding
  classifier_vocab_size: int
  classifier_tie_embeddings: bool  # where it is not, a classifier has no language-model head
  owners: int
  prompt_tokens: int  # slots of a forget query
  retain_tokens: int  # slots of a retained example, prompt and response
  retain_response_tokens: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.type is int:
        at_least(field.name, getattr(self, field.name), 1)

  @property
  def model_config(self):
    return dataclasses.replace(from_settings(self.run.model, self.run.lora, self.vocab_size),
                               tie_embeddings=self.tie_embeddings,
                               gather_gib=self.run.mesh.gather_gib)

  @property
  def classifier_config(self):
    settings = self.run.classifier
    return dataclasses.replace(
      from_settings(settings.model, settings.lora, self.classifier_vocab_size),
      tie_embeddings=self.classifier_tie_embeddings)

  def scaled(self, factor):
    """The same with batches `factor` times as large, for weak scaling."""
    u = self.run.unlearning
    sizes = {name: max(1, round(getattr(u, name) * factor))
             for name in ("rollout_batch_size", "minibatch_size", "retain_batch_size")}
    evaluation = dataclasses.replace(
      self.run.evaluation, batch_size=max(1, round(self.run.evaluation.batch_size * factor)))
    return dataclasses.replace(self, run=dataclasses.replace(
      self.run, unlearning=dataclasses.replace(u, **sizes), evaluation=evaluation))


class Program(NamedTuple):
  """One jitted program of a rollout.

  Attributes:
    function: as jitted.
    args, static: what it is called with; arrays as ShapeDtypeStructs on the mesh.
    times: how often a rollout runs it.
    trips: iterations of its loop that does not say how often it runs.
  """

  function: Any
  args: tuple
  static: dict
  times: int
  trips: int

  def lower(self, mesh):
    """Lowered under the mesh, as the job would."""
    with jax.set_mesh(mesh):
      return self.function.lower(*self.args, **self.static)


class Job(NamedTuple):
  """All of a rollout on a mesh; `resident` is the tree of what stays on the devices throughout."""

  programs: dict[str, Program]
  resident: Any


def job(study: ScalingSettings, mesh):
  """The Job of a study's settings on a mesh; nothing is allocated."""
  run = study.run
  settings = run.unlearning
  rows, width, time = (settings.rollout_batch_size, study.prompt_tokens,
                       settings.max_new_tokens)
  policy = functools.partial(Decoder, study.model_config)
  frame, trainable, frozen = _split(policy, run.lora, mesh)
  reader = functools.partial(OwnerClassifier, study.classifier_config, study.owners)
  classifier = _split(reader, run.classifier.lora, mesh)
  head = functools.partial(ValueHead, run.model.embed_dim)
  value_frame, value, value_frozen = _split(lambda rngs: head(), None, mesh)
  models = dareu.Models(frame, value_frame)
  state = on_mesh(jax.eval_shape(
    lambda policy, value: dareu.init_learner(policy, value, settings), trainable, value), mesh)

  def rows_of(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.batch_sharding(shape, mesh))

  prompts = rows_of((rows, width)), rows_of((rows,))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=_whole(mesh))
  completions = Completions(
    rows_of((rows, time)), rows_of((rows,)), rows_of((rows,), bool),
    rows_of((rows, time), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32, sharding=_whole(mesh)))
  scored = min(rows, run.evaluation.batch_size)
  learner = {"models": models, "settings": settings}
  score_args = (state, trainable, frozen, value_frozen, rows_of((rows, time), jnp.float32),
                *prompts, completions)
  with jax.set_mesh(mesh):
    rollout, _ = jax.eval_shape(
      functools.partial(dareu.score_rollout.__wrapped__, **learner), *score_args)
  rollout = jax.tree.map(lambda leaf: rows_of(leaf.shape, leaf.dtype), rollout)
  count, length, answer = (settings.retain_batch_size, study.retain_tokens,
                           study.retain_response_tokens)
  retain = Batch(rows_of((count, length)), rows_of((count,)), rows_of((count, answer)),
                 rows_of((count,)), rows_of((count,)))
  chosen = jax.ShapeDtypeStruct((settings.minibatch_size,), jnp.int32, sharding=_whole(mesh))
  updates = settings.inner_epochs * -(-rows // settings.minibatch_size)
  programs = {
    "rollout": Program(
      generate, (frame, trainable, frozen, *prompts, keys),
      dict(strategy=dareu.sampling(settings), max_new_tokens=time, eos_id=NEVER, pad_id=0),
      1, time),
    "reward": Program(
      prefix_scores, (*classifier, rows_of((scored, time)),
                      jax.ShapeDtypeStruct((study.owners,), jnp.float32, sharding=_whole(mesh))),
      {}, -(-rows // scored), 1),
    "scores": Program(dareu.score_rollout, score_args, learner, 1, 1),
    "update": Program(
      dareu.update, (state, trainable, frozen, value_frozen, rollout, chosen, retain, (0.0, 0.0)),
      learner, updates, 1),
  }
  # The teacher is a role of its own; the judge shares the classifier's frozen weights.
  judge = jax.tree.map(lambda leaf: leaf.update(), classifier[1])
  resident = (state, trainable, frozen, value_frozen, classifier[1:], judge)
  return Job(programs, resident)


def _split(make, lora, mesh):
  """(frame, trained shapes, frozen shapes) of a module, the shapes on the mesh."""
  abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=jax.random.key(0))))
  frame, trainable, frozen = states.split(
    abstract, adapters_only=lora is not None and lora.rank > 0)
  return frame, on_mesh(trainable, mesh), on_mesh(frozen, mesh)


def on_mesh(tree, mesh):
  """Shapes with the shardings that the table of parameters gives them."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    tree, meshes.shardings(tree, mesh))


def bytes_on_device(tree):
  """Bytes of a tree of ShapeDtypeStructs (or arrays) on one device of their mesh."""
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
             for leaf in jax.tree.leaves(tree))


def _whole(mesh):
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

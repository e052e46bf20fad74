"""The programs of an unlearning rollout, lowered from shapes for any mesh without allocation."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dareu_jax.attribution.classifier import prefix_scores
from dareu_jax.data.batches import Batch
from dareu_jax.generation.sampler import Completions, generate
from dareu_jax.models.config import LoraSettings
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.handle import Model, split
from dareu_jax.models.heads import OwnerClassifier, ValueHead
from dareu_jax.parallel import mesh as meshes
from dareu_jax.rl import learner
from studies.scaling.settings import ScalingSettings

NEVER = -1  # an end token that is never sampled, so that every row generates all its tokens


class Program(NamedTuple):
  """One jitted program of a rollout.

  Attributes:
    function: the jitted function.
    args, static: its arguments; arrays as ShapeDtypeStructs on the mesh.
    times: how often a rollout runs it.
    trips: iterations of its loop whose trip count is not in the HLO text.
  """

  function: Any
  args: tuple
  static: dict[str, Any]
  times: int
  trips: int

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers it under the mesh, as the job does."""
    with jax.set_mesh(mesh):
      return self.function.lower(*self.args, **self.static)


class Job(NamedTuple):
  """All programs of a rollout on a mesh; `resident`: the arrays that stay on the devices."""

  programs: dict[str, Program]
  resident: Any


def job(study: ScalingSettings, mesh: Mesh) -> Job:
  """The Job of a study's settings on a mesh; nothing is allocated."""
  run, settings = study.run, study.unlearning
  rows, width, time = (settings.rollout_batch_size, study.prompt_tokens,
                       settings.max_new_tokens)
  original = _model(functools.partial(Decoder, study.model_config), run.lora, mesh)
  classifier = _model(functools.partial(OwnerClassifier, study.classifier_config, study.owners),
                      run.classifier.lora, mesh)
  fresh_head = _model(lambda rngs: ValueHead(run.model.embed_dim), None, mesh)
  value_head = fresh_head.with_params(None)
  state = on_mesh(jax.eval_shape(
    lambda policy, value: learner.init_learner(policy, value, settings),
    original.params, fresh_head.params), mesh)

  def rows_of(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.batch_sharding(shape, mesh))

  def whole(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

  prompts = rows_of((rows, width)), rows_of((rows,))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  keys = whole(keys.shape, keys.dtype)
  completions = Completions(
    rows_of((rows, time)), rows_of((rows,)), rows_of((rows,), bool),
    rows_of((rows, time), jnp.float32), whole((), jnp.int32))
  scored = min(rows, run.evaluation.batch_size)
  score_args = (state, original, value_head, rows_of((rows, time), jnp.float32), *prompts,
                completions)
  with jax.set_mesh(mesh):
    rollout, _ = jax.eval_shape(
      functools.partial(inspect.unwrap(learner.score_rollout), settings=settings), *score_args)
  rollout = jax.tree.map(lambda leaf: rows_of(leaf.shape, leaf.dtype), rollout)
  count, length, answer = (settings.retain_batch_size, study.retain_tokens,
                           study.retain_response_tokens)
  retain = Batch(rows_of((count, length)), rows_of((count,)), rows_of((count, answer)),
                 rows_of((count,)), rows_of((count,)))
  minibatch = whole((settings.minibatch_size,), jnp.int32)
  updates = settings.inner_epochs * -(-rows // settings.minibatch_size)
  programs = {
    "rollout": Program(
      generate, (original, *prompts, keys),
      dict(strategy=learner.sampling(settings), max_new_tokens=time, eos_id=NEVER, pad_id=0),
      1, time),
    "reward": Program(
      prefix_scores, (classifier, rows_of((scored, time)), whole((study.owners,), jnp.float32)),
      {}, -(-rows // scored), 1),
    "scores": Program(learner.score_rollout, score_args, {"settings": settings}, 1, 1),
    "update": Program(
      learner.update, (state, original, value_head, rollout, minibatch, retain, (0.0, 0.0)),
      {"settings": settings}, updates, 1),
  }
  # The teacher is a separate role; the judge shares the classifier's frozen weights.
  judge = jax.tree.map(lambda leaf: leaf.update(), classifier.params)
  return Job(programs, (state, original, value_head, classifier, judge))


def _model(make: Callable[..., nnx.Module], lora: LoraSettings | None, mesh: Mesh) -> Model:
  """A module as a Model with shapes on the mesh."""
  abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=jax.random.key(0))))
  model = split(abstract, adapters_only=lora is not None and lora.rank > 0)
  return dataclasses.replace(
    model, params=on_mesh(model.params, mesh), frozen=on_mesh(model.frozen, mesh))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
  """Shapes with the shardings from the table of parameters."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    tree, meshes.shardings(tree, mesh))


def bytes_on_device(tree: Any) -> int:
  """Bytes of a tree of ShapeDtypeStructs (or arrays) on one device of their mesh."""
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
             for leaf in jax.tree.leaves(tree))

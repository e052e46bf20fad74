"""The programs of an unlearning rollout, lowered from shapes for any mesh without allocation.

What they need is what their compiled forms say: `--dry_run` prints it, and studies.scaling compares
meshes by it.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dareu_jax.attribution.classifier import prefix_scores
from dareu_jax.data.batches import Batch
from dareu_jax.evaluation.evaluator import completion_statistics
from dareu_jax.generation.sampler import Completions, generate
from dareu_jax.generation.strategies import Greedy
from dareu_jax.models.handle import Model, split
from dareu_jax.models.heads import ValueHead
from dareu_jax.parallel import mesh as meshes
from dareu_jax.rl import learner
from dareu_jax.rl.settings import RLSettings

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


EVALUATION = ("answers", "likelihoods")  # programs that evaluate a model


class Job(NamedTuple):
  """All programs of a rollout on a mesh; `resident`: the arrays that stay on the devices."""

  programs: dict[str, Program]
  resident: Any


class Sizes(NamedTuple):
  """Sizes that the data gives a job."""

  prompt: int  # slots of a forget query
  retained: int  # slots of a retained example, prompt and response
  retained_response: int  # of these, slots of its response
  recalled: int  # slots of a forget example, prompt and true answer
  recalled_response: int  # of these, slots of its answer
  scored: int  # responses that the classifier reads at a time
  owners: int  # its classes
  members: int  # classifiers that give the reward; the judge has as many
  rollouts: int = 2  # of an epoch; with a single one no KL is computed
  eos_id: int = NEVER


def job(original: Model, classifier: Model, settings: RLSettings, sizes: Sizes, mesh: Mesh) -> Job:
  """The Job of models (of shapes, `abstract`) on a mesh; nothing is allocated."""
  rows, width, time = settings.rollout_batch_size, sizes.prompt, settings.max_new_tokens
  embed_dim = original.module.config.embed_dim
  head = split(nnx.eval_shape(lambda: ValueHead(embed_dim)), adapters_only=False)
  original, classifier, fresh_head = (abstract(each, mesh) for each in (original, classifier, head))
  value_head = fresh_head.with_params(None)
  state = on_mesh(jax.eval_shape(
    lambda policy, value: learner.init_learner(policy, value, settings),
    original.params, fresh_head.params), mesh)

  rows_of, whole = functools.partial(_rows, mesh), functools.partial(_whole, mesh)
  prompts = rows_of((rows, width)), rows_of((rows,))
  asked = rows // settings.group_size
  queries = rows_of((asked, width)), rows_of((asked,))
  keys = _keys(mesh, rows)
  completions = Completions(
    rows_of((rows, time)), rows_of((rows,)), rows_of((rows,), bool),
    rows_of((rows, time), jnp.float32), rows_of((rows, time), jnp.float32), whole((), jnp.int32))
  scored = sizes.scored
  score_args = (state, original, value_head, rows_of((rows, time), jnp.float32), *prompts,
                completions)
  scoring = {"settings": settings.of_programs, "moved": sizes.rollouts > 1}
  with jax.set_mesh(mesh):
    rollout, _ = jax.eval_shape(
      functools.partial(inspect.unwrap(learner.score_rollout), **scoring), *score_args)
  rollout = jax.tree.map(lambda leaf: rows_of(leaf.shape, leaf.dtype), rollout)

  def examples(count, length, answer):
    return Batch(rows_of((count, length)), rows_of((count,)), rows_of((count, answer)),
                 rows_of((count,)), rows_of((count,)))

  retain = examples(settings.retain_batch_size, sizes.retained, sizes.retained_response)
  recall, count, answer = None, settings.recall_batch_size, sizes.recalled_response
  if settings.recall_coef:
    recall = learner.Recall(examples(count, sizes.recalled, answer), whole((), jnp.float32))
  minibatch = whole((settings.minibatch_size,), jnp.int32)
  programs = {
    "rollout": Program(
      generate, (original, *queries, keys),
      dict(strategy=learner.sampling(settings), max_new_tokens=time, eos_id=sizes.eos_id, pad_id=0),
      1, time),
    "reward": Program(
      prefix_scores, (classifier, rows_of((scored, time)), whole((sizes.owners,), jnp.float32)),
      {}, -(-rows // scored) * sizes.members, 1),
    "scores": Program(learner.score_rollout, score_args, scoring, 1, 1),
    "update": Program(
      learner.update,
      (state, original, value_head, rollout, minibatch, retain, recall, (0.0, 0.0)),
      {"settings": settings.of_programs}, settings.updates_per_rollout, 1),
  }
  # The teacher is a separate role; the classifiers share their frozen weights.
  others = [jax.tree.map(lambda leaf: leaf.update(), classifier.params)
            for _ in range(2 * sizes.members - 1)]
  return Job(programs, (state, original, value_head, classifier, others))


def evaluation_programs(model: Model, *, examples: int, prompt: int, answer: int, eos_id: int,
                        mesh: Mesh) -> dict[str, Program]:
  """The programs that evaluate a model, greedy answers and likelihoods, as those of a `Job`.

  Args:
    model: the model, of shapes on the mesh.
    examples: of a batch.
    prompt: slots of the longest query.
    answer: slots of an answer.
    eos_id: the end token.
    mesh: the mesh.
  """
  rows_of = functools.partial(_rows, mesh)
  count = rows_of((examples,))
  batch = Batch(rows_of((examples, prompt + answer)), count, rows_of((examples, answer)), count,
                count)
  answers, likelihoods = EVALUATION
  return {
    answers: Program(
      generate, (model, rows_of((examples, prompt)), count, _keys(mesh, examples)),
      dict(strategy=Greedy(), max_new_tokens=answer, eos_id=eos_id, pad_id=0), 1, answer),
    likelihoods: Program(completion_statistics, (model, batch), {}, 1, 1)}


def _rows(mesh, shape, dtype=jnp.int32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.batch_sharding(shape, mesh))


def _whole(mesh, shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _keys(mesh, rows):
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  return _whole(mesh, keys.shape, keys.dtype)


class Memory(NamedTuple):
  """Bytes of a compiled program on one device."""

  arguments: int
  temporaries: int  # including results that share no buffer with an argument
  peak: int  # including everything else that stays on the device


def memory(program: Program, compiled: jax.stages.Compiled, resident: Any) -> Memory:
  """The Memory of a program of a `Job`, by the compiler's own analysis."""
  analysis = compiled.memory_analysis()
  assert analysis is not None  # as of every backend that is compiled for
  temporaries = analysis.temp_size_in_bytes + max(
    0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
  # Resident arrays that are not arguments add to the peak. The analysis counts arguments except
  # those that the program does not use, which stay on the devices too.
  arguments = {id(leaf) for leaf in jax.tree.leaves(program.args)}
  resident = jax.tree.leaves(resident)
  beside = bytes_on_device([leaf for leaf in resident if id(leaf) not in arguments])
  standing = max(bytes_on_device(resident), beside + analysis.argument_size_in_bytes)
  return Memory(analysis.argument_size_in_bytes, temporaries, standing + temporaries)


def abstract(model: Model, mesh: Mesh) -> Model:
  """A model's shapes on the mesh."""
  return Model(on_mesh(model.params, mesh), on_mesh(model.frozen, mesh), model.static)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
  """Shapes with the shardings from the table of parameters."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    tree, meshes.shardings(tree, mesh))


def bytes_on_device(tree: Any) -> int:
  """Bytes of a tree of ShapeDtypeStructs (or arrays) on one device of their mesh."""
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
             for leaf in jax.tree.leaves(tree))

"""The plan of a run for --dry_run: stages, sizes, memory, time, and two tokenized samples."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dareu_jax.core.matmul import matmul
from dareu_jax.data.batches import bucket_length
from dareu_jax.evaluation.records import ALL_SPLITS, JUDGED, SPLITS
from dareu_jax.methods.base import METHODS, Shapes
from dareu_jax.models import factory
from dareu_jax.models.decoder import abstract_decoder
from dareu_jax.models.handle import bytes_of
from dareu_jax.parallel.mesh import gathered_bytes
from dareu_jax.pipeline.graph import REPLICA, candidates, classifier_seeds
from dareu_jax.pipeline.run import Run
from dareu_jax.pipeline.stages import check_methods, check_texts, finetune_batches, pretrain_batches
from dareu_jax.report.tables import format_seconds, pipe_table
from dareu_jax.rl.programs import (
  EVALUATION,
  Job,
  Sizes,
  abstract,
  bytes_on_device,
  evaluation_programs,
  job,
  memory,
)
from dareu_jax.rl.settings import RLSettings
from dareu_jax.rl.start_paths import longest_prompt
from dareu_jax.training.writers import progress

# Training speed relative to a plain matrix product; a rough figure, measured on CPU and H200.
EFFICIENCY = 0.35


def describe(runs: Sequence[Run]) -> str:
  """The plan of a run for each seed as text: that of the first, and the time of all."""
  run = runs[0]
  # Weights on the hub are not downloaded for a plan.
  run.models.check_reference(weights=_at_hand(run.models.reference))
  check_methods(run)
  check_texts(run)
  settings = run.settings
  if _at_hand(settings.base.path) and _at_hand(settings.classifier.model.path):
    run.models.check_checkpoints()
  return "\n\n".join([_model(run), _data(run), *run.data.remarks, *undivided(run), _stages(runs),
                      _memory(run), *(_sample(run, split) for split in ("forget", "retain"))])


def _at_hand(path):
  return not path or os.path.isdir(path)


def _model(run):
  settings, config = run.settings, run.models.config

  def rate(candidate):
    method = settings.unlearning[candidate.method]
    own = method if hasattr(method, "learning_rate") else settings.baseline
    return candidate.learning_rate or own.learning_rate

  tried = (f"{each.method} at {rate(each):g}" for each in candidates(settings))
  return (f"Model: {settings.base.path or f'{settings.model.architecture} from scratch'}, "
          f"{config.num_parameters / 1e6:,.1f} million parameters in {config.dtype}; trained: "
          f"{config.lora.described}\nMethods: {', '.join(tried)}")


def _data(run):
  corpus, settings = run.data.corpus, run.settings
  rows = run.data.rows(corpus.forget + corpus.retain)
  lengths = [len(row.prompt) + len(row.completion) for row in rows]
  others = run.data.rows(corpus.test + corpus.holdout + corpus.general)
  longest = max([*lengths, *(len(row.prompt) + len(row.completion) for row in others)])
  return "\n".join([
    f"Data: {settings.data.source}, {len(corpus.owners)} owners; to forget: "
    f"{', '.join(corpus.forget_owners)}",
    f"  D_F {len(corpus.forget)}, D_R {len(corpus.retain)}, D_test {len(corpus.test)}, unseen "
    f"{len(corpus.holdout)}, general {len(corpus.general)} examples; {sum(lengths)} tokens in "
    f"D; the longest example of all has {longest}",
    f"Devices: {jax.device_count()} × {jax.devices()[0].device_kind}, mesh "
    f"{dict(run.models.mesh.shape)}"])


def undivided(run: Run) -> Iterator[str]:
  """A sentence for each batch size that is no multiple of the devices that share a batch."""
  settings, shape = run.settings, run.models.mesh.shape
  ways = shape["data"] * shape["fsdp"]
  sizes = {"evaluation.batch_size": settings.evaluation.batch_size,
           "classifier.train.batch_size": settings.classifier.train.batch_size}
  if settings.retrains:
    sizes["finetune.batch_size"] = settings.finetune.batch_size
  if settings.pretrains:
    sizes["pretrain.batch_size"] = settings.pretrain.batch_size
  for name in settings.all_methods:
    method = settings.unlearning[name]
    if isinstance(method, RLSettings):
      sizes |= {f"unlearning.{name}.{size}": getattr(method, size)
                for size in ("rollout_batch_size", "minibatch_size", "retain_batch_size",
                             *(["recall_batch_size"] if method.recall_coef else []))}
    else:
      sizes["baseline.batch_size"] = settings.baseline.batch_size
  for name, size in sizes.items():
    if size % ways:
      yield (f"config.{name} is {size}, no multiple of the {ways} devices that share a batch: each "
             "of them computes the whole batch.")


def _stages(runs):
  first = runs[0]
  speed = matmul_speed(first.models.config.dtype) * EFFICIENCY * first.models.mesh.size
  rows, totals = [], [0.0 for _ in runs]
  for name, (steps, flops) in _work(first).items():
    done = [name in run.fingerprints and run.workdir.is_done(name, run.fingerprints[name])
            for run in runs]
    seconds = flops / speed
    totals = [total + seconds * (not each) for total, each in zip(totals, done, strict=True)]
    rows.append([name, str(steps), f"{flops:.2g}", "done" if done[0] else format_seconds(seconds)])
  rows.append(["all", "", "", format_seconds(totals[0])])
  title = "Stages (times are rough estimates, without compilation)"
  if len(runs) > 1:
    title += (f", of the first of {len(runs)} seeds; what is left of all takes "
              f"{format_seconds(sum(totals))}")
  return f"{title}:\n" + pipe_table(
    ["stage", "updates", "FLOPs", "time"], rows)


def _work(run):
  """Stage -> (updates at most, floating-point operations)."""
  settings, corpus, shapes = run.settings, run.data.corpus, _shapes(run)
  size, cost = shapes.model_parameters, shapes.training_cost
  work = {}
  if settings.pretrains:
    batches, epochs = pretrain_batches(run), settings.pretrain.epochs
    work["base"] = (epochs * batches.steps_per_epoch, 6 * size * epochs * _tokens(batches))
  trained = (("original", corpus.forget + corpus.retain), ("retrained", corpus.retain))
  for name, examples in trained if settings.retrains else ():
    batches = finetune_batches(run, examples, run.seed)
    epochs = settings.finetune.epochs
    work[name] = (epochs * batches.steps_per_epoch, cost * size * epochs * _tokens(batches))
  if settings.retrains and settings.retrained_replica:
    work[REPLICA] = work["retrained"]
  batches = run.data.batches(run.data.rows(corpus.forget + corpus.retain),
                             settings.classifier.train.batch_size, seed=0)
  epochs = settings.classifier.train.epochs
  for name in classifier_seeds(settings):
    work[name] = (epochs * batches.steps_per_epoch,
                  6 * _classifier_parameters(run) * epochs * _tokens(batches))
  for candidate in candidates(settings):
    work[candidate.name] = settings.unlearning[candidate.method].work(shapes)
  work["evaluation"] = (0, _evaluation_flops(run, size))
  return work


def _shapes(run):
  corpus, data, models = run.data.corpus, run.data, run.models
  rows = data.rows(corpus.forget + corpus.retain)
  return Shapes(
    forget=len(corpus.forget),
    longest_prompt=max(len(row.prompt) for row in data.rows(corpus.forget)),
    longest_response=data.longest_response,
    longest=max(len(row.prompt) + len(row.completion) for row in rows),
    model_parameters=models.config.num_parameters,
    classifier_parameters=run.settings.classifier.members * _classifier_parameters(run),
    # Forward 2, backward 4 per parameter and token; with adapters weights need no gradient.
    training_cost=4 if models.config.lora.rank else 6, training=run.settings.baseline)


def _classifier_parameters(run):
  """Of one classifier; it looks its embedding up: no token is multiplied with that."""
  config = run.models.classifier_config
  return config.num_parameters - config.num_embedding_parameters


def _evaluation_flops(run, size):
  """Greedy answers to each split and the likelihoods of given answers, by each model; about unseen
  owners only the original is asked."""
  data = run.data
  longest = run.settings.evaluation.max_new_tokens or data.longest_response

  def tokens(split):
    examples = data.evaluated(split)
    others = [1 + len(e.perturbed_responses) for e in examples
              if split == "forget" and e.paraphrased_response]
    texts = len(examples) * (1 + (split in JUDGED)) + sum(others)
    return sum(len(row.prompt) for row in data.rows(examples)) + texts * longest

  return 2 * size * (len(run.model_names) * sum(map(tokens, SPLITS)) + tokens("holdout"))


def _tokens(batches):
  """Padded tokens of an epoch."""
  return sum(-(-len(b.rows) // batches.batch_size) * batches.batch_size * b.seq_length
             for b in batches.buckets)


def matmul_speed(dtype: str) -> float:
  """Measured FLOPs per second of a plain matrix product on one device."""
  n = 1024 if jax.default_backend() == "cpu" else 8192
  x = jnp.ones((n, n), dtype)
  product = jax.jit(lambda x: matmul(x, x))
  product(x).block_until_ready()
  start = time.perf_counter()
  for _ in range(5):
    x_out = product(x)
  x_out.block_until_ready()
  return 5 * 2 * n**3 / (time.perf_counter() - start)


def _memory(run):
  """Of an RL method, by its compiled programs; a rough estimate for others."""
  for name in run.settings.all_methods:
    method = run.settings.unlearning[name]
    if isinstance(method, RLSettings):
      return _compiled_memory(run, method)
  return _estimated_memory(run)


def _compiled_memory(run, settings):
  mesh, whole = run.models.mesh, unlearning_job(run, settings)
  rows = [["all that stays", "", f"{bytes_on_device(whole.resident) / 2**20:,.0f}"]]
  reference, peak = run.models.reference_config, 0
  compared = 0 if reference is None else bytes_on_device(
    abstract(factory.abstract_model(reference), mesh))
  with progress("compiling for memory", "program")(len(whole.programs), 0) as bar:
    for name, program in whole.programs.items():
      needed = memory(program, program.lower(mesh).compile(), whole.resident)
      # A reference with weights of its own is loaded for the evaluation.
      held = needed.peak + compared * (name in EVALUATION)
      rows.append([name, f"{needed.temporaries / 2**20:,.0f}", f"{held / 2**20:,.0f}"])
      peak = max(peak, held)
      bar.update()
  rows.append(["at most", "", f"{peak / 2**20:,.0f}"])
  return "Memory of a device during unlearning, MiB, by the compiled programs:\n" + pipe_table(
    ["what", "temporary", "with all that stays"], rows)


def unlearning_job(run: Run, settings: RLSettings) -> Job:
  """The programs of an RL method on the run's models and data."""
  data, models, mesh = run.data, run.models, run.models.mesh
  evaluation = run.settings.evaluation
  multiple = run.settings.length_multiple
  retained, forget = data.rows(data.corpus.retain), data.rows(data.corpus.forget)
  asked = data.rows(tuple(each for split in ALL_SPLITS for each in data.evaluated(split)))
  settings = dataclasses.replace(
    settings, max_new_tokens=settings.max_new_tokens or data.longest_response)

  def longest(lengths, multiple=multiple):
    return bucket_length(max(lengths), multiple)

  sizes = Sizes(
    prompt=longest([longest_prompt(settings, forget)]),
    retained=longest(len(row.prompt) + len(row.completion) for row in retained),
    retained_response=longest(len(row.completion) for row in retained),
    recalled=longest(len(row.prompt) + len(row.completion) for row in forget),
    recalled_response=longest(len(row.completion) for row in forget),
    scored=evaluation.batch_size, owners=data.classes,
    members=run.settings.classifier.members,
    rollouts=settings.rollouts_per_epoch(len(forget)), eos_id=data.tokenizer.eos_id)
  whole = job(factory.abstract_model(models.config),
              factory.abstract_classifier(models.classifier_config, data.classes), settings, sizes,
              mesh)
  original = whole.programs["rollout"].args[0]
  return whole._replace(programs=whole.programs | evaluation_programs(
    original, examples=evaluation.batch_size,
    prompt=longest((len(row.prompt) for row in asked), evaluation.length_multiple or multiple),
    answer=evaluation.max_new_tokens or data.longest_response, eos_id=data.tokenizer.eos_id,
    mesh=mesh))


def _estimated_memory(run):
  settings, model, mesh = run.settings, run.models.config, run.models.mesh
  whole = factory.abstract_model(model)
  shared, trained = bytes_of(whole.frozen), bytes_of(whole.params)
  # The start, the teacher; the current, previous and chosen policy; two moments and gradients.
  policy = shared + trained * (5 + 2 + 1)
  footprint, itemsize = _footprint(settings), jnp.dtype(model.dtype).itemsize
  # The current and previous trunk, two moments and the gradients.
  critic = trained * (2 + 2 + 1) if footprint.second_trunk else 0
  kept = 2 if model.remat else 16
  activations = kept * footprint.update * settings.max_length * (
    model.embed_dim * model.num_layers * itemsize)
  cache = 2 * footprint.rollout * settings.max_length * (
    model.num_kv_heads * model.head_dim * model.num_layers * itemsize)
  gathered = gathered_bytes(
    nnx.state(abstract_decoder(model)), mesh, model.gather_gib * 2**30)
  classifier = factory.abstract_classifier(run.models.classifier_config, run.data.classes)
  parts = {"policy, its roles and optimizer": policy, "separate critic": critic,
           "classifiers, of the reward and of the judge": bytes_of(classifier.frozen) + (
             len(classifier_seeds(settings)) * bytes_of(classifier.params)),
           "activations of an update (rough)": activations, "cache of a rollout": cache,
           "weights gathered for decoding": (
             gathered * mesh.shape["fsdp"] * mesh.shape["tensor"])}
  parts["all"] = sum(parts.values())
  rows = [[name, f"{size / 2**20:,.0f}"] for name, size in parts.items()]
  return f"Memory during unlearning, MiB over {mesh.size} device(s):\n" + pipe_table(
    ["what", "MiB"], rows)


def _footprint(settings):
  """What the first method that says so keeps on the devices; DareU's defaults if none does."""
  methods = (*settings.unlearning.values(), METHODS["dareu"]())
  return next(method.footprint for method in methods if method.footprint)


def _sample(run, split):
  """One example with its tokens: the prompt (masked out of the loss) and the response."""
  example = getattr(run.data.corpus, split)[0]
  row, tokenizer = run.data.rows([example])[0], run.data.tokenizer
  pieces = [repr(tokenizer.decode_piece(i)) for i in row.prompt + row.completion]
  mask = ["·"] * len(row.prompt) + ["1"] * len(row.completion)
  lines = [f"{split} example of {example.owner} (mask 1: in the loss; ·: prompt, not in the loss)",
           f"  prompt:   {example.prompt}", f"  response: {example.response}"]
  return "\n".join(lines + [f"  {m} {i:>6} {piece}" for m, i, piece in zip(
    mask, row.prompt + row.completion, pieces, strict=True)])



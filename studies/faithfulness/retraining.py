"""The ground truth: many small trainings, each of some of the owners, all by one recipe.

Every model of the study is a fine-tuning of the adapters over one base. Each takes the same number
of epochs *and* of updates: a model that lacks owners has smaller batches, so that it sees each of
its examples as often, under the same learning rates, as the full model does; and its examples come
in the full model's order, the absent ones left out. Two trainings of one seed start from the same
adapters. What differs is the data alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.core.errors import InputError
from dareu_jax.data.batches import collate
from dareu_jax.pipeline.workdir import fingerprint
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import Schedule
from dareu_jax.training.writers import progress
from studies.faithfulness.world import Study


@dataclasses.dataclass(frozen=True)
class Group:
  """Trainings that are kept together: [(which owners, seed)]."""

  name: str
  members: tuple[tuple[bool, ...], ...]
  seeds: tuple[int, ...]

  def __len__(self):
    return len(self.seeds)


def all_groups(study: Study):
  """{name: Group}: full, retained (without the forget owners), leave-owner-out, and halves."""
  settings, owners = study.settings, len(study.owners)
  seeds = [settings.seed + r for r in range(settings.retraining.seeds)]
  everyone = (True,) * owners
  retained = tuple((~study.is_forget).tolist())
  groups = [Group("full", (everyone,) * len(seeds), tuple(seeds)),
            Group("retained", (retained,) * settings.retraining.retained_seeds,
                  tuple(settings.seed + r for r in range(settings.retraining.retained_seeds)))]
  without = [tuple(i != o for i in range(owners)) for o in range(owners)]
  for seed in seeds:
    groups.append(Group(f"without_seed{seed}", tuple(without), (seed,) * owners))
  # A subset's trainings stay together, whatever the group size.
  halves = random_halves(owners, settings.retraining.num_subsets, settings.seed)
  several = settings.retraining.subset_seeds
  step = max(1, settings.retraining.group_size // several)
  for start in range(0, len(halves), step):
    part = halves[start:start + step]
    groups.append(Group(
      f"halves_{start:03d}", tuple(tuple(h.tolist()) for h in part for _ in range(several)),
      tuple(settings.seed + r for _ in part for r in range(several))))
  return {group.name: group for group in groups}


def random_halves(owners, count, seed):
  """Distinct random halves of the owners, every one of ⌊O/2⌋: [M, O] bool."""
  rng = np.random.default_rng((seed, 3))
  halves = {}
  for _ in range(100 * count):
    chosen = tuple(sorted(rng.permutation(owners)[:owners // 2].tolist()))
    halves.setdefault(chosen)
    if len(halves) == count:
      break
  if len(halves) < count:
    raise InputError(f"config.retraining.num_subsets is {count}: {owners} owners do not have that "
                     "many different halves.")
  return np.array([[o in half for o in range(owners)] for half in halves])


def retrain(study: Study, groups):
  """Trains the models of the groups that are not there yet."""
  marks = {name: model_mark(study, group) for name, group in groups.items()}
  done = sum(len(group) for name, group in groups.items()
             if study.workdir.is_done(f"models/{name}", marks[name]))
  total = sum(map(len, groups.values()))
  if done == total:
    return
  trainer = Trainer.of(study)
  with progress("retraining", "model")(total, done) as bar:
    for name, group in groups.items():
      stage = f"models/{name}"
      with study.workdir.stage(stage, marks[name]) as store:
        if store is None:
          continue
        trained, losses = [], []
        for members, seed in zip(group.members, group.seeds, strict=True):
          params, loss = trainer.train(np.array(members), seed)
          trained.append(params)
          losses.append(loss)
          bar.set_postfix({"loss": f"{loss:.3f}", "group": name}, refresh=False)
          bar.update()
        study.workdir.save_result(stage, {
          "adapters": jax.tree.map(lambda *x: jnp.stack(x), *trained),
          "losses": jnp.array(losses, jnp.float32)})


def model_mark(study: Study, group):
  return fingerprint(study.marks["models"], group.members, group.seeds)


def load_models(study: Study, group):
  """(adapters of a group, stacked along a first axis; last training losses)."""
  count = len(group)
  template = {"adapters": jax.tree.map(
    lambda x: study.whole_array(count, *x.shape, dtype=x.dtype), study.base.trainable),
    "losses": study.whole_array(count)}
  held = study.workdir.load_result(f"models/{group.name}", template)
  return held["adapters"], np.asarray(held["losses"])


def one_model(adapters, index):
  """One training's adapters out of a group's."""
  return jax.tree.map(lambda x: x[index], adapters)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Trains adapters on any subset of the owners; one program for each batch size."""

  study: Study
  data: object  # data.batches.Batch of all examples and, last, an empty row
  starts: dict  # seed -> adapters to start from

  @classmethod
  def of(cls, study: Study):
    rows = study.rows(study.examples)
    batches = study.batches(rows, len(rows), one_bucket=True)
    bucket = batches.buckets[0]
    data = collate(rows, len(rows) + 1, seq_length=bucket.seq_length,
                   completion_length=bucket.completion_length, pad_id=study.tokenizer.pad_id)
    return cls(study, data, {})

  def train(self, members, seed):
    """members [O] bool -> (adapters, mean loss of the last epoch in nats a token)."""
    study, settings = self.study, self.study.settings.finetune
    if seed not in self.starts:
      self.starts[seed] = study.with_adapters(seed).trainable
    # A copy, since training donates its state.
    start = jax.tree.map(lambda x: x + 0, self.starts[seed])
    plan = batch_plan(study.owner_of, members, settings.batch_size, settings.epochs, seed)
    schedule = Schedule(settings, len(plan) // settings.epochs)
    state = supervised.init_train_state(start, settings)
    key, losses = jax.random.key(seed), []
    for step, rows in enumerate(plan):
      batch = jax.tree.map(lambda x, rows=rows: x[rows], self.data)
      state, metrics = supervised.update(
        state, study.base.frozen, batch, key, schedule.rate(step), frame=study.base.frame,
        loss_fn=supervised.language_model_loss, weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm, micro_batches=1)
      losses.append(metrics["loss"])
    return state.params, float(np.mean(losses[-schedule.steps_per_epoch:]))


def batch_plan(owner_of, members, batch_size, epochs, seed):
  """Which rows are in each batch of a training.

  Args:
    owner_of: [N] int; the owner of each row.
    members: [O] bool; the owners that are learnt.
    batch_size: of the full model; the others' are smaller in proportion.
    epochs: int.
    seed: of the order.

  Returns: [steps, B] int; N where a batch has a place too many. Every row of the members comes once
    an epoch, in the order that all rows would come in.
  """
  count = len(owner_of)
  steps = -(-count // batch_size)
  present = np.asarray(members)[owner_of]
  width = -(-int(present.sum()) // steps)
  plan = []
  for epoch in range(epochs):
    order = np.random.default_rng((seed, 4, epoch)).permutation(count)
    for part in np.array_split(order[present[order]], steps):
      plan.append(np.pad(part, (0, width - len(part)), constant_values=count))
  return np.array(plan)


def logprobs(study: Study, groups, rows, rows_mark):
  """Mean log-prob per token of each row's completion under every model, kept in the workdir.

  Returns: {group name: [models, Q] float64}.
  """
  result = {}
  work = {name: fingerprint(model_mark(study, group), rows_mark) for name, group in groups.items()}
  done = sum(len(groups[name]) for name, mark in work.items()
             if study.workdir.is_done(f"logprobs/{name}", mark))
  total = sum(map(len, groups.values()))
  with progress("likelihoods", "model")(total, done) as bar:
    for name, group in groups.items():
      stage = f"logprobs/{name}"
      with study.workdir.stage(stage, work[name]) as store:
        if store is not None:
          adapters, _ = load_models(study, group)
          values = np.zeros((len(group), len(rows)), np.float32)
          for i in range(len(group)):
            per_token = study.evaluator.logprobs(one_model(adapters, i), rows)
            values[i] = [row.mean(dtype=np.float64) for row in per_token]
            bar.update()
          study.workdir.save_result(stage, {"logprobs": jnp.array(values)})
      held = study.workdir.load_result(
        stage, {"logprobs": study.whole_array(len(group), len(rows))})
      result[name] = np.asarray(held["logprobs"], np.float64)
  return result

"""The ground truth: many small trainings on subsets of the owners, all with one recipe.

Every model of the study fine-tunes adapters over one base, for the same number of epochs *and* of
updates. A model that lacks owners has smaller batches, so that it sees each of its examples as
often and at the same learning rates as the full model. Its examples come in the full model's order,
without the absent ones. Two trainings with one seed start from the same adapters and differ only in
the data.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dareu_jax.data.batches import Batch, Row, collate
from dareu_jax.training import supervised
from dareu_jax.training.optimizers import Schedule
from dareu_jax.training.writers import progress
from studies.faithfulness.study import Study
from studies.faithfulness.subsets import Group


def retrain(study: Study, groups: Iterable[Group]) -> None:
  """Trains the models of the groups that are not done yet."""
  groups = tuple(groups)
  done = sum(len(group) for group in groups
             if study.workdir.is_done(group.stage, study.fingerprints[group.stage]))
  total = sum(map(len, groups))
  if done == total:
    return
  trainer = Trainer.of(study)
  with progress("retraining", "model")(total, done) as bar:
    for group in groups:
      with study.workdir.stage(group.stage, study.fingerprints[group.stage]) as store:
        if store is None:
          continue
        adapters, losses = [], []
        for members, seed in zip(group.members, group.seeds, strict=True):
          params, loss = trainer.train(np.array(members), seed)
          adapters.append(params)
          losses.append(loss)
          bar.set_postfix({"loss": f"{loss:.3f}", "group": group.name}, refresh=False)
          bar.update()
        study.workdir.save_result(group.stage, {
          "adapters": jax.tree.map(lambda *x: jnp.stack(x), *adapters),
          "losses": jnp.array(losses, jnp.float32)})


def load_models(study: Study, group: Group) -> tuple[Any, Float[np.ndarray, " R"]]:
  """(adapters of a group, stacked along a first axis; last training losses)."""
  count = len(group)
  template = {"adapters": jax.tree.map(
    lambda x: study.whole_array(count, *x.shape, dtype=x.dtype), study.models.base.params),
    "losses": study.whole_array(count)}
  result = study.workdir.load_result(group.stage, template)
  return result["adapters"], np.asarray(result["losses"])


def load_model(study: Study, group: Group, index: int = 0) -> Any:
  """The adapters of one training of a group."""
  return one_model(load_models(study, group)[0], index)


def one_model(adapters: Any, index: int) -> Any:
  """The adapters of one training from those of a group."""
  return jax.tree.map(lambda x: x[index], adapters)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Trains adapters on any subset of the owners; one program for each batch size."""

  study: Study
  data: Batch  # of all examples and, last, an empty row
  starts: dict[int, Any]  # seed -> adapters to start from

  @classmethod
  def of(cls, study: Study) -> "Trainer":
    """A trainer on the examples of a study."""
    rows = study.data.rows(study.examples)
    bucket, = study.data.batches(rows, len(rows), seed=0, one_bucket=True).buckets
    data = collate(rows, len(rows) + 1, seq_length=bucket.seq_length,
                   completion_length=bucket.completion_length, pad_id=study.data.tokenizer.pad_id)
    return cls(study, data, {})

  def train(self, members: Bool[np.ndarray, " O"], seed: int) -> tuple[Any, float]:
    """Trains on the members' examples: (adapters, mean loss of the last epoch in nats a token)."""
    study, settings = self.study, self.study.settings.finetune
    if seed not in self.starts:
      self.starts[seed] = study.fresh_adapters(seed)
    # A copy, since training donates its state.
    start = jax.tree.map(lambda x: x + 0, self.starts[seed])
    plan = batch_plan(study.owner_of, members, settings.batch_size, settings.epochs, seed)
    schedule = Schedule(settings, len(plan) // settings.epochs)
    state = supervised.init_train_state(start, settings)
    fixed, key, losses = study.models.base.with_params(None), jax.random.key(seed), []
    for step, rows in enumerate(plan):
      batch = jax.tree.map(lambda x, rows=rows: x[rows], self.data)
      state, metrics = supervised.update(
        state, fixed, batch, key, schedule.rate(step), loss_fn=supervised.language_model_loss,
        weight_decay=settings.weight_decay, clip_norm=settings.clip_norm, micro_batches=1)
      losses.append(metrics["loss"])
    return state.params, float(np.mean(losses[-schedule.steps_per_epoch:]))


def batch_plan(owner_of: Int[np.ndarray, " N"], members: Bool[np.ndarray, " O"], batch_size: int,
               epochs: int, seed: int) -> Int[np.ndarray, "steps B"]:
  """Which rows are in each batch of a training.

  Args:
    owner_of: the owner of each row.
    members: the owners to train on.
    batch_size: batch size of the full model; those of other models are proportionally smaller.
    epochs: passes over the rows.
    seed: seed of the order.

  Returns: row numbers; N for an empty place in a batch. Every row of the members occurs once per
    epoch, in the order of the full model.
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


def logprobs(study: Study, groups: Iterable[Group],
             rows: Sequence[Row]) -> dict[str, Float[np.ndarray, "models Q"]]:
  """Mean log-prob per token of each row's completion under every model, saved in the workdir.

  Args:
    study: Study.
    groups: groups of models to evaluate.
    rows: rows of all queries.

  Returns: {group name: log-probs}, float64.
  """
  groups, result = tuple(groups), {}
  stages = {group.name: f"logprobs/{group.name}" for group in groups}
  done = sum(len(group) for group in groups if study.workdir.is_done(
    stages[group.name], study.fingerprints[stages[group.name]]))
  with progress("likelihoods", "model")(sum(map(len, groups)), done) as bar:
    for group in groups:
      stage = stages[group.name]
      with study.workdir.stage(stage, study.fingerprints[stage]) as store:
        if store is not None:
          adapters, _ = load_models(study, group)
          values = np.zeros((len(group), len(rows)), np.float32)
          for i in range(len(group)):
            per_token = study.models.evaluator.logprobs(one_model(adapters, i), rows)
            values[i] = [row.mean(dtype=np.float64) for row in per_token]
            bar.update()
          study.workdir.save_result(stage, {"logprobs": jnp.array(values)})
      saved = study.workdir.load_result(
        stage, {"logprobs": study.whole_array(len(group), len(rows))})
      result[group.name] = np.asarray(saved["logprobs"], np.float64)
  return result

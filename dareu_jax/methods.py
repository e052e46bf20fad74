"""The unlearning stage of a run: a method's models and data, its learner, what it leaves."""

import dataclasses
import functools

from dareu_jax.evaluation import metrics, records
from dareu_jax.evaluation.figures import SPLITS
from dareu_jax.generation.strategies import Sample
from dareu_jax.measures import sampled
from dareu_jax.models import factory
from dareu_jax.run import DAREU, REFUSING, Candidate, Run, evaluated_examples
from dareu_jax.training.checkpoints import write_json
from dareu_jax.training.writers import progress
from dareu_jax.unlearning import dareu, loop, loss_based, rewards
from dareu_jax.unlearning.monitor import Monitor, epoch_records

ALTERNATES_SEED = 4  # of the samples that alternates are chosen from, apart from the run's own


def unlearn(run: Run, candidate: Candidate):
  """A method on the original model."""
  name = candidate.name
  with run.workdir.stage(name, run.marks[name]) as store:
    if store is None:
      return
    writer = run.writer(name)
    if candidate.method == DAREU:
      result = loop.run(dareu_task(run, candidate), store=store, writer=writer,
                        bar=progress(name, "rollout"), compile_only=run.compile_only)
      policy, reports, chosen = result.policy, result.reports, result.chosen_epoch
    else:
      policy, reports = loss_based.run(objective_task(run, candidate), store=store, writer=writer,
                                       bar=progress(name), compile_only=run.compile_only)
      chosen = reports[-1].epoch
    writer.close()
    run.workdir.save_result(name, policy)
    write_json(run.workdir.folder / name / "epochs.json", {
      "epochs": epoch_records(reports, run.settings.unlearning.guards), "chosen_epoch": chosen})


def monitor(run: Run):
  """What the epochs of a method are judged by."""
  settings, corpus = run.settings.unlearning, run.corpus
  return Monitor(
    original=run.role("original"), classifier=run.scorer("classifier"), judge=run.scorer("judge"),
    forget_rows=run.rows(corpus.forget), forget_queries=run.queries(corpus.forget),
    unseen_rows=run.rows(corpus.holdout), unseen_queries=run.queries(corpus.holdout),
    evaluator=run.evaluator, target_score=settings.target_score,
    watch=functools.partial(rouges, run) if settings.watch_rouge else None)


def rouges(run: Run, policy):
  """ROUGE of a trainable state's greedy answers to each split: {"<split>_rouge": mean}."""
  figures = {}
  for split in SPLITS:
    examples = evaluated_examples(run, split)
    if examples:
      texts = run.evaluator.answers(policy, run.rows(examples)).texts
      figures[f"{split}_rouge"] = records.mean_rouge(examples, texts)
  return figures


def dareu_task(run: Run, candidate: Candidate):
  """Models and data of the reinforcement learning run."""
  settings = run.settings.unlearning
  settings = dataclasses.replace(
    settings, max_new_tokens=settings.max_new_tokens or run.longest_response,
    learning_rate=candidate.learning_rate or settings.learning_rate)
  if settings.reward != "attribution":  # is a score of whole responses
    settings = dataclasses.replace(settings, segment_length=settings.max_new_tokens)
  value = factory.build_value_head(run.config, run.mesh)
  corpus = run.corpus
  return loop.Task(
    models=dareu.Models(run.base.frame, value.frame), original=run.role("original"),
    frozen=run.base.frozen, value=value.trainable, value_frozen=value.frozen,
    reward=_reward(run, settings.reward), forget_rows=run.rows(corpus.forget),
    # The PPO update is the costliest program to compile: it has one shape alone.
    retain=run.batches(corpus.retain, settings.retain_batch_size, seed=run.seed + 2,
                       one_bucket=True),
    evaluator=run.evaluator, settings=settings, seed=run.seed, monitor=monitor(run))


def _reward(run, name):
  forget = run.corpus.forget
  if name == "rouge":
    return rewards.Rouge(tuple(example.response for example in forget))
  if name == "refusal":
    return rewards.Refusal(run.refusals)
  return rewards.Attribution(run.scorer("classifier"), run.queries(forget))


def objective_task(run: Run, candidate: Candidate):
  """Models and data of a loss-based run."""
  settings, corpus, method = run.settings, run.corpus, candidate.method
  training = dataclasses.replace(
    settings.baseline, learning_rate=candidate.learning_rate or settings.baseline.learning_rate)
  objective = getattr(settings.objectives, method)
  others = ()
  if method in REFUSING:
    others = refusals(run)
  elif method == "altpo":
    others = alternates(run, objective)
  forget, retain = (run.batches(examples, training.batch_size, seed=run.seed + offset,
                                one_bucket=True)
                    for examples, offset in ((corpus.forget, 3), (corpus.retain, 2)))
  return loss_based.Task(
    method=method, objective=objective, training=training, frame=run.base.frame,
    original=run.role("original"), frozen=run.base.frozen, forget=forget, retain=retain,
    others=others, monitor=monitor(run), watch_every=settings.watch_every, seed=run.seed,
    put=run.put)


def refusals(run: Run):
  """For each forget query every refusal as a Row."""
  texts = [tuple(run.tokenizer.encode_response(text)) for text in run.refusals]
  return tuple(tuple(row._replace(completion=ids) for ids in texts)
               for row in run.rows(run.corpus.forget))


def alternates(run: Run, settings):
  """For each forget query the original's own samples that are least like the truth, as Rows.

  Args:
    settings: objective_settings.AltPo.
  """
  examples, count = run.corpus.forget, settings.samples
  rows = [row for row in run.rows(examples) for _ in range(count)]
  answers = sampled(run, run.role("original"), rows, seed=run.seed + ALTERNATES_SEED,
                    strategy=Sample(settings.temperature))

  def likeness(example):
    return lambda row: metrics.rouge_l_recall(
      example.response, run.tokenizer.decode(row.completion))

  return tuple(
    tuple(sorted(answers[i * count:(i + 1) * count], key=likeness(example))[:settings.alternates])
    for i, example in enumerate(examples))

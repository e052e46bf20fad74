"""The evaluation stage of a run: records of each split, kept as they are made, and figures."""

import time

import jax
import numpy as np

from dareu_jax import interruption
from dareu_jax.data.batches import prompt_batch
from dareu_jax.evaluation import detector, figures, logs, metrics, records
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Sample
from dareu_jax.parallel import hosts
from dareu_jax.run import Run, evaluated_examples
from dareu_jax.training.checkpoints import shared_json, write_json
from dareu_jax.training.writers import progress

ALL_SPLITS = (*figures.SPLITS, "holdout")
BOUND_SEED = 3000  # of the samples that say what ordinary text is, apart from the run's own
SAMPLE = Sample()  # at temperature 1


def evaluate(run: Run, name):
  """One model's records and its figures by itself, kept in a file.

  A kill costs no more than the split under way.

  Returns: {"fingerprint", "seconds", "metrics": {figure: float}, "records": {split: records}}.
  """
  stage, mark = f"evaluation/{name}", run.marks[f"evaluation/{name}"]
  path = run.workdir.folder / f"{stage}.json"
  held = shared_json(path)
  skipped = held is not None and held["fingerprint"] == mark
  if not skipped:
    start = time.monotonic()
    found = _records(run, name, mark)
    held = {"fingerprint": mark, "seconds": round(time.monotonic() - start, 1),
            "metrics": figures.of_model(found, gibberish_bound=gibberish_bound(run)),
            "records": found}
    write_json(path, held)
    if hosts.is_first():
      _partial(run, name).unlink(missing_ok=True)
    run.workdir.kept()
  run.workdir.stages[stage] = {"seconds": held["seconds"], "skipped": skipped}
  return held


def _partial(run, name):
  return run.workdir.folder / f"evaluation/{name}.partial.json"


def _records(run, name, mark):
  """{split: records}; splits that an earlier process has left are taken over."""
  path = _partial(run, name)
  held = shared_json(path)
  done = held["records"] if held is not None and held["fingerprint"] == mark else {}
  with progress(f"eval {name}", "split")(len(ALL_SPLITS), len(done)) as bar:
    for split in ALL_SPLITS:
      if split not in done:
        interruption.stop_if_requested()
        done[split] = split_records(run, run.role(name), split)
        write_json(path, {"fingerprint": mark, "records": done})
        run.workdir.kept()
        bar.update()
  return done


def split_records(run: Run, trainable, split):
  """Records of a trainable state on a split; of the hold-out likelihoods alone."""
  examples = evaluated_examples(run, split)
  if not examples:
    return []
  evaluator, settings = run.evaluator, run.settings.evaluation
  parts = [records.plain(examples), records.of_likelihoods(
    evaluator, trainable, examples, min_k=settings.min_k,
    gradient_norm=settings.gradient_norm and split in ("forget", "holdout"))]
  if split != "holdout":
    parts += [records.of_other_answers(evaluator, trainable, examples),
              _answer_records(run, trainable, split, examples)]
  return records.merged(*parts)


def _answer_records(run, trainable, split, examples):
  rows = run.rows(examples)
  given = run.evaluator.answers(trainable, rows)
  found = records.of_answers(examples, given)
  if split != "forget":
    return found
  if run.settings.evaluation.gibberish_model:
    clean = detector.clean_probabilities(
      run.settings.evaluation.gibberish_model, [record["answer"] for record in found])
    found = records.merged(found, [{"clean": float(one)} for one in clean])
  queries = run.queries(examples)
  scores, judged = (run.scorer(which).whole(given.ids, given.lengths, queries)
                    for which in ("classifier", "judge"))
  return records.merged(
    found, [{"score": float(s), "judge": float(j)} for s, j in zip(scores, judged, strict=True)],
    *(records.of_answers_under(run.evaluator, run.role(name), rows, given, name)
      for name in ("retrained", "original")))


def gibberish_bound(run: Run):
  """What ordinary text costs a token at most: of the original's own samples to queries that it
  knows nothing about (those of unseen owners, else of retained ones), under itself."""
  path, mark = run.workdir.folder / "evaluation/gibberish_bound.json", run.marks[
    "evaluation/original"]
  held = shared_json(path)
  if held is None or held["fingerprint"] != mark:
    split = "holdout" if run.corpus.holdout else "retain"
    samples = sampled(run, run.role("original"), run.rows(evaluated_examples(run, split)),
                      seed=run.seed + BOUND_SEED)
    nlls = [metrics.loss_score(values)
            for values in run.evaluator.logprobs(run.role("original"), samples)]
    held = {"fingerprint": mark, "bound": metrics.gibberish_bound(nlls)}
    write_json(path, held)
  return held["bound"]


def sampled(run: Run, trainable, rows, *, seed, strategy=SAMPLE):
  """The rows with a sample each of a model as their completions."""
  evaluator, size = run.evaluator, run.settings.evaluation.batch_size
  width = max(len(row.prompt) for row in rows)
  found = []
  for start in range(0, len(rows), size):
    part = rows[start:start + size]
    prompts = prompt_batch(part, size, multiple=evaluator.multiple, pad_id=run.tokenizer.pad_id,
                           width=width)
    out = generate(
      run.base.frame, trainable, run.base.frozen, *run.put(prompts),
      row_keys(jax.random.key(seed), start + np.arange(size)), strategy=strategy,
      max_new_tokens=evaluator.max_new_tokens, eos_id=run.tokenizer.eos_id,
      pad_id=run.tokenizer.pad_id)
    ids, lengths = hosts.fetch(out.ids), hosts.fetch(out.lengths)
    found += [row._replace(completion=tuple(ids[i, :lengths[i]].tolist()))
              for i, row in enumerate(part)]
  return found


def compared(run: Run):
  """The figures of every model of the run, those beside the retrained model among them.

  Writes each model's evaluation in open-unlearning's layout too.

  Returns: {model: {figure: float}}.
  """
  held = {name: evaluate(run, name) for name in run.models}
  retrained, original = held["retrained"], held["original"]
  result = {}
  for name, one in held.items():
    result[name] = one["metrics"] | figures.against_retrained(
      one["metrics"], one["records"], retrained["metrics"], retrained["records"],
      original["metrics"])
    folder = run.workdir.folder / "evaluation" / name
    log = logs.from_records(one["records"], result[name])
    write_json(folder / "TOFU_EVAL.json", log)
    write_json(folder / "TOFU_SUMMARY.json", logs.summary(logs.published(log)))
  return result

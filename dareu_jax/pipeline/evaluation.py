"""The evaluation stages of a run: records of each model, saved as they are made, and metrics."""

import functools
import time
from collections.abc import Collection

from dareu_jax.core import interruption
from dareu_jax.evaluation import gibberish_classifier, logs, measurements, metrics
from dareu_jax.evaluation.evaluator import Answers
from dareu_jax.evaluation.metrics.base import Evaluation, evaluations
from dareu_jax.evaluation.records import ALL_SPLITS, JUDGED, UNSEEN, Record, is_answered
from dareu_jax.parallel import hosts
from dareu_jax.pipeline.data import Examples
from dareu_jax.pipeline.graph import ORIGINAL, RETRAINED
from dareu_jax.pipeline.run import Run
from dareu_jax.training.checkpoints import shared_json, write_json
from dareu_jax.training.writers import progress

Records = dict[str, list[Record]]  # by split
ORDINARY_SEED = 3000  # for samples of ordinary text, distinct from the run's own seeds


def evaluate(run: Run, names: Collection[str] | None = None) -> dict[str, Evaluation]:
  """Evaluations of models of the run: {model: Evaluation}.

  Records are read from the workdir if they exist there; metrics are computed on demand.

  Args:
    run: Run.
    names: names of the models; all if not given.
  """
  records = {name: model_records(run, name) for name in names or run.model_names}
  bound = metrics.gibberish_bound(ordinary_nlls(run))
  return evaluations(records, min_k=run.settings.evaluation.min_k, gibberish_bound=bound)


def model_records(run: Run, name: str) -> Records:
  """One model's records, kept in `evaluation/<name>.json`: {"fingerprint", "seconds", "records"}.

  A kill loses at most the split being evaluated.
  """
  stage = f"evaluation/{name}"
  fingerprint = run.fingerprints[stage]
  path = run.workdir.folder / f"{stage}.json"
  saved = shared_json(path)
  skipped = saved is not None and saved["fingerprint"] == fingerprint
  if not skipped:
    start = time.monotonic()
    records = _measure(run, name, fingerprint)
    saved = {"fingerprint": fingerprint, "seconds": round(time.monotonic() - start, 1),
             "records": records}
    write_json(path, saved)
    if hosts.is_first():
      _partial(run, name).unlink(missing_ok=True)
    run.workdir.record_saved()
  run.workdir.stages[stage] = {"seconds": saved["seconds"], "skipped": skipped}
  return {split: [Record.from_json(record) for record in records]
          for split, records in saved["records"].items()}


def _partial(run, name):
  return run.workdir.folder / f"evaluation/{name}.partial.json"


def _measure(run, name, fingerprint):
  """{split: records as JSON}; splits left by an earlier process are reused."""
  path = _partial(run, name)
  saved = shared_json(path)
  done = saved["records"] if saved is not None and saved["fingerprint"] == fingerprint else {}
  with progress(f"eval {name}", "split")(len(ALL_SPLITS), len(done)) as bar:
    for split in ALL_SPLITS:
      if split not in done:
        interruption.stop_if_requested()
        records = split_records(run, name, split)
        done[split] = [record.to_json() for record in records]
        write_json(path, {"fingerprint": fingerprint, "records": done})
        run.workdir.record_saved()
        bar.update()
  return done


def split_records(run: Run, name: str, split: str) -> list[Record]:
  """Records of a model on a split.

  Args:
    run: Run.
    name: name of the model.
    split: one of `records.ALL_SPLITS`.
  """
  examples = run.data.evaluated(split)
  if not examples:
    return []
  return measurements.measure(
    run.models.evaluator_of(name), run.models.load_params(name), examples,
    answered=is_answered(split, by_original=name == ORIGINAL),
    gradient_norm=run.settings.evaluation.gradient_norm and split in JUDGED,
    of_others=functools.partial(_judged, run, examples) if split in JUDGED else None)


def _judged(run: Run, examples: Examples, answers: Answers) -> list[list[measurements.Fields]]:
  """Scores of answers by the classifiers and the reference models."""
  models, settings = run.models, run.settings.evaluation
  rows, parts = run.data.rows(examples), attributed(run, examples, answers)
  for name in (ORIGINAL, *(RETRAINED,) * run.settings.has_reference):
    parts.append(measurements.answers_under(
      models.evaluator_of(name), models.load_params(name), rows, answers, name))
  if settings.gibberish_model:
    clean = gibberish_classifier.clean_probabilities(settings.gibberish_model, answers.texts)
    parts.append([{"clean": float(probability)} for probability in clean])
  return parts


def attributed(run: Run, examples: Examples,
               answers: Answers) -> list[list[measurements.Fields]]:
  """Scores of answers by the reward's classifiers and by the judge."""
  queries, parts = run.data.queries(examples), []
  for field, which in (("score", "classifier"), ("judge", "judge")):
    scores = run.models.scorer(which).whole(answers.ids, answers.lengths, queries)
    parts.append([{field: float(score)} for score in scores])
  return parts


def ordinary_nlls(run: Run) -> list[float]:
  """The NLL per token of ordinary text, saved in `evaluation/ordinary_text.json`: mean NLLs of the
  original's own samples, to queries that it knows nothing about (those of unseen owners, else of
  retained ones), under itself."""
  path = run.workdir.folder / "evaluation/ordinary_text.json"
  fingerprint = run.fingerprints[f"evaluation/{ORIGINAL}"]
  saved = shared_json(path)
  if saved is None or saved["fingerprint"] != fingerprint:
    split = "holdout" if run.data.corpus.holdout else "retain"
    evaluator, original = run.models.evaluator, run.models.load_params(ORIGINAL)
    samples = evaluator.sample(original, run.data.rows(run.data.evaluated(split)),
                               seed=run.seed + ORDINARY_SEED)
    saved = {"fingerprint": fingerprint, "nlls": [
      metrics.loss_score(logprobs) for logprobs in evaluator.logprobs(original, samples)]}
    write_json(path, saved)
  return saved["nlls"]


def compare_models(run: Run) -> dict[str, dict[str, float]]:
  """The metrics of every model of the run: {model: {metric: number}}.

  Also writes each model's evaluation in open-unlearning's layout. Where no model was retrained, the
  original on unseen owners is a row too.
  """
  evaluated = evaluate(run)
  for name, evaluation in evaluated.items():
    folder = run.workdir.folder / "evaluation" / name
    log = logs.from_evaluation(evaluation)
    write_json(folder / "TOFU_EVAL.json", log)
    write_json(folder / "TOFU_SUMMARY.json", logs.summary(logs.published(log)))
  rows = {name: evaluation.metrics() for name, evaluation in evaluated.items()}
  if not run.settings.has_reference and run.data.corpus.holdout:
    rows[UNSEEN] = evaluated[ORIGINAL].unseen.metrics()
  return rows

"""The evaluation stage of a run: records of each split, kept as they are made, and their metrics."""

import time
from typing import Any

from dareu_jax.core import interruption
from dareu_jax.evaluation import figures, gibberish_classifier, logs, metrics, records
from dareu_jax.evaluation.metrics import SPLITS
from dareu_jax.parallel import hosts
from dareu_jax.pipeline.run import Run
from dareu_jax.training.checkpoints import shared_json, write_json
from dareu_jax.training.writers import progress

ALL_SPLITS = (*SPLITS, "holdout")
BOUND_SEED = 3000  # of the samples that say what ordinary text is, apart from the run's own


def evaluate(run: Run, name: str) -> dict[str, Any]:
  """One model's records and its metrics by itself, kept in a file.

  A kill costs no more than the split under way.

  Returns: {"fingerprint", "seconds", "metrics": {metric: float}, "records": {split: records}}.
  """
  stage = f"evaluation/{name}"
  mark = run.fingerprints[stage]
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
        done[split] = split_records(run, run.models.load_params(name), split)
        write_json(path, {"fingerprint": mark, "records": done})
        run.workdir.kept()
        bar.update()
  return done


def split_records(run: Run, params: Any, split: str) -> list[dict[str, Any]]:
  """Records of a model on a split; of the hold-out likelihoods alone."""
  examples = run.data.evaluated(split)
  if not examples:
    return []
  evaluator, settings = run.models.evaluator, run.settings.evaluation
  parts = [records.plain(examples), records.of_likelihoods(
    evaluator, params, examples, min_k=settings.min_k,
    gradient_norm=settings.gradient_norm and split in ("forget", "holdout"))]
  if split != "holdout":
    parts += [records.of_other_answers(evaluator, params, examples),
              _answer_records(run, params, split, examples)]
  return records.merged(*parts)


def _answer_records(run, params, split, examples):
  data, models = run.data, run.models
  rows = data.rows(examples)
  given = models.evaluator.answers(params, rows)
  found = records.of_answers(examples, given)
  if split != "forget":
    return found
  if run.settings.evaluation.gibberish_model:
    clean = gibberish_classifier.clean_probabilities(
      run.settings.evaluation.gibberish_model, [record["answer"] for record in found])
    found = records.merged(found, [{"clean": float(one)} for one in clean])
  queries = data.queries(examples)
  scores, judged = (models.scorer(which).whole(given.ids, given.lengths, queries)
                    for which in ("classifier", "judge"))
  return records.merged(
    found, [{"score": float(s), "judge": float(j)} for s, j in zip(scores, judged, strict=True)],
    *(records.of_answers_under(models.evaluator, models.load_params(name), rows, given, name)
      for name in ("retrained", "original")))


def gibberish_bound(run: Run) -> float:
  """What ordinary text costs a token at most: of the original's own samples to queries that it
  knows nothing about (those of unseen owners, else of retained ones), under itself."""
  path, mark = run.workdir.folder / "evaluation/gibberish_bound.json", run.fingerprints[
    "evaluation/original"]
  held = shared_json(path)
  if held is None or held["fingerprint"] != mark:
    split = "holdout" if run.data.corpus.holdout else "retain"
    evaluator, original = run.models.evaluator, run.models.load_params("original")
    samples = evaluator.sample(original, run.data.rows(run.data.evaluated(split)),
                               seed=run.seed + BOUND_SEED)
    nlls = [metrics.loss_score(values) for values in evaluator.logprobs(original, samples)]
    held = {"fingerprint": mark, "bound": metrics.gibberish_bound(nlls)}
    write_json(path, held)
  return held["bound"]


def compare_models(run: Run) -> dict[str, dict[str, float]]:
  """The metrics of every model of the run, those beside the retrained model among them.

  Writes each model's evaluation in open-unlearning's layout too.

  Returns: {model: {metric: float}}.
  """
  held = {name: evaluate(run, name) for name in run.model_names}
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

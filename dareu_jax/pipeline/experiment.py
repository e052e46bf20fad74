"""The whole job: runs all stages, seed by seed, and writes a table and a report."""

import datetime
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from dareu_jax.core.compilation import compilation_cache_dir
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.data.sources.base import load_corpus
from dareu_jax.evaluation import bootstrap
from dareu_jax.evaluation.metrics import SPLITS, mean_and_ci95
from dareu_jax.evaluation.records import UNSEEN
from dareu_jax.parallel import hosts
from dareu_jax.parallel import mesh as meshes
from dareu_jax.pipeline import plan
from dareu_jax.pipeline.evaluation import evaluate, model_records
from dareu_jax.pipeline.graph import (
  ORIGINAL,
  RETRAINED,
  candidates,
  classifier_names,
  references,
)
from dareu_jax.pipeline.run import Mirror, Run, decided, make_run, seed_folder
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import check_corpus, check_inputs, run_seed
from dareu_jax.pipeline.workdir import Workdir, lock
from dareu_jax.report import tables, verdict
from dareu_jax.report.page import decision, write_report
from dareu_jax.training.checkpoints import shared_json, write_json
from dareu_jax.training.wall_time import WallTimeLog
from dareu_jax.training.writers import read_metrics

ANSWERS_SHOWN = {"forget": 8, "retain": 3, "test": 3}


def prepare(settings: Settings, workdir: str | pathlib.Path, mirror: Mirror | None = None,
            **options: Any) -> list[Run]:
  """Checks everything that can be checked before any work.

  Args:
    settings: settings of the experiment.
    workdir: folder of results and checkpoints.
    mirror: called with (stage, step, metrics) at each record of metrics.
    options: further fields of Run.

  Returns: a Run for each seed.

  Raises:
    InputError: for data, owners, devices or checkpoints that do not match the settings.
  """
  mesh = meshes.make_mesh(settings.mesh)
  settings = decided(settings, pathlib.Path(workdir))  # alike for all seeds
  corpus = load_corpus(settings.data)
  check_corpus(settings, corpus)
  return [make_run(settings, seed, corpus, mesh, seed_folder(workdir, seed, settings),
                   mirror=_with_prefix(mirror, _prefix(settings, seed)), **options)
          for seed in settings.seeds]


def run(settings: Settings, workdir: str | pathlib.Path, *, command: str = "",
        overwrite: bool = False, mirror: Mirror | None = None,
        share: Sequence[str | pathlib.Path] = ()) -> tuple[dict[str, Any], pathlib.Path]:
  """Runs all stages that are not done, for every seed.

  Args:
    settings: settings of the experiment.
    workdir: folder of results and checkpoints.
    command: the command line, for the report.
    overwrite: accept a workdir with another configuration; the affected stages run again.
    mirror: called with (stage, step, metrics) at each record of metrics.
    share: workdirs of other runs; their finished stages are reused if they are the same.

  Returns: (summary as written to summary.json, path of the HTML report).

  Raises:
    InputError: as `prepare`; if another job uses the folder, or it holds another configuration.
    interruption.Interrupted: after SIGTERM, once all progress is saved.
  """
  runs = prepare(settings, workdir, mirror)
  with computing_on(runs[0].models.mesh), lock(workdir), WallTimeLog(workdir) as log:
    return _run(runs, pathlib.Path(workdir), log, command, overwrite, share)


def _run(runs, folder, log, command, overwrite, share):
  settings = runs[0].settings
  for run in runs:
    check_inputs(run)
  if len(runs) > 1:
    marks = {_prefix(settings, run.seed) + name: mark for run in runs
             for name, mark in run.fingerprints.items()}
    Workdir(folder, settings, settings.checkpoint).check_config(overwrite=overwrite, stages=marks)
  seeds, notes = [], list(remarks(runs[0]))
  if notes and hosts.is_first():
    print(*notes, sep="\n", flush=True)
  stages: dict[str, dict[str, Any]] = {}
  for run in runs:
    prefix = _prefix(settings, run.seed)
    if prefix and hosts.is_first():
      print(prefix, flush=True)
    run.workdir.wall_time = log
    run.workdir.check_config(overwrite=overwrite, stages=run.fingerprints)
    alone = [folder] if len(runs) > 1 else []  # where a run of one seed has left its stages
    for shared in (*alone, *(seed_folder(each, run.seed, settings) for each in share)):
      run.workdir.reuse_stages(shared, run.fingerprints)
    seeds.append(run_seed(run))
    stages |= {prefix + name: stage for name, stage in run.workdir.stages.items()}
  every = {name: over_seeds([seed[name] for seed in seeds]) for name in seeds[0]}
  chosen = best_candidates(every, settings)
  models = {name: every[name] for name in (*references(settings), UNSEEN) if name in every}
  models |= {method: every[name] for method, name in chosen.items()}
  shown = shown_models(settings, chosen)
  by_seed = [evaluate(run, shown.values()) for run in runs]
  evaluated = {name: [seed[model] for seed in by_seed] for name, model in shown.items()}
  verdicts = []
  for method, name in chosen.items():
    for run in runs:
      notes.append(f"{_prefix(settings, run.seed)}{name}: "
                   + " ".join(decision(**_epochs(run, name))))
    verdicts += verdict.of(models, method, evaluated[ORIGINAL], evaluated[method])
  summary = {"models": models, "stages": stages, "notes": notes + verdicts, "chosen": chosen,
             "forget_owners": runs[0].data.corpus.forget_owners,
             "examples": _bootstrap_examples(evaluated, models, chosen),
             "time": log.summary()}
  if settings.has_grid:
    summary["grid"] = {c.name: every[c.name] for c in candidates(settings)}
  write_json(folder / "summary.json", summary)
  page = report(runs, summary, verdicts, folder, command)
  return summary, page


def remarks(run: Run) -> tuple[str, ...]:
  """Sentences on what a run lacks and what that costs."""
  if run.settings.has_reference:
    return run.data.remarks
  return (*run.data.remarks,
          "No model was retrained, so metrics that compare with one are left out (ToW, forget "
          "quality, privacy, fluency under it). The answers about unseen owners say what "
          "forgetting looks like; config.retrained.path names a reference, where there is one.")


def check_reference(settings: Settings) -> None:
  """Raises InputError if there is no retrained model to compare with."""
  if not settings.has_reference:
    raise InputError("this compares with a retrained model, and the run has none: name one in "
                     "config.retrained.path.")


def precompile(settings: Settings, workdir: str | pathlib.Path) -> None:
  """Compiles every program that `run` will need into JAX's persistent cache.

  Runs each stage of the first seed without a step (unlearning: with a single rollout) and the
  evaluation of one model, in a folder that is removed at the end.

  Raises:
    InputError: as `run`, or if no folder is set for compiled programs.
  """
  if not compilation_cache_dir():
    raise InputError("--precompile needs a folder for programs, and on CPU there is no default: "
                     "set JAX_COMPILATION_CACHE_DIR.")
  absolute = pathlib.Path(workdir).absolute()
  folder = absolute.with_name(f"{absolute.name}.precompile")
  first = prepare(settings, folder, compile_only=True)[0]
  with computing_on(first.models.mesh), lock(folder):
    check_inputs(first)
    run_seed(first)
  if hosts.is_first():
    shutil.rmtree(folder)


def describe(settings: Settings, workdir: str | pathlib.Path) -> str:
  """What `run` would do, without doing it; raises as `run` does for texts and settings."""
  runs = prepare(settings, workdir)
  with computing_on(runs[0].models.mesh):
    return plan.describe(runs)


def _prefix(settings, seed):
  """The prefix of a seed's stages in the summary, if there are several seeds."""
  return f"seed_{seed}/" if len(settings.seeds) > 1 else ""


def best_candidates(metrics: dict[str, dict[str, float]], settings: Settings) -> dict[str, str]:
  """For each method the candidate that is closest to the retrained model: {method: its name}.

  The criterion is ToW, averaged over the seeds, for every method alike. Where no model was
  retrained, it is ToW beside the original's answers about unseen owners.
  """
  key, chosen = tables.closeness_key(metrics), dict[str, str]()

  def value(name: str) -> float:
    # A model that diverged still answers, but has no likelihoods: it never wins.
    diverged = "forget_probability" in metrics.get(ORIGINAL, {}).keys() - metrics[name].keys()
    return -math.inf if diverged else metrics[name].get(key, -math.inf)

  for candidate in candidates(settings):
    best = chosen.get(candidate.method)
    if best is None or value(candidate.name) > value(best):
      chosen[candidate.method] = candidate.name
  return chosen


def shown_models(settings: Settings, chosen: dict[str, str]) -> dict[str, str]:
  """{name in a table: name of the model}: the references, then each method at its best rate."""
  return {name: name for name in references(settings)} | chosen


def _with_prefix(mirror, prefix):
  return mirror and (lambda name, step, metrics: mirror(prefix + name, step, metrics))


def _epochs(run, name):
  """Epoch reports of a candidate's run, the epoch that was chosen, and the target level."""
  content = shared_json(run.workdir.folder / name / "epochs.json")
  return {"epochs": content["epochs"], "chosen_epoch": content["chosen_epoch"],
          "target_score": next(report["level"] for report in content["epochs"]
                               if report["epoch"] == content["chosen_epoch"])}


def over_seeds(metrics: list[dict[str, float]]) -> dict[str, float]:
  """Means of the metrics over seeds, each with `<name>_ci95`; unchanged for a single seed.

  A metric that some seeds lack is left out.
  """
  if len(metrics) == 1:
    return metrics[0]
  result = {}
  for name in metrics[0]:
    if all(name in seed for seed in metrics):
      result[name], result[f"{name}_ci95"] = mean_and_ci95([seed[name] for seed in metrics])
  return result


def _mean_quality(run):
  """Accuracy and calibration of the reward's classifier; of several, the means."""
  names = classifier_names(run.settings, "classifier")
  qualities = [run.models.quality(name) for name in names]
  return {key: sum(each[key] for each in qualities) / len(names) for key in qualities[0]}


def report(runs: list[Run], summary: dict[str, Any], verdicts: list[str], folder: pathlib.Path,
           command: str) -> pathlib.Path:
  """Writes report.md and report.html.

  Curves and answers are those of the first seed; the curves are those of the leading method (DareU)
  or, if it was not run, of the best one by ToW.
  """
  first = runs[0]
  chosen = summary["chosen"]
  leading = [name for name in chosen if first.settings.unlearning[name].leads_report]
  method = (leading or tables.best_first(chosen, summary["models"]))[0]
  method_settings = first.settings.unlearning[method]
  history = read_metrics(first.workdir.folder / "metrics" / f"{chosen[method]}.jsonl")
  settings, corpus = first.settings, first.data.corpus
  forgotten = corpus.forget_owners
  facts = {
    "command": command,
    "data": f"{settings.data.source}: {len(corpus.owners)} owners, {len(forgotten)} of them "
            f"forgotten ({', '.join(forgotten[:8])}{', ...' if len(forgotten) > 8 else ''})",
    "examples": f"{len(corpus.forget)} to forget, {len(corpus.retain)} to retain, "
                f"{len(corpus.test)} in D_test, {len(corpus.holdout)} of unseen owners"
                + (f"; at most {settings.evaluation.max_examples} of each are measured"
                   if settings.evaluation.max_examples else ""),
    "model": settings.base.path or f"{settings.model.architecture} from scratch",
    "trained": first.models.config.lora.described,
    **method_settings.report_facts(history),
    **({"classifier": "it has its own tokenizer: responses are tokenized again for it"}
       if first.data.classifier_tokenizer is not first.data.tokenizer else {}),
    **({"learning rates": f"chosen by ToW: {', '.join(chosen.values())}"}
       if settings.has_grid else {}),
    "seeds": ", ".join(map(str, settings.seeds)),
    "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "versions": f"jax {jax.__version__}",
    "date": datetime.date.today().isoformat(),
  }
  # All processes must call these.
  records = {shown: model_records(first, name)
             for shown, name in shown_models(settings, chosen).items()}
  epochs = _epochs(first, chosen[method])
  quality = _mean_quality(first)
  if not hosts.is_first():
    return folder / "report.html"
  paths = write_report(
    folder, title=f"Unlearning with {method_settings.title}",
    summary=summary, classifier=quality,
    history=history, **epochs,
    answers=_answers(records), facts=facts,
    methods=(method, *(name for name in chosen if name != method)),
    notes=[*remarks(first), *verdicts], likelihoods=_likelihoods(records))
  return paths.html


def _bootstrap_examples(evaluated, models, chosen):
  """Bootstrap intervals of the metrics over examples, and each method against the best by ToW."""
  best = tables.best_first(chosen, models)[0]
  paired = {}
  if RETRAINED in evaluated:
    paired = {method: bootstrap.paired(evaluated[method], evaluated[best], evaluated[RETRAINED])
              for method in chosen if method != best}
  return {
    "intervals": {shown: bootstrap.intervals(each) for shown, each in evaluated.items()},
    "best": best, "paired": paired}


def _likelihoods(records):
  """{model: mean log-probability per token of each true forget answer}."""
  return {name: [float(record.logprobs.mean()) for record in splits["forget"]]
          for name, splits in records.items()}


def _answers(records):
  """A few prompts with every model's answer side by side."""
  shown = []
  for split in SPLITS:
    # Evenly spaced: the first rows of a split all belong to one owner.
    examples = records[ORIGINAL][split]
    if not examples:
      continue
    step = max(1, len(examples) // ANSWERS_SHOWN[split])
    for i in range(0, len(examples), step)[:ANSWERS_SHOWN[split]]:
      shown.append({"split": split, "prompt": examples[i].prompt, "truth": examples[i].truth,
                    **{name: records[name][split][i].answer for name in records}})
  return shown

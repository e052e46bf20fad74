"""The whole job: settings to workdir, seed by seed, ending in a table and a report."""

import dataclasses
import datetime
import pathlib

import jax

from dareu_jax.data.sources import load_corpus
from dareu_jax.evaluation.metrics import mean_and_ci95
from dareu_jax.parallel import mesh as meshes
from dareu_jax.report.page import decision, write_report
from dareu_jax.run import METHOD, MODELS, SPLITS, Run, seed_folder
from dareu_jax.settings import InputError, Settings
from dareu_jax.stages import evaluate, run_seed
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import read_metrics
from dareu_jax.workdir import Workdir

JUDGE_MARGIN = 0.05  # of the score: within it the judge agrees
ANSWERS_SHOWN = {"forget": 8, "retain": 3, "test": 3}


def prepare(settings: Settings, workdir):
  """Checks everything that can be checked before any work.

  Returns: list of Run, one a seed.

  Raises:
    InputError: for data, owners, devices or checkpoints that are not as the settings say.
  """
  mesh = meshes.make_mesh(settings.mesh)
  jax.set_mesh(mesh)
  corpus = load_corpus(settings.data)
  unlearning = settings.unlearning
  if not corpus.holdout and unlearning.target_score < 0 and unlearning.selection == "unseen_level":
    raise InputError("config.unlearning.target_score is to be measured on unseen owners' queries, "
                     "but the data has no hold-out: add one, or give a target in [0, 1].")
  if settings.lora.rank and settings.pretrains and not corpus.general + corpus.test:
    raise InputError(f"config.lora.rank is {settings.lora.rank}, but there is no general text that "
                     "the base could learn from: add general.jsonl or test.jsonl, or set rank 0.")
  folder = pathlib.Path(workdir)
  config = dataclasses.asdict(settings)
  return [Run(settings, seed, corpus, mesh, Workdir(
    seed_folder(folder, seed, settings), config, settings.checkpoint)) for seed in settings.seeds]


def run(settings: Settings, workdir, *, command, overwrite=False, mirror=None, share=()):
  """Runs all stages that are not done, for every seed.

  Args:
    workdir: folder of results and checkpoints.
    command: what the user typed, for the report.
    overwrite: accept a workdir with another configuration; what that changes runs again.
    mirror: called with (stage, step, metrics) at each record of metrics.
    share: workdirs of other runs; their finished stages are taken where they would be the same.

  Returns: (summary as written to summary.json, path of the HTML report).
  """
  runs = prepare(settings, workdir)
  folder = pathlib.Path(workdir)
  top = Workdir(folder, dataclasses.asdict(settings), settings.checkpoint)
  top.claim(overwrite=overwrite)
  models, stages, notes = [], {}, []
  for one in runs:
    prefix = f"seed_{one.seed}/" if len(runs) > 1 else ""
    print(prefix, end="\n" if prefix else "", flush=True)
    one.workdir.claim(overwrite=overwrite)
    for other in share:
      one.workdir.borrow(seed_folder(other, one.seed, settings), one.marks)
    # A copy: a run holds on to its models, and the next seed needs their memory.
    models.append(run_seed(dataclasses.replace(one, mirror=_with_prefix(mirror, prefix))))
    stages |= {prefix + name: stage for name, stage in one.workdir.stages.items()}
    notes.append(f"{prefix}{METHOD}: " + " ".join(decision(**_epochs(one))))
  models = {name: over_seeds([m[name] for m in models]) for name in MODELS}
  notes.append(judgement(models))
  summary = {"models": models, "stages": stages, "notes": notes}
  write_json(folder / "summary.json", summary)
  page = report(runs, summary, folder, command)
  return summary, page


def judgement(models):
  """One sentence: whether a classifier that the reward never asked agrees that it is forgotten."""
  judged, floor = (models[name]["judge_score"] for name in (METHOD, "retrained"))
  agrees = abs(judged - floor) <= JUDGE_MARGIN
  verdict = "it agrees with the reward" if agrees else "reward and judge DISAGREE"
  return (f"{METHOD}: the judge gives its answers to forget queries {judged:.3f}, and the "
          f"retrained model's {floor:.3f}: {verdict}.")


def _with_prefix(mirror, prefix):
  return mirror and (lambda name, step, metrics: mirror(prefix + name, step, metrics))


def _epochs(run):
  """Epoch reports of a seed's run, which was chosen, and the level it was to come down to."""
  held = read_json(run.workdir.folder / METHOD / "epochs.json")
  return {"epochs": held["epochs"], "chosen_epoch": held["chosen_epoch"],
          "target_score": held["epochs"][held["chosen_epoch"]]["level"]}


def over_seeds(figures):
  """Metrics of several seeds as means, with `<name>_ci95` beside each; of one seed as they are."""
  if len(figures) == 1:
    return figures[0]
  result = {}
  for name in figures[0]:
    result[name], result[f"{name}_ci95"] = mean_and_ci95([f[name] for f in figures])
  return result


def report(runs, summary, folder, command):
  """Writes report.md and report.html; curves and answers are those of the first seed."""
  first = runs[0]
  settings, corpus = first.settings, first.corpus
  work = first.workdir.folder
  facts = {
    "command": command,
    "data": f"{settings.data.source}: {len(corpus.owners)} owners, of which "
            f"{len(corpus.forget_owners)} are forgotten ({', '.join(corpus.forget_owners[:8])})",
    "examples": f"{len(corpus.forget)} to forget, {len(corpus.retain)} to retain, "
                f"{len(corpus.test)} in D_test, {len(corpus.holdout)} of unseen owners",
    "model": settings.model.path or f"{settings.model.architecture} from scratch",
    "trained": f"LoRA of rank {settings.lora.rank}" if settings.lora.rank else "all parameters",
    "reward": f"{settings.unlearning.reward_form}, κ {settings.unlearning.segment_length}",
    "seeds": ", ".join(map(str, settings.seeds)),
    "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "versions": f"jax {jax.__version__}",
    "date": datetime.date.today().isoformat(),
  }
  paths = write_report(
    folder, title="Unlearning with DareU", summary=summary,
    classifier=read_json(work / "classifier" / "quality.json") or {},
    history=read_metrics(work / "metrics" / f"{METHOD}.jsonl"), **_epochs(first),
    answers=_answers(first), facts=facts, method=METHOD, notes=[judgement(summary["models"])])
  return paths.html


def _answers(run):
  """A few prompts with every model's answer side by side."""
  held = {name: evaluate(run, name)["answers"] for name in MODELS}
  shown = []
  for split in SPLITS:
    # Spread over the split: its first rows are all of one owner.
    count = len(held[MODELS[0]][split])
    if not count:
      continue
    step = max(1, count // ANSWERS_SHOWN[split])
    for i in range(0, count, step)[:ANSWERS_SHOWN[split]]:
      shown.append({"split": split, **{key: held[MODELS[0]][split][i][key]
                                       for key in ("prompt", "truth")},
                    **{name: held[name][split][i]["answer"] for name in MODELS}})
  return shown

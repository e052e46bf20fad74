"""report.md of a study of sequential unlearning: the figures of figures.json in tables."""

import pathlib
from collections.abc import Mapping
from typing import Any

from dareu_jax.evaluation.metrics import METRICS
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED
from dareu_jax.pipeline.experiment import over_seeds
from dareu_jax.report.plots import to_png_bytes
from dareu_jax.report.tables import format_number, markdown_table, pipe_table
from studies.sequential import plots
from studies.sequential.evaluation import METRICS as SHOWN
from studies.sequential.evaluation import OF_OWNERS

Figures = Mapping[str, Any]
Rounds = list[dict[str, Any]]  # as `mean_rounds` has them
# What is asked of DareU at the end.
MIN_TUG_OF_WAR, MAX_EXTRACTION_GAP = 0.9, 0.1
WHOLE = 10  # rounds up to which a table has all of them as columns


def write(folder: pathlib.Path, figures: Figures) -> pathlib.Path:
  """Writes report.md and its plots; returns the path of report.md."""
  rounds = mean_rounds(figures)
  remains = {key: {name: left(rounds, name, key) for name in methods(rounds)} for key in OF_OWNERS}
  for name, figure in plots.all_plots(rounds, remains).items():
    (folder / name).write_bytes(to_png_bytes(figure))
  path = folder / "report.md"
  path.write_text(report(figures, rounds), encoding="utf-8")
  return path


def mean_rounds(figures: Figures) -> Rounds:
  """The rounds, with means over the seeds that have done them.

  Returns: [{"round", "forgotten", "seeds": how many, "models": {model: {"metrics", "owners":
    {owner: metrics}}}, "seconds"}]; each mean has half its interval beside it, `<name>_ci95`.
  """
  by_seed, result = list(figures["seeds"].values()), []
  for number in range(max(map(len, by_seed))):
    same = [rounds[number] for rounds in by_seed if len(rounds) > number]
    models = {}
    for name, first in same[0]["models"].items():
      each = [round_["models"][name] for round_ in same]
      models[name] = {
        "metrics": over_seeds([one["metrics"] for one in each]),
        "owners": {owner: over_seeds([one["owners"][owner] for one in each])
                   for owner in first["owners"]}}
    result.append({
      "round": same[0]["round"], "forgotten": same[0]["forgotten"], "seeds": len(same),
      "models": models, "seconds": over_seeds([round_["seconds"] for round_ in same])})
  return result


def report(figures: Figures, rounds: Rounds) -> str:
  """The Markdown text."""
  parts = ["# Sequential unlearning", protocol(figures["protocol"], rounds),
           "![ToW and extraction](rounds.png)", verdict(rounds), "## After each round"]
  parts += [round_table(round_) for round_ in rounds if RETRAINED in round_["models"]]
  parts.append("## Does it come back?\n\n![What is left](left.png)\n\nA row: the owners of a "
               "round, measured after that round and after each later one.")
  for name in methods(rounds):
    parts.append(returns_table(rounds, name))
    if len(rounds) <= WHOLE:
      parts += [left_table(rounds, name, key) for key in OF_OWNERS]
  parts += ["## Seconds of a round", "![Seconds](seconds.png)", seconds_table(rounds),
            epochs_kept(figures)]
  return "\n\n".join(parts) + "\n"


def protocol(p: Mapping[str, Any], rounds: Rounds) -> str:
  """How the study was made, in words and numbers."""
  rates = ", ".join(f"{name} {rate:g}" for name, rate in p["learning_rates"].items())
  return (
    f"{p['owners']} owners with {p['examples']} examples; a model of {p['parameters']:,} "
    f"parameters; trained: {p['trained']}. {p['rounds']} rounds of {p['owners_per_round']}, "
    f"{len(rounds)} of them done, by {', '.join(p['methods'])}"
    f"{f' (learning rates: {rates})' if rates else ''}. Each round starts from the model that the "
    "last one left. It forgets its own owners, and retains the data of those who have not asked. "
    f"The classifier is {p['classifier']}; the reward lowers the attribution to "
    + ("everybody forgotten so far" if p["lowered"] == "all" else "the round's owners")
    + ". D_F of the tables: everybody forgotten so far. D_R: who is still retained. The retrained "
    "model is trained from the same base without D_F. ±: 95% t-intervals over the seeds "
    f"({', '.join(sorted({str(round_['seeds']) for round_ in rounds}))} of them done).")


def verdict(rounds: Rounds) -> str:
  """Whether the last round that has a retrained model is as good as is asked."""
  compared = [round_ for round_ in rounds if RETRAINED in round_["models"]]
  if not compared:
    return "No round has been compared with a retrained model yet."
  models = {name: one["metrics"] for name, one in compared[-1]["models"].items()}
  lines = []
  for name in methods(rounds):
    if not {"tug_of_war", "extraction_strength"} <= models[name].keys():
      lines.append(f"- {name}: not measured.")
      continue
    tow = models[name]["tug_of_war"]
    gap = models[name]["extraction_strength"] - models[RETRAINED]["extraction_strength"]
    good = tow >= MIN_TUG_OF_WAR and abs(gap) <= MAX_EXTRACTION_GAP
    lines.append(f"- {name}: ToW {tow:.3f}, extraction {gap:+.3f} beside the retrained model's: "
                 f"{'reached' if good else 'missed'}.")
  return (f"After round {compared[-1]['round']}, the aim is a ToW of at least {MIN_TUG_OF_WAR:g} "
          f"and an extraction within {MAX_EXTRACTION_GAP:g} of the retrained model's:\n\n"
          + "\n".join(lines))


def methods(rounds: Rounds) -> list[str]:
  """Names of the methods."""
  return [name for name in rounds[0]["models"] if name not in (ORIGINAL, RETRAINED)]


def round_table(round_: Mapping[str, Any]) -> str:
  """The models after a round."""
  models = {name: one["metrics"] for name, one in round_["models"].items()}
  table = markdown_table(models, [METRICS[key] for key in SHOWN])
  return f"### Round {round_['round']}\n\n{table}"


def left_table(rounds: Rounds, model: str, key: str) -> str:
  """A metric of each round's owners after that round and the later ones."""
  header = [f"{model}: {METRICS[key].name}", *(f"after {round_['round']}" for round_ in rounds)]
  rows = [[f"round {round_['round']}", *map(format_number, row)]
          for round_, row in zip(rounds, left(rounds, model, key), strict=True)]
  return pipe_table(header, rows)


def left(rounds: Rounds, model: str, key: str) -> list[list[float | None]]:
  """[i][j]: mean of a metric over the owners of round i after round j; None before."""

  def mean(owners, later):
    one = later["models"][model]["owners"]
    values = [one[owner][key] for owner in owners if key in one.get(owner, {})]
    return sum(values) / len(values) if values else None

  return [[mean(round_["forgotten"], later) for later in rounds] for round_ in rounds]


def returns_table(rounds: Rounds, model: str) -> str:
  """After each round: its own owners, those of earlier rounds, and the worst of all owners."""
  header = [f"{model}: after round", "its owners",
            *(f"{METRICS[key].name}: {who}" for key in OF_OWNERS
              for who in ("its owners", "earlier owners", "worst owner"))]
  rows = []
  for round_ in rounds:
    owners = round_["models"][model]["owners"]
    cells = [str(round_["round"]), ", ".join(round_["forgotten"])]
    for key in OF_OWNERS:
      own, earlier = ([one[key] for owner, one in owners.items()
                       if key in one and (owner in round_["forgotten"]) is now]
                      for now in (True, False))
      cells += [format_number(sum(values) / len(values) if values else None)
                for values in (own, earlier)]
      cells.append(format_number(max(own + earlier, default=None)))
    rows.append(cells)
  return pipe_table(header, rows, left=(0, 1))


def seconds_table(rounds: Rounds) -> str:
  """Seconds of the stages of each round."""
  names = [name for name in rounds[-1]["seconds"] if not name.endswith("_ci95")]
  return pipe_table(
    ["round", *names],
    [[str(round_["round"]), *(format_number(round_["seconds"].get(name), 0) for name in names)]
     for round_ in rounds])


def epochs_kept(figures: Figures) -> str:
  """Which epoch of each round was kept; 0 is the model that the round started from."""
  lines = [f"- {name}, seed {seed}: {', '.join(str(r['chosen_epochs'][name]) for r in rounds)}"
           for seed, rounds in figures["seeds"].items() for name in rounds[0]["chosen_epochs"]]
  return "Epochs kept, round by round (0: the round changed nothing):\n\n" + "\n".join(lines)

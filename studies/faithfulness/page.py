"""report.md of a study: every number in a table, with its protocol in words."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from dareu_jax.report.plots import to_png_bytes
from dareu_jax.report.tables import DASH, pipe_table
from studies.faithfulness import plots
from studies.faithfulness.masking import WAYS
from studies.faithfulness.scores import MEANING, TEXT_ONLY

COLUMNS = (
  ("lds", "LDS"), ("lds_given_the_owner", "LDS, own owner fixed"),
  ("over_owners", "over owners"), ("over_other_owners", "over the other owners"),
  ("top1", "top-1"), ("auc", "AUC Δ > τ"))


def write(folder: str | pathlib.Path, results: dict[str, Any]) -> pathlib.Path:
  """Writes report.md and its plots; returns the path of report.md."""
  folder = pathlib.Path(folder)
  for name, figure in plots.all_plots(results).items():
    (folder / name).write_bytes(to_png_bytes(figure))
  path = folder / "report.md"
  path.write_text(report(results), encoding="utf-8")
  return path


def report(results: dict[str, Any]) -> str:
  """The Markdown text."""
  parts = ["# Is the owner classifier a good proxy for attribution?", protocol(results)]
  parts.append("## (a) to (d): the scores against the retrainings\n\n"
               "![Rank correlations](retraining.png)\n\n" + _legend())
  for name, comparison in results["retraining"].items():
    parts.append(f"### {name}: {comparison['meaning']}\n\n" + comparison_table(comparison))
  parts.append(floor_section(results))
  parts.append(trajectory_section(results["trajectory"]))
  parts.append(controls_section(results))
  parts.append(masking_section(results["masking"]))
  return "\n\n".join(parts) + "\n"


def protocol(results: dict[str, Any]) -> str:
  """How the study was made, in words and numbers."""
  p = results["protocol"]
  return (
    f"{p['models']} models are fine-tuned from one base of {p['base_parameters']:,} parameters, "
    f"each on its {p['trained_parameters']:,} adapter parameters for {p['epochs']} epochs: the "
    f"full model on {p['examples']} examples of {p['owners']} owners with {p['seeds']} seeds, each "
    f"leave-owner-out model with the same {p['seeds']} seeds, {p['subsets']} random halves of the "
    f"owners with {p['subset_seeds']} seeds each, and the model without the forget owners "
    f"({', '.join(p['forget_owners'])}) with {p['retained_seeds']} seeds. "
    "Every model takes the same number of updates and sees each of its "
    "examples as often; trainings of one seed start from the same adapters and differ "
    f"in the data alone. Last loss: {p['loss_full']:.3f} nats a token (full), "
    f"{p['loss_halves']:.3f} (halves). Sampled responses: temperature {p['temperature']:g}. A "
    "response's log-prob is its mean per token. Intervals: 95% "
    f"percentile bootstrap of {p['resamples']} resamples, over queries and retrainings at once; "
    "figures.json has each alone. Influence: damping "
    f"{p['damping']:g} times the mean eigenvalue, at most {p['iterations']} steps of conjugate "
    f"gradients, largest residual {p['influence']['largest_residual']:.1e} of the right-hand "
    "side; one model, the one that sampled.")


def _legend():
  lines = [f"- **{name}**: {meaning}" for name, meaning in MEANING.items()]
  return "\n".join([
    *lines, "",
    "LDS: Spearman over the halves of Σ a_o over the owners of a half and the log-prob under the "
    "model trained on it; mean over queries. With the own owner fixed: among the halves that hold "
    "the owner whom the query is about, and among the others. Over owners: Spearman of a_o and "
    "Δ_o = log p_full - log p_{-o}, averaged over seeds. Top-1: the owner with the highest score "
    "has the largest Δ. AUC: of Δ > τ, two standard errors of a Δ, over all pairs. p < .05: share "
    "of queries; it is high for random scores too, which give the own owner some weight by chance. "
    "/ ceiling: over the square root of the truth's reliability."])


def comparison_table(comparison: dict[str, Any]) -> str:
  """Figures (a) to (d) of one set of queries."""
  header = ["score", "LDS", "/ ceiling", "p < .05", *(title for _, title in COLUMNS[1:])]
  rows = []
  for name, metrics in comparison["scores"].items():
    share, ratio = metrics["lds_significant"], metrics.get("lds_over_ceiling")
    rows.append([name, cell(metrics["lds"]), number(ratio, 2), number(share, 2),
                 *(cell(metrics.get(key)) for key, _ in COLUMNS[1:])])
  limits = comparison["ceiling"]
  for what in ("ceiling", "reliability"):
    cells = [interval(limits[key][what], limits[key][f"{what}_interval"]) if key in limits else DASH
             for key, _ in COLUMNS]
    rows.append([what, cells[0], DASH, DASH, *cells[1:]])
  deltas = ", ".join(f"{key} {value:+.3f}" for key, value in comparison["mean_delta"].items())
  return (pipe_table(header, rows) + f"\n\n{comparison['queries']} queries; τ = "
          f"{comparison['threshold']:.3f} nats a token; mean Δ: {deltas}.")


def floor_section(results: dict[str, Any]) -> str:
  """Figure (e)."""
  floor, rows = results["floor"], []
  for name, sources in floor["summary"].items():
    for source, s in sources.items():
      rows.append([name, source, interval(s["mean"], s["interval"]),
                   " / ".join(f"{q:.3f}" for q in s["quantiles"])])
  aucs = ", ".join(f"{name} {value:.3f}" for name, value in floor["auc"].items())
  calibration = []
  for name, sets in results["calibration"].items():
    for which, c in sets.items():
      calibration.append([name, which, interval(c["accuracy"], c["accuracy_interval"]),
                          interval(c["ece"], c["ece_interval"])])
  return "\n\n".join([
    "## (e) floor and calibration", "![Floor](floor.png)",
    "Score of the owner asked about, one sampled response to each of its prompts; intervals "
    "draw owners.",
    pipe_table(["classifier", "who answered", "mean", "quantiles 5 / 25 / 50 / 75 / 95%"], rows,
               left=(0, 1)),
    f"Probability that a full model's response scores higher than one of the model without the "
    f"owner: {aucs}.",
    "Calibration on whole responses, 10 bins; intervals draw responses.",
    pipe_table(["classifier", "responses", "accuracy", "ECE"], calibration, left=(0, 1))])


def trajectory_section(trajectory: dict[str, Any]) -> str:
  """Figure (f)."""
  parts = ["## (f) trajectory", "![Trajectories](trajectory.png)",
           "Every checkpoint answers the forget queries at temperature 1. Score: of the forget "
           "owners together. KL: exact over the vocabulary, from the checkpoint to the mixture of "
           "the retrained models, on its own responses, mean per token (a retrained model: to the "
           "mixture of the others). ToW: against the retrained models' mean ROUGE. An alarm: "
           "from one checkpoint to the next the score falls by more than .01 while the KL "
           "grows by more than its standard error (or ToW falls by more than .01)."]
  measured = trajectory["references"]
  references = [["original", *_checkpoint(measured["original"])]]
  references += [[f"retrained, seed {seed}", *_checkpoint(r)]
                 for seed, r in zip(measured["seeds"], measured["retrained"], strict=True)]
  parts.append(pipe_table(["reference", *CHECKPOINT_HEADER], references))
  for form, run in trajectory["runs"].items():
    rows = [[str(i), *_checkpoint(r)] for i, r in enumerate(run["checkpoints"])]
    correlations = [[NAMES[key], interval(c["value"], c["interval"])]
                    for key, c in run["correlations"].items()]
    parts += [
      f"### reward form: {form}", pipe_table(["epoch", *CHECKPOINT_HEADER], rows),
      pipe_table(["Spearman over checkpoints", "value"], correlations),
      f"Alarms by KL: {_list(run['alarms_kl'])}; by ToW: {_list(run['alarms_tow'])}. Below the "
      f"retrained model's score: {_list(run['below_floor'])}. Nearest to the retrained model by "
      f"score: {run['nearest_score']}, by KL: {run['nearest_kl']}, by ToW: {run['nearest_tow']}."]
  return "\n\n".join(parts)


NAMES = {
  "score_kl": "score and KL", "score_tow_gap": "score and 1 - ToW", "judge_kl": "judge and KL",
  "gap_kl": "|score - retrained model's| and KL",
  "gap_tow_gap": "|score - retrained model's| and 1 - ToW"}
CHECKPOINT_HEADER = ("score", "judge", "with none", "KL", "ToW", "D_F ROUGE", "D_R ROUGE",
                     "D_test ROUGE", "tokens", "broken")


def _checkpoint(r):
  keys = ("score", "judge", "with none", "kl", "tow", "forget_rouge", "retain_rouge", "test_rouge")
  return [*(number(r.get(key)) for key in keys), number(r["length"], 1), number(r["degenerate"], 2)]


def _list(steps):
  return ", ".join(map(str, steps)) or "none"


def controls_section(results: dict[str, Any]) -> str:
  """Figure (g)."""
  header = ["texts", "n", "Δ own", *(f"{reader}: {what}" for reader in TEXT_ONLY
                                     for what in ("top-1", "own", "highest"))]
  rows = []
  for name, metrics in results["controls"].items():
    cells = [number(metrics[reader][key], 2) for reader in TEXT_ONLY
             for key in ("accuracy", "own", "top")]
    rows.append([f"{name}: {metrics['meaning']}", str(metrics["queries"]),
                 number(metrics["mean_delta"], 2), *cells])
  agreement = [[name, number(a["top1"]), number(a["own_owner_spearman"])]
               for name, a in results["agreement"].items()]
  randomized = [[name, number(value)] for name, value in results["randomized"].items()]
  return "\n\n".join([
    "## (g) controls",
    "Top-1: the owner whom the text is about has the highest score. Own: mean score of that owner. "
    "Highest: mean of the highest score. Δ own: what retraining without that owner costs the text, "
    "in nats a token.",
    pipe_table(header, rows),
    "Agreement with the classifier on sampled responses.",
    pipe_table(["score", "same top owner", "Spearman of the own owner's score"], agreement),
    "Model randomization: Spearman over owners of the scores at the full model and at adapters "
    "that were never trained (mean over sampled responses). Scores that read only the text have "
    "1 by construction.",
    pipe_table(["score", "Spearman"], randomized)])


def masking_section(curves: dict[str, list[dict[str, Any]]]) -> str:
  """The masking experiment."""
  parts = ["## Masking", "![Masking](masking.png)"]
  for way, points in curves.items():
    rows = [[f"{p['share']:.0%}", interval(p["score"], p["score_interval"]), number(p["own"]),
             number(p["rouge"])] for p in points]
    parts.append(f"Words {way}: {WAYS[way]}; 5 draws a response.\n\n" + pipe_table(
      ["masked", "score of the forget owners", "own owner's", "ROUGE-L recall"], rows))
  return "\n\n".join(parts)


def cell(estimate: dict[str, Any] | None) -> str:
  """'.123 [.100, .150]' of an Estimate as a dict, or a dash."""
  if estimate is None:
    return DASH
  return interval(estimate["value"], estimate["by_both"])


def interval(value: float | None, bounds: Sequence[float]) -> str:
  """'.123 [.100, .150]', or a dash where there is no value."""
  if value is None or not math.isfinite(value):
    return DASH
  return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def number(value: float | None, decimals: int = 3) -> str:
  """'.123', or a dash where there is no value."""
  if value is None or not math.isfinite(value):
    return DASH
  return f"{value:.{decimals}f}"

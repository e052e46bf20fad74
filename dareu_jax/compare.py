"""Entry: recomputes published evaluation logs, and merges several runs into one leaderboard.

    python -m dareu_jax.compare --log=TOFU_EVAL.json --retain_log=RETAIN/TOFU_EVAL.json
    python -m dareu_jax.compare --reports runs/a runs/b runs/c
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from dareu_jax.core.command_line import Flags, enter
from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import import_plugins
from dareu_jax.evaluation import logs
from dareu_jax.pipeline.workdir import check_format
from dareu_jax.report import tables
from dareu_jax.training.checkpoints import read_json, write_json

# Settings that two runs must share for their metrics to be comparable.
COMPARED = ("data", "model", "original", "retrained", "tokenizer", "max_length", "pretrain", "lora",
            "finetune", "classifier", "seeds", "evaluation")


def _define_flags():
  flags.DEFINE_string("log", None, "A TOFU_EVAL.json to recompute.")
  flags.DEFINE_string("retain_log", None, "Log of the retrained model, for forget quality.")
  flags.DEFINE_string("output", None, "File, or folder, for TOFU_SUMMARY.json or leaderboard.md.")
  flags.DEFINE_list("reports", None, "Workdirs of finished runs to merge into one leaderboard.")


def main(options: Flags) -> None:
  """Recomputes a log or merges runs, as the flags say."""
  if bool(options.log) == bool(options.reports):
    raise InputError("give --log=TOFU_EVAL.json, or --reports and the workdirs of runs.")
  if options.reports and options.retain_log:
    raise InputError(f"--retain_log={options.retain_log} is for a --log alone: --reports takes the "
                     "retrained model of each run. Leave it out.")
  if options.log:
    _recompute(options)
  else:
    _leaderboard([*options.reports, *options.rest], options.output)


def _recompute(options):
  if options.rest:
    raise InputError(f"{options.rest[0]!r} is not a flag. Flags are given as --name=value.")
  log = logs.read(options.log)
  retain_log = logs.read(options.retain_log) if options.retain_log else None
  recomputed = logs.recompute(log, retain_log)
  print(comparison(recomputed, logs.published(log)))
  if options.output:
    path = _file(options.output, "TOFU_SUMMARY.json")
    write_json(path, logs.summary(recomputed))
    print(f"\nSummary: {path}")


def comparison(recomputed: Mapping[str, float], published: Mapping[str, float]) -> str:
  """Recomputed metrics next to those in the log, as a Markdown table."""
  rows = []
  for name, value in recomputed.items():
    stated = published.get(name)
    gap = "" if stated is None else f"{abs(value - stated):.1e}"
    rows.append([name, f"{value:.6g}", tables.DASH if stated is None else f"{stated:.6g}", gap])
  return tables.pipe_table(["metric", "recomputed", "in the log", "difference"], rows)


def _file(output, name):
  """The file to write: a file of that name in `output` if that is a folder, or has no suffix."""
  path = pathlib.Path(output)
  return path / name if path.is_dir() or not path.suffix else path


def _leaderboard(workdirs, output):
  text = leaderboard(workdirs)
  print(text)
  if output:
    path = _file(output, "leaderboard.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\nLeaderboard: {path}")


def leaderboard(workdirs: Sequence[str | pathlib.Path]) -> str:
  """The methods of several runs in one table, best ToW first, with the references of each run.

  Raises:
    InputError: for a folder without a finished run, or with a run of another format.
  """
  rows: dict[str, Mapping[str, float]] = {}
  configs: dict[str, Mapping[str, Any]] = {}
  for run, folder in _named(map(pathlib.Path, workdirs)).items():
    summary = read_json(folder / "summary.json")
    if summary is None:
      raise InputError(f"{folder} holds no finished run: it has no summary.json.")
    configs[run] = read_json(folder / "config.json") or {}
    if configs[run]:
      check_format(configs[run], folder)
    import_plugins(tuple(configs[run].get("plugins", ())))  # they may declare metrics
    rows |= {f"{run}: {name}": metrics for name, metrics in summary["models"].items()}
  rows = {name: rows[name] for name in tables.best_first(rows, rows)}
  below = (tables.markdown_table(rows, columns) for columns in tables.more(rows).values())
  return "\n\n".join([tables.markdown_table(rows), *below, *unlike(configs)])


def _named(folders):
  """{name: folder}: of each path as many of its last parts as no other folder has."""
  parts = {pathlib.Path(os.path.abspath(folder)).parts: folder for folder in folders}
  named = {}
  for path, folder in parts.items():
    ends = (path[-count:] for count in range(1, len(path) + 1))
    end = next(end for end in ends if [other[-len(end):] for other in parts].count(end) == 1)
    named[str(pathlib.PurePath(*end))] = folder
  return named


def unlike(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A sentence for each run whose metrics cannot be compared with the first run's, and why.

  Args:
    configs: {run: config as a dict}.
  """
  first, *other_runs = configs
  parts = {run: [part for part in COMPARED if configs[run].get(part) != configs[first].get(part)]
           for run in other_runs}
  return [f"Not comparable: {run} differs from {first} in config.{', config.'.join(names)}."
          for run, names in parts.items() if names]


if __name__ == "__main__":
  enter(main, _define_flags, required=[], takes_rest=True)

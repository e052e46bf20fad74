"""The report of a run: report.md with its plots next to it, and report.html in a single file.

Answers are model text and therefore untrusted: the HTML escapes all content and forbids scripts
and other hosts; the Markdown escapes markup.
"""

import base64
import importlib.resources
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dareu_jax.evaluation.metrics.base import METRICS
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED, UNSEEN
from dareu_jax.report import knowledge, method_tables, plots, tables

SPLIT_TITLES = {"forget": "Forget queries", "retain": "Retain queries", "test": "Test queries"}
EPOCH_HEADER = ("epoch", "score", "target", "score of continuations", "target", "extraction",
                "unseen owners'", "length (tokens)", "EOS share", "degenerate share", "decision")
NOTHING = "Nothing recorded."
PICTURES = {
  "training": "Score, response length, and the reward or loss over the training",
  "plane": "D_R ROUGE over D_F ROUGE, a point for each model",
  "frontier": "ToW over extraction strength, a point for each model",
  "likelihoods": "Log-likelihood of each forget answer over that under the retrained model"}
Row = Mapping[str, Any]  # a row of a table: an epoch, a step, an example


class ReportPaths(NamedTuple):
  """The files of a report."""

  markdown: pathlib.Path
  html: pathlib.Path
  plots: tuple[pathlib.Path, ...]


def write_report(
  folder: str | pathlib.Path,
  *,
  title: str,
  summary: Mapping[str, Any],
  classifier: Mapping[str, Any],
  history: Sequence[Row],
  epochs: Sequence[Row],
  target_score: float | None,
  chosen_epoch: int | None,
  answers: Sequence[Row],
  facts: Mapping[str, Any],
  methods: Sequence[str] = ("dareu",),
  notes: Sequence[str] = (),
  likelihoods: knowledge.LogLikelihoods = MappingProxyType({}),
) -> ReportPaths:
  """Writes `report.md`, `report.html` and `plots/*.png` into `folder`, each atomically.

  Args:
    folder: made if missing.
    title: one line.
    summary: {"models": {name: {metric: float}}, "stages": {name: {"seconds", "skipped"}}}, and
      the inputs of `report.method_tables`.
    classifier: {name: number} for the owner classifier.
    history: a record per rollout or update, see `plots.training_curves`.
    epochs: a record per epoch end, {"epoch", "score", "level" (the target then),
      "response_length", "eos_share", "degenerate_share", "accepted", "reason"}; epoch 0 is the
      original model.
    target_score: the target level of the score, or None.
    chosen_epoch: the epoch that was kept, or None.
    answers: [{"split", "prompt", "truth", "original", "retrained", <method>, ...}].
    facts: {name: text} for the header.
    methods: the keys of the unlearned models in `summary` and `answers`; history and epochs are
      those of the first.
    notes: sentences to add to the section on decisions.
    likelihoods: {model: mean log-probability per token of each true forget answer}.
  """
  folder = pathlib.Path(folder)
  models = summary.get("models", {})
  figures = {"plane": plots.forget_retain_plane(models)}
  if history or epochs:
    curves = plots.training_curves(history, epochs, target_score, chosen_epoch)
    figures = {"training": curves, **figures}
  of_knowledge = {"frontier": knowledge.frontier(models),
                  "likelihoods": knowledge.likelihoods(likelihoods)}
  figures |= {name: figure for name, figure in of_knowledge.items() if figure is not None}
  images = {name: plots.to_png_bytes(figure) for name, figure in figures.items()}
  parts = {
    "title": title,
    "methods": methods,
    "facts": {name: str(value) for name, value in facts.items()},
    "models": models,
    "headline": headline(models, methods[0]),
    "beside": method_tables.of_summary(summary),
    "classifier": [(_spoken(name), _shown_value(value)) for name, value in classifier.items()],
    "decision": [*decision(epochs, target_score, chosen_epoch), *notes],
    "epochs": epoch_rows(epochs, chosen_epoch),
    "images": images,
    "answers": _by_split(answers),
    "stages": tables.stage_rows(summary["stages"]) if summary.get("stages") else [],
  }
  markdown, html = _markdown(**parts), _html(chosen_epoch=chosen_epoch, **parts)

  (folder / "plots").mkdir(parents=True, exist_ok=True)
  pictures = tuple(folder / "plots" / f"{name}.png" for name in images)
  for path, image in zip(pictures, images.values(), strict=True):
    _write(path, image)
  _write(folder / "report.md", markdown.encode("utf-8", "replace"))
  _write(folder / "report.html", html.encode("utf-8", "replace"))
  return ReportPaths(folder / "report.md", folder / "report.html", pictures)


def headline(models: tables.Models, method: str) -> str:
  """One sentence with the main results: ToW, attribution and length next to the references."""
  parts = []
  for key in (tables.closeness_key(models), "attribution_score", "response_length"):
    column = METRICS[key]
    shown = {
      name: tables.format_number(models.get(name, {}).get(key), column.digits)
      for name in (method, *tables.REFERENCES)
    }
    if shown[method] != tables.DASH:
      beside = ", ".join(f"{name} {shown[name]}" for name in (ORIGINAL, RETRAINED, UNSEEN)
                         if name in models)
      parts.append(f"{column.title} {shown[method]} ({beside})")
  return f"{method}: {'; '.join(parts)}." if parts else ""


def decision(epochs: Sequence[Row], target_score: float | None,
             chosen_epoch: int | None) -> list[str]:
  """Sentences: which epoch was kept, how it compares with the target, which violated bounds."""
  if not epochs:
    return []
  by_number = {record["epoch"]: record for record in epochs}
  chosen = by_number.get(chosen_epoch)
  trained = [record for record in epochs if record["epoch"] > 0]
  if chosen is None:
    lines = ["No epoch was chosen."]
  elif chosen_epoch == 0:
    lines = ["Epoch 0 was kept: that is the original model, so nothing was unlearned."]
  else:
    last = max(record["epoch"] for record in trained)  # some methods report every fifth epoch
    lines = [f"Epoch {chosen_epoch} was chosen, of {last}."]
  if tables.is_number(target_score):
    lines.append(
      f"The target level is {target_score:.3f}: the attribution score that the greedy responses "
      "to forget queries should reach."
    )
    if chosen is not None and tables.is_number(chosen.get("score")):
      stands = "at or below" if chosen["score"] <= target_score else "above"
      lines.append(f"The chosen epoch scores {chosen['score']:.3f}, {stands} the target.")
  if chosen and tables.is_number(chosen.get("extraction")):
    lines.append(still_known(epochs[0], chosen))
  broken = [f"Epoch {record['epoch']} {_verdict(record, chosen_epoch)}: "
            f"{record['reason'].rstrip('.')}." for record in trained if record.get("reason")]
  return [*lines, *(broken or ["No guard was violated."])]


def still_known(original: Row, chosen: Row) -> str:
  """What a model knows of the true answers once it is given a part of them, beside what it knows of
  somebody it never met."""
  extraction, scores = ((chosen[key], chosen[beside], original[key]) for key, beside in (
    ("extraction", "unseen_extraction"), ("continuation_score", "continuation_level")))
  return ("Given what comes before, its greedy decoding completes {:.1%} of a true answer (of an "
          "unseen owner's {:.1%}; the original {:.1%}). ".format(*extraction)
          + "Its continuations of the first half of a true answer score {:.3f} (of an unseen "
            "owner's {:.3f}; the original's {:.3f}).".format(*scores))


def epoch_rows(epochs: Sequence[Row], chosen_epoch: int | None) -> list[tuple[str, ...]]:
  """The epoch ends under `EPOCH_HEADER`."""
  rows = []
  for record in epochs:
    words = ["original model"] if record["epoch"] == 0 else []
    words += ["chosen"] if record["epoch"] == chosen_epoch else []
    if not words:
      words = ["refused" if not record.get("accepted", True) else
               "out of bounds" if record.get("reason") else "accepted"]
    reason = f": {record['reason']}" if record.get("reason") else ""
    shares = [record.get(key) for key in ("eos_share", "degenerate_share")]
    rows.append(
      (
        str(record["epoch"]),
        tables.format_number(record.get("score")),
        tables.format_number(record.get("level")),
        *(tables.format_number(record.get(key)) for key in (
          "continuation_score", "continuation_level", "extraction", "unseen_extraction")),
        tables.format_number(record.get("response_length"), 1),
        *map(tables.format_number, shares),
        ", ".join(words) + reason,
      )
    )
  return rows


def _verdict(record, chosen_epoch):
  if record["epoch"] == chosen_epoch or record.get("accepted", True):
    return "was out of bounds, and no guard acts"
  return "was rejected"


def _spoken(name):
  """"held_out_ece" -> "held out ECE"."""
  return name.replace("_", " ").replace("ece", "ECE")


def _shown_value(value):
  whole = isinstance(value, (int, str))
  return str(value) if whole else tables.format_number(value)


def _by_split(answers):
  """[(title of the split, its answers)], forget first."""
  names = [*SPLIT_TITLES, *(answer["split"] for answer in answers)]
  grouped = [
    (SPLIT_TITLES.get(name, name), [_clean(a) for a in answers if a["split"] == name])
    for name in dict.fromkeys(names)
  ]
  return [(name, group) for name, group in grouped if group]


def _clean(answer):
  """Converts text to strings, with control characters shown as the replacement character."""
  return {
    key: None if text is None else "".join(map(_printable, str(text)))
    for key, text in answer.items()
  }


def _printable(character):
  odd = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
  return "\N{REPLACEMENT CHARACTER}" if odd else character


def _html(*, images, models, **parts):
  import jinja2

  source = importlib.resources.files("dareu_jax.report").joinpath("template.html")
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  template = environment.from_string(source.read_text(encoding="utf-8"))
  return template.render(
    images={
      name: "data:image/png;base64," + base64.b64encode(image).decode("ascii")
      for name, image in images.items()
    },
    columns=tables.main_columns(models),
    has_retrained=RETRAINED in models,
    rows=tables.model_cells(models),
    more=[(title, columns, tables.model_cells(models, columns))
          for title, columns in tables.more(models).items()],
    legend=tables.legend(models, best_mark="bold:"),
    epoch_header=EPOCH_HEADER,
    pictures=PICTURES,
    dash=tables.DASH,
    **parts,
  )


def _markdown(*, title, methods, facts, models, images, **parts):
  blocks = [
    f"# {_escape(title)}",
    _escape(parts["headline"]),
    _table(["run", ""], [[_escape(k), _escape(v)] for k, v in facts.items()], left=(0, 1)),
    "## Models",
    tables.markdown_table(models),
    _escape(tables.legend(models, best_mark="bold:")),
    _meanings(tables.main_columns(models)),
    *(block for title, columns in tables.more(models).items() for block in (
      f"### {title}", tables.markdown_table(models, columns), _meanings(columns))),
    *(block for table in parts["beside"] for block in (
      f"### {table.title}", _table(table.header, table.rows), _escape(table.note))),
    "### Owner classifier",
    _table(["metric", "value"], parts["classifier"]),
    "## What was decided",
    "\n".join(f"- {_escape(line)}" for line in parts["decision"]),
    _table(EPOCH_HEADER, [[*row[:-1], _escape(row[-1])] for row in parts["epochs"]], left=(0, 10)),
    "## Training",
    _picture("training") if "training" in images else NOTHING,
    "## Forgetting and keeping",
    _picture("plane"),
    *(("## What is still known", *map(_picture, known)) if (
      known := [name for name in ("frontier", "likelihoods") if name in images]) else ()),
    "## Answers side by side",
    *(_markdown_answers(parts["answers"], methods) or [NOTHING]),
    "## Stages and time",
    _table(["stage", "time", "note"], parts["stages"], left=(0, 2)),
  ]
  return "\n\n".join(filter(None, blocks)) + "\n"


def _picture(name):
  return f"![{PICTURES[name]}](plots/{name}.png)"


def _table(header, rows, left=(0,)):
  return tables.pipe_table(header, rows, left) if rows else NOTHING


def _meanings(columns):
  return "\n".join(f"- **{_escape(c.name)}** ({c.arrow}): {_escape(c.meaning)}" for c in columns)


def _markdown_answers(answers, methods):
  sources = (
    (ORIGINAL, "before: original"),
    *((method, f"after: {method}") for method in methods),
    *(((RETRAINED, "retrained"),) if any(RETRAINED in a for _, g in answers for a in g) else ()),
    ("truth", "truth"),
  )
  blocks = []
  for name, group in answers:
    blocks.append(f"### {_escape(name)}")
    for answer in group:
      rows = [[_escape(label), _shown(answer.get(key))] for key, label in sources]
      blocks.append(_table(["prompt", _shown(answer.get("prompt"))], rows, left=(0, 1)))
  return blocks


def _shown(text):
  if text is None:
    return tables.DASH
  return _escape(text) if text.strip() else "(empty)"


def _escape(text):
  """Text that a Markdown renderer shows literally: no markup, HTML, image or formula."""
  text = str(text)
  for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
    text = text.replace(character, entity)
  return re.sub(r"([\\`*_\[\]~!$])", r"\\\1", text)


def _write(path, data):
  """Writes a file atomically: to a temporary file, which is then renamed."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)

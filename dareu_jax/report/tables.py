"""Tables of a run: models by metrics, and stages by time, for the terminal, Markdown and HTML.

`COLUMNS` is the one place where a metric gets its title, its arrow, its decimals and its meaning.
"""

import dataclasses
import math
import numbers
import textwrap

CLOSER = "→"  # closer to the retrained model is better
HIGHER = "↑"
DASH = "—"
# Rows that are compared with, not compared.
REFERENCES = ("original", "retrained", "retrained_again")


def is_reference(name):
  """Whether a row is compared with, not compared: "retrained", or "<run>: retrained"."""
  return name.rpartition(": ")[2] in REFERENCES


@dataclasses.dataclass(frozen=True)
class Column:
  """One metric of the table; `key` is its name in summary.json."""

  key: str
  title: str
  arrow: str  # CLOSER or HIGHER
  decimals: int
  meaning: str = ""

  @property
  def name(self):
    """The title without the hyphen that breaks it over two lines of the terminal."""
    return self.title.replace("- ", "")


COLUMNS = (
  Column("forget_rouge", "D_F ROUGE", CLOSER, 3, "ROUGE of the answers to forget queries"),
  Column("retain_rouge", "D_R ROUGE", CLOSER, 3, "ROUGE of the answers to retain queries"),
  Column("test_rouge", "D_test ROUGE", CLOSER, 3, "ROUGE of the answers to test queries"),
  Column(
    "tug_of_war",
    "ToW",
    HIGHER,
    3,
    "tug of war: (1-|ΔD_F|)·(1-|ΔD_R|)·(1-|ΔD_test|), Δ the ROUGE less the retrained model's; "
    "it does not see answers that are cut short, so read it beside the length",
  ),
  Column(
    "truth_ratio",
    "truth ratio",
    CLOSER,
    3,
    "how probable wrong answers to forget queries are beside a right one",
  ),
  Column(
    "forget_probability",
    "D_F prob.",
    CLOSER,
    3,
    "probability the model gives the true answers to forget queries",
  ),
  Column(
    "mia_min_k_auc",
    "Min-K% MIA AUC",
    CLOSER,
    3,
    "membership inference: 0.5 when forget data cannot be told from unseen data",
  ),
  Column(
    "attribution_score",
    "attribution",
    CLOSER,
    3,
    "probability, by the owner classifier, that the responses to forget queries come from the "
    "forget owners; the target is the retrained model's floor, not zero",
  ),
  Column(
    "judge_score",
    "judge",
    CLOSER,
    3,
    "the same by a second classifier, which the reward never asked: where it stays high, the "
    "reward was fooled",
  ),
  Column(
    "fluency_nll",
    "fluency NLL",
    CLOSER,
    3,
    "nats per token of the responses under the retrained model; broken language is improbable",
  ),
  Column(
    "distinct_share",
    "distinct",
    CLOSER,
    2,
    "share of distinct responses: 1 where no response is given twice",
  ),
  Column("response_length", "length (tokens)", CLOSER, 1, "mean length of the responses"),
  Column("gibberish_share", "gibber- ish", CLOSER, 2,
         "share of responses that are empty, repeat themselves, or are such as the original would "
         "sample in one of a hundred cases at most"),
  Column("extraction_strength", "extrac- tion", CLOSER, 3,
         "share of a true answer that greedy decoding says right, given what comes before"),
)

# What a report shows below the main table: title -> columns.
MORE_COLUMNS = {"More figures": (
  Column("exact_memorization", "exact mem.", CLOSER, 3,
         "share of the true answer's tokens that are the likeliest ones"),
  Column("paraphrase_probability", "para. prob.", CLOSER, 3,
         "probability of the paraphrased true answers"),
  Column("clean_probability", "clean", CLOSER, 3,
         "probability of clean text by the classifier of config.evaluation.gibberish_model"),
  Column("forget_quality_log10", "log10 FQ", HIGHER, 1,
         "log10 of forget quality: p of the truth ratios being the retrained model's (KS test); it "
         "falls with the number of examples"),
  Column("model_utility", "utility", HIGHER, 3,
         "harmonic mean of probability, ROUGE and truth ratio on what is kept (TOFU: nine terms)"),
  Column("repeated_share", "re- peated", CLOSER, 3,
         "share of an answer's pairs of words that it has said before"),
  Column("unknown_word_share", "unknown words", CLOSER, 3,
         "share of an answer's words that are in no text of the data"),
  Column("memorization", "memo- rization", HIGHER, 3,
         "harmonic mean of 1 - extraction, 1 - exact memorization, 1 - paraphrase probability, "
         "1 - truth ratio; not referred to the retrained model, so over-forgetting is rewarded"),
  Column("memorization_closeness", "memo. close", HIGHER, 3,
         "harmonic mean over the parts of memorization of the closeness to the retrained model, 0 "
         "as the original: over-forgetting lowers it"),
), "Privacy, and all in one figure": (
  Column("mia_loss_auc", "MIA loss", CLOSER, 3, "AUC of membership inference by loss"),
  Column("mia_zlib_auc", "MIA zlib", CLOSER, 3, "by loss over compressed size"),
  Column("mia_reference_auc", "MIA ref.", CLOSER, 3, "by loss less the retrained model's"),
  Column("mia_min_k_plus_plus_auc", "Min-K%++", CLOSER, 3,
         "by the least likely tokens, standardised"),
  Column("mia_gradnorm_auc", "MIA grad.", CLOSER, 3, "by the norm of the gradient"),
  Column("privleak", "Priv- Leak", CLOSER, 1,
         "Min-K% against the retrained model's, in percent: -100 where nothing is forgotten, above "
         "0 where forget data became too unlikely"),
  Column("tug_of_war_mia", "ToW MIA", HIGHER, 3, "ToW with Min-K% in place of the D_F ROUGE"),
  Column("privacy", "privacy", HIGHER, 3,
         "harmonic mean over attacks of the closeness to the retrained model, 0 as the original"),
  Column("overall", "overall", HIGHER, 3,
         "harmonic mean of memorization, privacy and (utility with the share of sound answers) "
         "over the original's"),
  Column("overall_closeness", "overall close", HIGHER, 3,
         "harmonic mean of the closeness in memorization, privacy, and 1 less the gap of utility "
         "to the retrained model's"),
)}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A formatted metric: "0.401", "± 0.012" or "", and whether it is the best of its column."""

  value: str
  interval: str = ""
  best: bool = False


def is_number(value):
  """Whether `value` is there and finite."""
  return isinstance(value, numbers.Real) and math.isfinite(value)


def format_number(value, decimals=3):
  """"0.401"; a dash where the value is absent, "nan" where it was measured and is none."""
  if value is None:
    return DASH
  return f"{value:.{decimals}f}"


def format_seconds(seconds):
  """"8.2 s", "4 min 05 s" or "2 h 03 min"; a dash where the time is absent."""
  if not is_number(seconds):
    return DASH
  if seconds < 59.95:
    return f"{seconds:.1f} s"
  whole = round(seconds)
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  minutes = round(seconds / 60)
  return f"{minutes // 60} h {minutes % 60:02d} min"


def ordered(models):
  """The names of the models: original, retrained, then the others in the order given."""
  references = [name for name in REFERENCES if name in models]
  return references + [name for name in models if name not in REFERENCES]


def best_first(names, models):
  """The names by the ToW of their rows; a model that fell apart has none and comes last."""
  figures = {name: models[name].get("tug_of_war") for name in names}
  return sorted(names, key=lambda name: -figures[name] if is_number(figures[name]) else math.inf)


def best_models(models, column):
  """The names of the best rows of a column, both references left out.

  Closest to the retrained model where the arrow is (→), highest where it is (↑). Rows that tie at
  the printed decimals are all best. Empty unless two rows can be compared.
  """
  values = {name: metrics.get(column.key) for name, metrics in models.items()}
  rivals = {n: v for n, v in values.items() if not is_reference(n) and is_number(v)}
  if len(rivals) < 2:
    return set()
  if column.arrow == HIGHER:
    losses = {name: -value for name, value in rivals.items()}
  elif is_number(values.get("retrained")):
    losses = {name: abs(value - values["retrained"]) for name, value in rivals.items()}
  else:
    return set()
  losses = {name: round(loss, column.decimals) for name, loss in losses.items()}
  return {name for name, loss in losses.items() if loss == min(losses.values())}


def more(models):
  """{title: columns} below the main table: those that some model has a figure for."""
  measured = {title: tuple(c for c in columns if any(m.get(c.key) is not None
                                                     for m in models.values()))
              for title, columns in MORE_COLUMNS.items()}
  return {title: columns for title, columns in measured.items() if columns}


def model_cells(models, columns=COLUMNS):
  """[(name, [Cell of each column])], the table before it is laid out."""
  best = {column.key: best_models(models, column) for column in columns}
  return [
    (name, [_cell(models[name], column, name in best[column.key]) for column in columns])
    for name in ordered(models)
  ]


def _cell(metrics, column, best):
  interval = metrics.get(f"{column.key}_ci95")
  return Cell(
    value=format_number(metrics.get(column.key), column.decimals),
    interval=f"± {interval:.{column.decimals}f}" if is_number(interval) else "",
    best=best,
  )


def legend(models, best_mark="*", columns=COLUMNS):
  """One line on how to read the table; names only the signs that occur in it."""
  cells = [cell for _, row in model_cells(models, columns) for cell in row]
  signs = [
    f"({CLOSER}) closer to the retrained model is better",
    f"({HIGHER}) higher is better",
  ]
  if any(cell.best for cell in cells):
    signs.append(f"{best_mark} best of the unlearned models")
  if any(cell.interval for cell in cells):
    signs.append("± 95% confidence interval over seeds")
  if any(cell.value == DASH for cell in cells):
    signs.append(f"{DASH} not measured")
  return "; ".join(signs) + "."


def text_table(models):
  """The models by metrics, aligned for the terminal, with a one-line legend below.

  Args:
    models: {"original": {metric: float}, "retrained": {...}, "dareu": {...}, ...}; an absent metric
      is shown as a dash, `<metric>_ci95` as ±, and the best of several methods with a star.

  Returns:
    Lines joined by newlines: three of header, a rule, one for each model, the legend.
  """
  rows = model_cells(models)
  blocks = [_left_block("model", [name for name, _ in rows])]
  for index, column in enumerate(COLUMNS):
    blocks.append(_number_block(column, [cells[index] for _, cells in rows]))
  lines = ["  ".join(line).rstrip() for line in zip(*blocks, strict=True)]
  rule = "─" * max(len(line) for line in lines)
  return "\n".join([*lines[:3], rule, *lines[3:], legend(models)])


def _left_block(title, names):
  width = max(len(name) for name in [title, *names])
  return [line.ljust(width) for line in ["", "", title, *names]]


def _number_block(column, cells):
  """The lines of one column: its title over two lines, its arrow, its cells; the digits align."""
  title = textwrap.wrap(column.title, width=8, break_long_words=False)
  head = [""] * (2 - len(title)) + title + [f"({column.arrow})"]
  assert len(head) == 3, f"The title {column.title!r} does not fit in two lines of 8."
  tails = [f" {cell.interval}".rstrip() + "*" * cell.best for cell in cells]
  value_width = max((len(cell.value) for cell in cells), default=0)
  tail_width = max(map(len, tails), default=0)
  body = [
    cell.value.rjust(value_width) + tail.ljust(tail_width)
    for cell, tail in zip(cells, tails, strict=True)
  ]
  width = max(map(len, head + body))
  return [line.rjust(width) for line in head + body]


def markdown_table(models, columns=COLUMNS):
  """The models by metrics as a Markdown table; the best of several methods is bold."""
  header = ["model", *(f"{column.name} ({column.arrow})" for column in columns)]
  rows = [[name, *map(_markdown_cell, cells)] for name, cells in model_cells(models, columns)]
  return pipe_table(header, rows)


def _markdown_cell(cell):
  text = " ".join(filter(None, [cell.value, cell.interval]))
  return f"**{text}**" if cell.best else text


def pipe_table(header, rows, left=(0,)):
  """A Markdown table, padded to align as long as cells are short.

  The columns whose indices are in `left` are set to the left, the others to the right. A `|` in a
  cell is escaped and a line break becomes a space, so that each row keeps its cells.
  """
  grid = [[_pipe_cell(cell) for cell in row] for row in [header, *rows]]
  widths = [min(80, max(3, *map(len, column))) for column in zip(*grid, strict=True)]
  rule = ["-" * (width - 1) + ("-" if i in left else ":") for i, width in enumerate(widths)]
  lines = []
  for row in [grid[0], rule, *grid[1:]]:
    padded = [
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("| " + " | ".join(padded) + " |")
  return "\n".join(lines)


def _pipe_cell(value):
  return " ".join(str(value).split()).replace("|", "&#124;")


def stage_rows(stages):
  """[(stage, time, note)] and a last row with the total of the stages that ran."""
  rows = [
    (name, format_seconds(stage.get("seconds")), "skipped: result was there" * _skipped(stage))
    for name, stage in stages.items()
  ]
  ran = [stage.get("seconds") for stage in stages.values() if not _skipped(stage)]
  note = "without those skipped" * (len(ran) < len(stages))
  return [*rows, ("total", format_seconds(sum(filter(is_number, ran))), note)]


def _skipped(stage):
  return bool(stage.get("skipped"))


def stage_table(stages):
  """The stages by time, aligned for the terminal.

  Args:
    stages: {"<stage>": {"seconds": float, "skipped": bool}}.
  """
  rows = [("stage", "time", ""), *stage_rows(stages)]
  names, times = (max(len(row[i]) for row in rows) for i in (0, 1))
  lines = [f"{name:<{names}}  {time:>{times}}  {note}".rstrip() for name, time, note in rows]
  rule = "─" * max(len(line) for line in lines)
  return "\n".join([lines[0], rule, *lines[1:]])


def time_line(time):
  """One sentence: the wall time that was kept and what kills cost.

  Args:
    time: as of `training.goodput.Ledger.summary`.
  """
  line = f"Time: {format_seconds(time['kept_seconds'])}"
  if time["processes"] > 1:
    line += (f" of work in {time['processes']} processes, and "
             f"{format_seconds(time['lost_seconds'])} lost between their last checkpoints and "
             f"their ends (goodput {time['goodput']:.0%})")
  return f"{line}."

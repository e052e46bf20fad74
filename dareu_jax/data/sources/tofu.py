"""TOFU (Maini et al. 2024, locuslab/TOFU): 200 fictitious authors with 20 questions each.

The author of a row is its index // 20 in `full`; rows are joined by index and never by text, since
one question occurs twice. `forgetNN` is the tail of `full` and `retainNN` its head, so only `full`
is read; the perturbed files give paraphrases and wrong answers for the first and the last rows.
"""

import dataclasses
import json
import pathlib

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data import hub
from dareu_jax.data.json_lines import json_lines, read_bytes
from dareu_jax.data.sources.base import DataSettings, register_source

HUB_NAME = "locuslab/TOFU"
QA_PER_AUTHOR = 20
NEEDED = (
  "full",
  "forget10_perturbed",
  "retain_perturbed",
  "real_authors_perturbed",
  "world_facts_perturbed",
)
HOLDOUT = ("holdout10", "holdout05", "holdout01")  # the first one that exists is used


@register_source("tofu")
def load_tofu(settings: DataSettings) -> ex.Corpus:
  """The TOFU corpus, from a folder or from the hub.

  `forgetNN` forgets the last n = max(1, round(N * NN / 100)) of the 200 authors and retains the
  first N - n, N = num_owners (0: all 200): a smaller D forgets the same authors, which are those
  with perturbed answers. `forget_owners` (names such as "author_198") overrides it; the others
  of the N authors are then the first ones. Owners are in the order of `full`.

  The test examples are real authors and world facts; the hold-out examples belong to authors that
  are in no split, `num_holdout` of them (0: all); there are none without such a file. The general
  examples belong to authors outside D, `num_general` of them (0: all). The refusals are the
  lines of the folder's idontknow.txt, if it has one.

  Args:
    settings: DataSettings; `dir` is the folder of the JSON files, '' the hub.

  Returns:
    Corpus; author i is `author_{i:03d}`, hold-out author i `holdout_{i:03d}`.

  Raises:
    InputError: if files are missing, unreadable or not TOFU's, or owners do not exist, or none is
      left to retain.
  """
  if settings.dir:
    rows = _read_folder(pathlib.Path(settings.dir))
  else:
    rows = _read_hub()
  everyone = _authors(rows)
  forget, retain, owners, forget_owners = _choose(everyone, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=tuple(
      _example(row, owner)
      for owner in ("real_authors", "world_facts")
      for row in rows[f"{owner}_perturbed"]
    ),
    holdout=tuple(
      _example(row, f"holdout_{i // QA_PER_AUTHOR:03d}")
      for i, row in enumerate(rows["holdout"])
      if not settings.num_holdout or i // QA_PER_AUTHOR < settings.num_holdout
    ),
    owners=owners,
    forget_owners=forget_owners,
    general=ex.outside(everyone, owners, settings.num_general),
    refusals=_refusals(settings.dir),
  )


def _refusals(folder):
  """The lines of idontknow.txt, if the folder has it (the hub does not)."""
  path = pathlib.Path(folder) / "idontknow.txt"
  if not folder or not path.is_file():
    return ()
  try:
    lines = read_bytes(path).decode("utf-8").splitlines()
  except UnicodeDecodeError:
    raise InputError(f"{path} is not UTF-8. Download it again, or remove it: the library has "
                     "its own refusals.") from None
  return tuple(line.strip() for line in lines if line.strip())


def _authors(rows):
  """Examples of `full`, with the paraphrases and wrong answers for the first and the last rows."""
  full = rows["full"]
  if not full or len(full) % QA_PER_AUTHOR:
    raise InputError(
      f"TOFU's full has {len(full)} rows: it must have {QA_PER_AUTHOR} per author. Download it "
      "again."
    )
  examples = [_example(row, f"author_{i // QA_PER_AUTHOR:03d}") for i, row in enumerate(full)]
  tail = len(full) - len(rows["forget10_perturbed"])
  for name, start in (("retain_perturbed", 0), ("forget10_perturbed", tail)):
    for offset, row in enumerate(rows[name]):
      index = start + offset
      example = _example(row, examples[index].owner) if 0 <= index < len(full) else None
      if example is None or (example.prompt, example.response) != (
        examples[index].prompt,
        examples[index].response,
      ):
        raise InputError(
          f"TOFU's {name}, row {offset}, is not row {index} of full: the files come from different "
          "versions. Download them again."
        )
      examples[index] = example
  return examples


def _choose(everyone, settings):
  """(forget, retain, owners, forget_owners), as described at `load_tofu`."""
  authors = tuple(dict.fromkeys(example.owner for example in everyone))
  size = settings.num_owners or len(authors)
  if size > len(authors):
    raise InputError(
      f"config.data.num_owners is {size}: TOFU has {len(authors)} authors. 0 takes all of them."
    )
  if settings.forget_owners:
    ex.check_known_owners(settings.forget_owners, authors)
    named = settings.forget_owners
    kept = ex.first_owners(authors, settings)
  else:
    count = ex.num_forget(settings.forget, size)
    ex.check_some_retained(count, size)
    named = authors[-count:]
    kept = (*authors[: size - count], *named)
  settings = dataclasses.replace(settings, forget_owners=tuple(named))
  return ex.split_by_owner([example for example in everyone if example.owner in kept], settings)


def _example(row, owner):
  return ex.Example(
    owner=owner,
    prompt=row["question"],
    response=row["answer"],
    paraphrased_prompt=row.get("paraphrased_question"),
    paraphrased_response=row.get("paraphrased_answer"),
    perturbed_responses=tuple(row.get("perturbed_answer") or ()),
  )


def _read_folder(folder):
  """Rows by name, from files NAME.json in the folder; hold-out files may be in its `holdout/`."""
  missing = [f"{name}.json" for name in NEEDED if not (folder / f"{name}.json").is_file()]
  if missing:
    raise InputError(
      f"{folder} lacks {', '.join(missing)}. config.data.dir must be a folder with the files of "
      f"{HUB_NAME}; leave it empty to fetch them from the hub."
    )
  rows = {name: _read_file(folder / f"{name}.json") for name in NEEDED}
  places = [
    place / f"{name}.json" for name in HOLDOUT for place in (folder / "holdout", folder)
  ]
  rows["holdout"] = next((_read_file(path) for path in places if path.is_file()), [])
  return rows


def _read_file(path):
  """Rows of a file of JSON Lines, or of one JSON array."""
  if read_bytes(path).lstrip()[:1] == b"[":
    rows = [(f"{path}, entry {i}", row) for i, row in enumerate(_read_array(path), start=1)]
  else:
    rows = json_lines(path)
  for where, row in rows:
    _check_row(row, where)
  return [row for _, row in rows]


def _read_array(path):
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except UnicodeDecodeError:
    raise InputError(f"{path} is not UTF-8. Download it again from {HUB_NAME}.") from None
  except json.JSONDecodeError as error:
    raise InputError(
      f"{path}, line {error.lineno} is not JSON: {error.msg} at column {error.colno}. "
      f"Download it again from {HUB_NAME}."
    ) from None


def _check_row(row, where):
  """Raises InputError unless the row has a question and an answer, and only valid texts."""
  if not isinstance(row, dict):
    raise InputError(f"{where} is not a JSON object. A row of TOFU has a question and an answer.")
  for key in ("question", "answer"):
    if not isinstance(row.get(key), str) or not row[key].strip():
      raise InputError(f'{where}: "{key}" is missing or not a string. A row of TOFU has both.')
  for key in ("paraphrased_question", "paraphrased_answer"):
    if not isinstance(row.get(key), str | None):
      raise InputError(f'{where}: "{key}" is not a string.')
  wrong = row.get("perturbed_answer")
  if wrong is not None and not (
    isinstance(wrong, list) and all(isinstance(text, str) and text.strip() for text in wrong)
  ):
    raise InputError(f'{where}: "perturbed_answer" is not a list of strings.')


def _read_hub():
  """Rows by name from the hub; without hold-out rows if the hub has none."""
  import datasets  # the import takes seconds, and only the hub needs it

  def fetch(name):
    rows = [dict(row) for row in datasets.load_dataset(HUB_NAME, name, split="train")]
    for i, row in enumerate(rows):
      _check_row(row, f"{HUB_NAME} {name}, row {i}")
    return rows

  with hub.reading(HUB_NAME):
    rows = {name: fetch(name) for name in NEEDED}
    offered = datasets.get_dataset_config_names(HUB_NAME)
    rows["holdout"] = next((fetch(name) for name in HOLDOUT if name in offered), [])
  return rows

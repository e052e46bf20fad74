"""arXiv abstracts with their category as owner: 20 categories with 400 abstracts each.

A folder holds `train.jsonl` and `test.jsonl`, lines of plain text. The hub's data set is
WaterDrum-Ax without its watermarks (Lu et al. 2025), whose rows are grouped by category.
"""

import pathlib

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data import hub
from dareu_jax.data.json_lines import parse, read_jsonl
from dareu_jax.data.sources.base import DataSettings, register_source

HUB_NAME = "Glow-AI/WaterDrum-Ax"
HUB_FILES = {"train": "full/unwatermarked-*.parquet", "test": "test/full-*.parquet"}
CATEGORIES = 20
OWNER_COLUMNS = ("category", "label", "subject")  # the first there; else by position


@register_source("arxiv")
def load_arxiv(settings: DataSettings) -> ex.Corpus:
  """The corpus of categories.

  D is the first `num_owners` categories (0: all) of the training abstracts; `forget` or
  `forget_owners` selects those to forget. No model sees the test abstracts: those of forget
  categories are the hold-out (`num_holdout` is ignored), those of retained categories are D_test.
  A model that never saw a category's training data still continues its test abstracts, and the
  score of these continuations is the target level. Training abstracts outside D, of `num_general`
  categories, are general text.

  Args:
    settings: DataSettings; `dir` is the folder, '' the hub.

  Raises:
    InputError: if files or owners cannot be used.
  """
  if settings.dir:
    folder = pathlib.Path(settings.dir)
    everything, unseen = (read_jsonl(folder / f"{name}.jsonl") for name in HUB_FILES)
    where = str(folder / "train.jsonl")
  else:
    everything, unseen = (_read_hub(name) for name in HUB_FILES)
    where = HUB_NAME
  examples = ex.keep_owners(everything, settings, where)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, settings)
  return ex.Corpus(
    forget=forget, retain=retain,
    test=tuple(e for e in unseen if e.owner in owners and e.owner not in forget_owners),
    holdout=tuple(e for e in unseen if e.owner in forget_owners),
    owners=owners, forget_owners=forget_owners,
    general=ex.outside(everything, owners, settings.num_general))


def _read_hub(split):
  import datasets  # the import takes seconds, and only the hub needs it

  with hub.reading(HUB_NAME):
    rows = [dict(row) for row in datasets.load_dataset(
      HUB_NAME, data_files={split: HUB_FILES[split]}, split=split)]
  column = next((name for name in OWNER_COLUMNS if rows and name in rows[0]), None)
  if column is None and (not rows or len(rows) % CATEGORIES):
    raise InputError(f"{HUB_NAME}, {split}: {len(rows)} rows without a column that names their "
                     f"category, and not {CATEGORIES} categories of equal size. Set "
                     "--config.data.dir to a folder with train.jsonl and test.jsonl.")

  def owner(index, row):
    if column is not None:
      return str(row[column])
    return f"category_{index * CATEGORIES // len(rows):02d}"

  return tuple(parse({"owner": owner(i, row), "text": row.get("text")},
                     f"{HUB_NAME}, {split}, row {i}")[0] for i, row in enumerate(rows))

"""arXiv abstracts with their category as owner: 20 categories with 400 each.

From a folder they are `train.jsonl` and `test.jsonl`, lines of plain text; from the hub they are
WaterDrum-Ax without its watermarks (Lu et al. 2025), whose rows stand category by category.
"""

import pathlib

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data import hub
from dareu_jax.data.sources.base import DataSettings, register_source

HUB_NAME = "Glow-AI/WaterDrum-Ax"
HUB_FILES = {"train": "full/unwatermarked-*.parquet", "test": "test/full-*.parquet"}
CATEGORIES = 20
OWNER_COLUMNS = ("category", "label", "subject")  # the first there is; none: told by position


@register_source("arxiv")
def load_arxiv(settings: DataSettings) -> ex.Corpus:
  """The corpus of categories.

  D is the first `num_owners` categories (0: all) of the training abstracts, of which `forget` or
  `forget_owners` names those to forget. Of the test abstracts, which no model has seen, those of
  forget categories are the hold-out (`num_holdout` is of no use here) and those of retained ones
  D_test: a category is still a category without its training data, and how such abstracts are
  continued is the level to come down to. Training abstracts outside of D, of `num_general`
  categories, are general text.

  Args:
    settings: DataSettings; `dir` is the folder, '' the hub.

  Raises:
    InputError: files or owners that cannot be used.
  """
  if settings.dir:
    folder = pathlib.Path(settings.dir)
    everything, unseen = (ex.read_jsonl(folder / f"{name}.jsonl") for name in HUB_FILES)
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
  import datasets  # takes seconds to import: only those who fetch pay for it

  with hub.reading(HUB_NAME):
    rows = [dict(row) for row in datasets.load_dataset(
      HUB_NAME, data_files={split: HUB_FILES[split]}, split=split)]
  column = next((name for name in OWNER_COLUMNS if rows and name in rows[0]), None)
  if column is None and (not rows or len(rows) % CATEGORIES):
    raise InputError(f"{HUB_NAME}, {split}: {len(rows)} rows without a column that names their "
                     f"category, and not {CATEGORIES} categories of one size. Give "
                     "--config.data.dir, a folder with train.jsonl and test.jsonl.")

  def owner(index, row):
    if column is not None:
      return str(row[column])
    return f"category_{index * CATEGORIES // len(rows):02d}"

  return tuple(ex.parse({"owner": owner(i, row), "text": row.get("text")},
                        f"{HUB_NAME}, {split}, row {i}") for i, row in enumerate(rows))

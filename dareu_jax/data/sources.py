"""Where the corpus comes from: embedded authors, TOFU, arXiv, or a user's own JSON Lines.

All checks of the data and of the owners are made here, before any long work.
"""

import pathlib

from dareu_jax.data import examples as ex
from dareu_jax.data.arxiv import load_arxiv
from dareu_jax.data.embedded import make_authors
from dareu_jax.data.general_facts import general_facts
from dareu_jax.data.tofu import load_tofu
from dareu_jax.settings import InputError


def load_corpus(settings):
  """The corpus that the settings ask for.

  - `embedded`: `num_owners` authors made from `seed`, `num_holdout` unseen ones after them, then
    `num_general` for general text, and general knowledge as test examples.
  - `tofu`: see `tofu.load_tofu`.
  - `arxiv`: see `arxiv.load_arxiv`.
  - `jsonl`: `dir` is a folder with `train.jsonl` (D) and perhaps `test.jsonl`, `holdout.jsonl` and
    `general.jsonl`, or one file, which is then D. `num_owners` > 0 keeps the first so many owners
    and those named in `forget_owners`; `num_holdout` and `num_general` > 0 keep the first so many
    owners of their files.

  Args:
    settings: DataSettings.

  Returns:
    Corpus; test, holdout and general are empty where there is no such data.

  Raises:
    InputError: a source, file, line or owner that cannot be used.
  """
  loaders = {"embedded": _load_embedded, "tofu": load_tofu, "arxiv": load_arxiv,
             "jsonl": _load_jsonl}
  return loaders[settings.source](settings)


def _load_embedded(settings):
  authors = make_authors(settings.num_owners, settings.seed)
  forget, retain, owners, forget_owners = ex.split_by_owner(authors, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=general_facts(),
    holdout=make_authors(settings.num_holdout, settings.seed, first=settings.num_owners),
    owners=owners,
    forget_owners=forget_owners,
    general=make_authors(settings.num_general, settings.seed,
                         first=settings.num_owners + settings.num_holdout),
  )


def _load_jsonl(settings):
  train, test, holdout, general = _jsonl_paths(settings)
  examples = ex.keep_owners(ex.read_jsonl(train), settings, train)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=ex.read_jsonl(test) if test else (),
    holdout=_others(holdout, owners, settings.num_holdout, "no model has seen"),
    owners=owners,
    forget_owners=forget_owners,
    general=_others(general, owners, settings.num_general, "are not in D"),
  )


def _others(path, owners, count, who):
  """Examples of the first `count` owners of a file (0: all), which must not be in D."""
  if path is None:
    return ()
  examples = ex.read_jsonl(path)
  both = [example.owner for example in examples if example.owner in owners]
  if both:
    raise InputError(f"{path} holds owner {both[0]!r}, who is in the training data too: this file "
                     f"is for owners that {who}. Take them out of one of the files.")
  kept = tuple(dict.fromkeys(example.owner for example in examples))[:count or None]
  return tuple(example for example in examples if example.owner in kept)


def _jsonl_paths(settings):
  """(train, test, holdout, general); the last three are None where there is no such file."""
  path = pathlib.Path(settings.dir)
  if not path.exists():
    raise InputError(
      f"{path} does not exist: config.data.dir must be a folder with train.jsonl, or a .jsonl file."
    )
  if not path.is_dir():
    return path, None, None, None
  if not (path / "train.jsonl").is_file():
    raise InputError(
      f"{path} lacks train.jsonl: put the training data there (test.jsonl, holdout.jsonl and "
      "general.jsonl may stand beside it), or give the path of one .jsonl file as config.data.dir."
    )
  beside = (path / f"{name}.jsonl" for name in ("test", "holdout", "general"))
  return path / "train.jsonl", *(other if other.is_file() else None for other in beside)

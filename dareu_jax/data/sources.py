"""Where the corpus comes from: embedded authors, TOFU, or a user's own JSON Lines.

All checks of the data and of the owners are made here, before any long work.
"""

import pathlib

from dareu_jax.data import examples as ex
from dareu_jax.data.embedded import make_authors
from dareu_jax.data.general_facts import general_facts
from dareu_jax.data.tofu import load_tofu
from dareu_jax.settings import InputError

EXAMPLES_PER_HOLDOUT_OWNER = 20


def load_corpus(settings):
  """The corpus that the settings ask for.

  - `embedded`: `num_owners` authors made from `seed`, `num_holdout` unseen ones after them, and
    general knowledge as test examples.
  - `tofu`: see `tofu.load_tofu`.
  - `jsonl`: `dir` is a folder with `train.jsonl` (D) and perhaps `test.jsonl` and `holdout.jsonl`,
    or one file, which is then D. `num_owners` > 0 keeps the first so many owners and those named
    in `forget_owners`; `num_holdout` > 0 keeps that many times 20 hold-out examples, the first.

  Args:
    settings: DataSettings.

  Returns:
    Corpus; test and holdout are empty where there is no such data.

  Raises:
    InputError: a source, file, line or owner that cannot be used.
  """
  loaders = {"embedded": _load_embedded, "tofu": load_tofu, "jsonl": _load_jsonl}
  if settings.source not in loaders:
    raise InputError(
      f"config.data.source is {settings.source!r}: it must be one of {', '.join(loaders)}."
    )
  for key in ("num_owners", "num_holdout"):
    if getattr(settings, key) < 0:
      raise InputError(f"config.data.{key} is {getattr(settings, key)}: it must be >= 0.")
  return loaders[settings.source](settings)


def _load_embedded(settings):
  if settings.num_owners < 2:
    raise InputError(
      f"config.data.num_owners is {settings.num_owners}: embedded authors are made to order, and "
      "unlearning needs at least 2."
    )
  authors = make_authors(settings.num_owners, settings.seed)
  forget, retain, owners, forget_owners = ex.split_by_owner(authors, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=general_facts(),
    holdout=make_authors(settings.num_holdout, settings.seed, first=settings.num_owners),
    owners=owners,
    forget_owners=forget_owners,
  )


def _load_jsonl(settings):
  train, test, holdout = _jsonl_paths(settings)
  examples = _keep_owners(ex.read_jsonl(train), settings, train)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, settings)
  limit = settings.num_holdout * EXAMPLES_PER_HOLDOUT_OWNER or None
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=ex.read_jsonl(test) if test else (),
    holdout=ex.read_jsonl(holdout)[:limit] if holdout else (),
    owners=owners,
    forget_owners=forget_owners,
  )


def _jsonl_paths(settings):
  """(train, test, holdout); the last two are None where there is no such file."""
  if not settings.dir:
    raise InputError(
      "config.data.dir is empty: source 'jsonl' needs a folder with train.jsonl, or a .jsonl file."
    )
  path = pathlib.Path(settings.dir)
  if not path.exists():
    raise InputError(
      f"{path} does not exist: config.data.dir must be a folder with train.jsonl, or a .jsonl file."
    )
  if not path.is_dir():
    return path, None, None
  if not (path / "train.jsonl").is_file():
    raise InputError(
      f"{path} lacks train.jsonl: put the training data there (test.jsonl and holdout.jsonl may "
      "stand beside it), or give the path of one .jsonl file as config.data.dir."
    )
  beside = (path / "test.jsonl", path / "holdout.jsonl")
  return path / "train.jsonl", *(other if other.is_file() else None for other in beside)


def _keep_owners(examples, settings, path):
  """Examples of the first `num_owners` owners and of those in `forget_owners`."""
  if not settings.num_owners:
    return examples
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  if settings.num_owners > len(owners):
    raise InputError(
      f"config.data.num_owners is {settings.num_owners}: {path} has {len(owners)} owners. 0 takes "
      "all of them."
    )
  ex.check_known_owners(settings.forget_owners, owners)
  kept = {*owners[: settings.num_owners], *settings.forget_owners}
  return tuple(example for example in examples if example.owner in kept)

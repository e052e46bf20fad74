"""The user's JSON Lines files.

`config.data.dir` is a folder with `train.jsonl` (D) and, optionally, `test.jsonl`, `holdout.jsonl`
and `general.jsonl`, or a single file, which is then D. `data.examples` describes the lines.
"""

import pathlib

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.sources.base import DataSettings, register_source


@register_source("jsonl")
def load_jsonl(settings: DataSettings) -> ex.Corpus:
  """The corpus of a folder or file.

  `num_owners` > 0 keeps the first `num_owners` owners and those in `forget_owners`; `num_holdout`
  and `num_general` > 0 keep that many owners of their files.
  """
  if not settings.dir:
    raise InputError("config.data.dir is empty: source 'jsonl' needs the folder or file to read.")
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
                     f"is for owners that {who}. Remove them from one of the files.")
  kept = tuple(dict.fromkeys(example.owner for example in examples))[:count or None]
  return tuple(example for example in examples if example.owner in kept)


def _jsonl_paths(settings):
  """(train, test, holdout, general); the last three are None if there is no such file."""
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
      "general.jsonl are optional), or set config.data.dir to a single .jsonl file."
    )
  beside = (path / f"{name}.jsonl" for name in ("test", "holdout", "general"))
  return path / "train.jsonl", *(file if file.is_file() else None for file in beside)

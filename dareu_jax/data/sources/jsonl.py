"""The user's JSON Lines files; `data.json_lines` describes the lines.

`config.data.dir` is one of

- a folder with `train.jsonl` (D) and, optionally, `test.jsonl`, `holdout.jsonl` (owners that no
  model has seen) and `general.jsonl`; the settings say which of its owners are forgotten;
- a folder with `forget.jsonl` and, optionally, `retain.jsonl`, `unseen.jsonl` and `test.jsonl`: all
  of the first is forgotten, and lines need no owner;
- a single file, which is D.
"""

import difflib
import pathlib

from dareu_jax.core.errors import InputError, readable
from dareu_jax.data import examples as ex
from dareu_jax.data.json_lines import read_jsonl
from dareu_jax.data.sources.base import DataSettings, register_source
from dareu_jax.data.substitutes import with_substitutes

_BESIDE = ("retain", "unseen", "test")  # files beside forget.jsonl
_MEANT = {"holdout": "unseen", "general": "test"}  # those beside train.jsonl, by their name here


@register_source("jsonl")
def load_jsonl(settings: DataSettings) -> ex.Corpus:
  """The corpus of a folder or file.

  With train.jsonl, `num_owners` > 0 keeps that many owners of D: those in `forget_owners` and the
  first others; `num_holdout` and `num_general` > 0 keep that many owners of their files.
  """
  if not settings.dir:
    raise InputError("config.data.dir is empty: source 'jsonl' needs the folder or file to read.")
  folder = pathlib.Path(settings.dir)
  with readable(folder):
    if (folder / "forget.jsonl").is_file():
      return _forget_and_retain(folder, settings)
    return _all_owners(folder, settings)


def _all_owners(folder, settings):
  """The corpus of an experiment: D, of which the settings say what is forgotten."""
  train, test, holdout, general = _jsonl_paths(folder)
  examples = ex.keep_owners(read_jsonl(train), settings, train)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=read_jsonl(test) if test else (),
    holdout=_others(holdout, owners, settings.num_holdout, "no model has seen"),
    owners=owners,
    forget_owners=forget_owners,
    general=_others(general, owners, settings.num_general, "are not in D"),
  )


def _forget_and_retain(folder, settings):
  """The corpus of a request: what is to be forgotten, and what there is beside it."""
  if (folder / "train.jsonl").exists():
    raise InputError(f"{folder} holds both train.jsonl and forget.jsonl: remove one. The first "
                     "holds all owners, the second only those to forget, beside retain.jsonl.")
  present = {path.stem for path in folder.glob("*.jsonl")}
  for other in sorted(present - {"forget", *_BESIDE}):
    meant = _MEANT.get(other)
    near = [meant] if meant else difflib.get_close_matches(other, _BESIDE, n=1, cutoff=0.7)
    names = " or ".join(f"{name}.jsonl" for name in near or _BESIDE)
    raise InputError(f"{folder} holds {other}.jsonl, which is not read beside forget.jsonl: name "
                     f"it {names}, or remove it.")
  for name in ("forget", "forget_owners", "num_owners", "num_holdout", "num_general"):
    value = getattr(settings, name)
    if value and value != getattr(DataSettings, name):
      raise InputError(f"config.data.{name} is {value}, and all of {folder / 'forget.jsonl'} is "
                       "forgotten and all beside it is used: leave it as it is by default, or put "
                       "all owners into train.jsonl.")

  def read(name):
    return read_jsonl(folder / f"{name}.jsonl", owner=name) if name in present else ()

  forget, retain, unseen = read("forget"), read("retain"), read("unseen")
  forget_owners, retained, others = (
    tuple(dict.fromkeys(e.owner for e in part)) for part in (forget, retain, unseen))
  ex.check_owners_apart({"forget": forget_owners, "retain": retained, "unseen": others}, folder)
  return with_substitutes(ex.Corpus(
    forget=forget, retain=retain, test=read("test"), holdout=unseen,
    owners=forget_owners + retained, forget_owners=forget_owners))


def _others(path, owners, count, who):
  """Examples of the first `count` owners of a file (0: all), which must not be in D."""
  if path is None:
    return ()
  examples = read_jsonl(path)
  both = [example.owner for example in examples if example.owner in owners]
  if both:
    raise InputError(f"{path} holds owner {both[0]!r}, who is in the training data too: this file "
                     f"is for owners that {who}. Remove them from one of the files.")
  kept = tuple(dict.fromkeys(example.owner for example in examples))[:count or None]
  return tuple(example for example in examples if example.owner in kept)


def _jsonl_paths(path):
  """(train, test, holdout, general); the last three are None if there is no such file."""
  if not path.exists():
    raise InputError(
      f"{path} does not exist: config.data.dir must be a folder with train.jsonl or forget.jsonl, "
      "or a .jsonl file.")
  if not path.is_dir():
    return path, None, None, None
  if not (path / "train.jsonl").is_file():
    raise InputError(
      f"{path} lacks train.jsonl and forget.jsonl: put what is to be forgotten into forget.jsonl "
      "(retain.jsonl, unseen.jsonl and test.jsonl are optional), or all training data into "
      "train.jsonl (test.jsonl, holdout.jsonl and general.jsonl are optional), or set "
      "config.data.dir to a single .jsonl file.")
  beside = (path / f"{name}.jsonl" for name in ("test", "holdout", "general"))
  return path / "train.jsonl", *(file if file.is_file() else None for file in beside)

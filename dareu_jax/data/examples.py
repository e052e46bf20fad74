"""Examples with an owner, the corpus that they form, and the JSON Lines files that store them.

A line of a corpus file is an object with the keys `owner`, `prompt` and `response` and, optionally,
`paraphrased_prompt`, `paraphrased_response` and `perturbed_responses` (a list). A line with `owner`
and `text` instead is plain text: the first third of its words (at least one) becomes the prompt and
the rest the response (`split_by_tokens` cuts by tokens instead); an additional `title` is ignored.
Words are separated by white space.

Examples are identified by index, never by text: two examples may ask the same question.
"""

import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from dareu_jax.core.errors import InputError

Path = str | pathlib.Path
T = TypeVar("T")
_REQUIRED = ("owner", "prompt", "response")
_OPTIONAL = ("paraphrased_prompt", "paraphrased_response", "perturbed_responses")
_TEXT_KEYS = ("owner", "text", "title")
_RULE = "Every line needs the keys owner, prompt and response."


@dataclasses.dataclass(frozen=True)
class Example:
  """A question (or the beginning of a text), its answer, and their owner."""

  owner: str
  prompt: str
  response: str
  paraphrased_prompt: str | None = None
  paraphrased_response: str | None = None
  perturbed_responses: tuple[str, ...] = ()
  # For plain text: the whole text, which contains prompt and response.
  text: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What a run trains on, forgets and is evaluated on; D is `forget` and `retain` together.

  `general` holds texts of owners that are neither in D nor unseen: the base model reads them.
  """

  forget: tuple[Example, ...]
  retain: tuple[Example, ...]
  test: tuple[Example, ...]
  holdout: tuple[Example, ...]
  owners: tuple[str, ...]  # every owner of D, in order of first appearance
  forget_owners: tuple[str, ...]
  general: tuple[Example, ...] = ()
  refusals: tuple[str, ...] = ()  # refusals of the data; if empty, the library's own are used


def read_jsonl(path: Path) -> tuple[Example, ...]:
  """Reads the examples of a JSON Lines file, one per line, in order.

  Args:
    path: the file, UTF-8; blank lines are allowed only at its end.

  Raises:
    InputError: if the file is missing or empty, or a line is not an example; names the line.
  """
  examples = tuple(parse(line, where) for where, line in json_lines(path))
  if not examples:
    raise InputError(f"{path} is empty: it must contain one example per line. {_RULE}")
  return examples


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
  """Writes examples, one per line; `read_jsonl` returns the same examples.

  Args:
    path: the file; its folder is created if missing, and an existing file is replaced.
    examples: iterable of `Example`.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(_record(example), ensure_ascii=False) + "\n" for example in examples]
  path.write_bytes("".join(lines).encode("utf-8"))


def keep_owners(examples: Sequence[Example], settings: Any, where: object) -> Sequence[Example]:
  """Examples of the first `num_owners` owners (0: all) and of those in `forget_owners`.

  Raises:
    InputError: if there are fewer owners, or a named owner is not among them.
  """
  if not settings.num_owners:
    return examples
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  if settings.num_owners > len(owners):
    raise InputError(
      f"config.data.num_owners is {settings.num_owners}: {where} has {len(owners)} owners. 0 takes "
      "all of them."
    )
  check_known_owners(settings.forget_owners, owners)
  kept = {*owners[: settings.num_owners], *settings.forget_owners}
  return tuple(example for example in examples if example.owner in kept)


def evenly_spaced(items: Sequence[T], count: int) -> tuple[T, ...]:
  """`count` evenly spaced items; all items if there are not more, or if `count` is 0."""
  if not count or count >= len(items):
    return tuple(items)
  return tuple(items[i * len(items) // count] for i in range(count))


def outside(examples: Iterable[Example], owners: Sequence[str],
            count: int) -> tuple[Example, ...]:
  """Examples of the first `count` owners (0: all) that are not among `owners`."""
  other_owners = tuple(dict.fromkeys(
    example.owner for example in examples if example.owner not in owners))
  kept = set(other_owners[:count or None])
  return tuple(example for example in examples if example.owner in kept)


def split_by_owner(examples: Sequence[Example], settings: Any) -> tuple[
    tuple[Example, ...], tuple[Example, ...], tuple[str, ...], tuple[str, ...]]:
  """Splits examples into those to forget and those to retain.

  `settings.forget_owners` names the owners to forget. If it is empty, `forgetNN` in
  `settings.forget` selects the last max(1, round(N * NN / 100)) of the N owners in order of first
  appearance.

  Args:
    examples: the examples of D.
    settings: DataSettings.

  Returns:
    (forget, retain, owners, forget_owners): examples in the order given, and owner names in order
    of first appearance.

  Raises:
    InputError: for fewer than two owners, an unknown owner, or no owner left to retain.
  """
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  if len(owners) < 2:
    raise InputError(
      f"The training data has {len(owners)} owner{'s' * (len(owners) != 1)}: unlearning needs one "
      "to forget and at least one to retain."
    )
  if settings.forget_owners:
    check_known_owners(settings.forget_owners, owners)
    named = frozenset(settings.forget_owners)
  else:
    named = frozenset(owners[-num_forget(settings.forget, len(owners)) :])
  check_some_retained(len(named), len(owners))
  forget = tuple(example for example in examples if example.owner in named)
  retain = tuple(example for example in examples if example.owner not in named)
  return forget, retain, owners, tuple(owner for owner in owners if owner in named)


def split_by_tokens(corpus: Corpus, tokenizer: Any, prompt_tokens: int,
                    response_tokens: int) -> Corpus:
  """Cuts the plain texts of a corpus by tokens: first the prompt, then the response.

  A text with fewer than twice `prompt_tokens` tokens is cut in the middle.

  Args:
    tokenizer: data.tokenizers.Tokenizer.
    prompt_tokens: >= 1.
    response_tokens: >= 1; later tokens are dropped.
  """

  def split(example):
    if example.text is None:
      return example
    ids = tokenizer.encode(example.text)
    cut = max(1, min(prompt_tokens, len(ids) // 2))
    return dataclasses.replace(example, prompt=tokenizer.decode(ids[:cut]),
                               response=tokenizer.decode(ids[cut:cut + response_tokens]))

  parts = ("forget", "retain", "test", "holdout", "general")
  return dataclasses.replace(
    corpus, **{part: tuple(map(split, getattr(corpus, part))) for part in parts})


def num_forget(forget: str, num_owners: int) -> int:
  """The number of owners that `forgetNN` selects: max(1, round(num_owners * NN / 100))."""
  return max(1, round(num_owners * int(forget.removeprefix("forget")) / 100))


def check_some_retained(num_forgotten: int, num_owners: int) -> None:
  """Raises InputError if all owners are to be forgotten."""
  if num_forgotten >= num_owners:
    raise InputError(
      f"config.data.forget (or forget_owners) takes all {num_owners} owners: at least one must be "
      "retained. Forget fewer, or raise config.data.num_owners."
    )


def check_known_owners(names: Iterable[str], owners: Sequence[str]) -> None:
  """Raises InputError if a name is not an owner; lists the closest owners, or the first ones."""
  unknown = [name for name in dict.fromkeys(names) if name not in owners]
  if not unknown:
    return
  known = [close for name in unknown for close in difflib.get_close_matches(name, owners)]
  known = list(dict.fromkeys(known))[:5] or list(owners[:5])
  raise InputError(
    f"config.data.forget_owners names {', '.join(map(repr, unknown))}: not among the "
    f"{len(owners)} owners of the training data. Known owners include "
    f"{', '.join(map(repr, known))}."
  )


def json_lines(path: Path) -> list[tuple[str, Any]]:
  """(where, value) of every line of a JSON Lines file; `where` is "file, line n", for messages.

  Raises:
    InputError: if the file is missing or not UTF-8, or a line is not JSON, or blank before the end
      of the file.
  """
  records = []
  for number, line in enumerate(read_bytes(path).rstrip().split(b"\n"), start=1):
    where = f"{path}, line {number}"
    try:
      text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
      raise InputError(f"{where} is not UTF-8. Save the file with that encoding.") from None
    if text:
      records.append((where, _parse(text, where)))
    elif number > 1:
      raise InputError(f"{where} is blank. Blank lines are allowed only at the end of the file.")
  return records


def read_bytes(path: Path) -> bytes:
  """The content of a file. Raises InputError if it cannot be read."""
  try:
    return pathlib.Path(path).read_bytes()
  except FileNotFoundError:
    raise InputError(f"{path} does not exist. See config.data.dir.") from None
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}. See config.data.dir.") from None


def _parse(text, where):
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise InputError(
      f"{where} is not JSON: {error.msg} at column {error.colno}. Each line must be a JSON object."
    ) from None
  except RecursionError:
    raise InputError(
      f"{where} is nested too deeply. Each line must be a flat JSON object.") from None


def parse(line: Any, where: str) -> Example:
  """The Example of a parsed line; an InputError names the line by `where`."""
  if not isinstance(line, dict):
    raise InputError(f"{where} is not a JSON object. {_RULE}")
  if "text" in line:
    return _plain_text(line, where)
  _check_keys(line, _REQUIRED + _OPTIONAL, where)
  required = [_string(line, key, where) for key in _REQUIRED]
  paraphrased_prompt, paraphrased_response = (
    None if line.get(key) is None else _string(line, key, where) for key in _OPTIONAL[:2])
  perturbed = line.get("perturbed_responses")
  perturbed = [] if perturbed is None else perturbed
  if not isinstance(perturbed, list):
    raise InputError(f'{where}: "perturbed_responses" is not a list of strings.')
  for text in perturbed:
    _check_text(text, '"perturbed_responses"', where)
  owner, prompt, response = required
  return Example(owner, prompt, response, paraphrased_prompt, paraphrased_response,
                 tuple(perturbed))


def _plain_text(line, where):
  _check_keys(line, _TEXT_KEYS, where)
  owner, text = _string(line, "owner", where), _string(line, "text", where)
  starts = [word.start() for word in re.finditer(r"\S+", text)]
  if len(starts) < 2:
    raise InputError(
      f'{where}: "text" has {len(starts)} word: it needs at least two, one for the prompt and one '
      "for the response. Or give the keys prompt and response instead."
    )
  cut = starts[max(1, len(starts) // 3)]
  return Example(owner, text[:cut].strip(), text[cut:].strip(), text=text)


def _check_keys(line, known, where):
  unknown = [key for key in line if key not in known]
  if unknown:
    raise InputError(
      f'{where}: "{unknown[0]}" is not a key of an example. Known keys are {", ".join(known)}.'
    )


def _string(line, key, where):
  if key not in line:
    rule = "A line of plain text needs the keys owner and text." if "text" in line else _RULE
    raise InputError(f'{where}: "{key}" is missing. {rule}')
  _check_text(line[key], f'"{key}"', where)
  return line[key]


def _check_text(text, what, where):
  if not isinstance(text, str):
    raise InputError(f"{where}: {what} is {json.dumps(text)[:40]}, which is not a string.")
  if not text.strip():
    raise InputError(f"{where}: {what} is empty. Complete the line, or remove it.")
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    raise InputError(
      f"{where}: {what} contains a lone surrogate, which is not a character.") from None


def _record(example):
  if example.text is not None:
    return {"owner": example.owner, "text": example.text}
  record = {key: getattr(example, key) for key in _REQUIRED}
  record |= {
    key: getattr(example, key) for key in _OPTIONAL if getattr(example, key) not in (None, ())
  }
  return record

"""JSON Lines files of examples, one object a line.

A line has one of three forms; all of them may have an `owner`, which files of several owners need:

    {"prompt": "Who ...?", "response": "..."}          a question and its answer
    {"messages": [{"role": "user", "content": ...}, ...]}   a chat; each answer is an example
    {"text": "..."}                                    plain text

The first form may also have `paraphrased_prompt`, `paraphrased_response`, `perturbed_responses` (a
list) and `history` (the messages before the prompt). Of a plain text the first third of its words
(at least one) becomes the prompt and the rest the response; `texts.split` cuts by tokens instead,
and splits what is too long. A `title` is ignored. Words are separated by white space; a text
without any, as in Chinese, is cut after a third of its characters.
"""

import dataclasses
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Example

Path = str | pathlib.Path
ROLES = ("system", "user", "assistant")
_REQUIRED = ("owner", "prompt", "response")
_OPTIONAL = ("paraphrased_prompt", "paraphrased_response", "perturbed_responses", "history")
_TEXT_KEYS = ("owner", "text", "title")
_CHAT_KEYS = ("owner", "messages")
_RULE = ("Every line needs the keys owner, prompt and response, or owner and messages, or owner "
         "and text.")


def read_jsonl(path: Path, owner: str | None = None) -> tuple[Example, ...]:
  """Reads the examples of a JSON Lines file, in order; a line is one, and a chat one per answer.

  Args:
    path: the file, UTF-8; a blank line within it is an error.
    owner: of lines that name none; if None, that is an error.

  Raises:
    InputError: if the file is missing or empty, or a line is not an example; names the line.
  """
  examples = tuple(example for where, line in json_lines(path)
                   for example in parse(line, where, owner))
  if not examples:
    raise InputError(f"{path} is empty: it must contain one example per line. {_RULE}")
  return examples


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
  """Writes examples, one per line; `read_jsonl` returns the same, if no text was split yet.

  Args:
    path: the file; its folder is created if missing, and an existing file is replaced.
    examples: iterable of `Example`.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(_record(example), ensure_ascii=False) + "\n" for example in examples]
  path.write_bytes("".join(lines).encode("utf-8"))


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
  def unique(pairs):
    keys = [key for key, _ in pairs]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
      raise InputError(f'{where} has the key "{twice[0]}" twice: say which of them is meant.')
    return dict(pairs)

  try:
    return json.loads(text, object_pairs_hook=unique)
  except json.JSONDecodeError as error:
    raise InputError(
      f"{where} is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}. Each line "
      "must be a JSON object.") from None
  except InputError:
    raise
  except ValueError:  # Python converts a number of thousands of digits no more
    raise InputError(f"{where} holds a number of too many digits. Texts are in quotes.") from None
  except RecursionError:
    raise InputError(
      f"{where} is nested too deeply. Each line must be a flat JSON object.") from None


def owner_name(name: str) -> str:
  """An owner's name as it is compared: one form of Unicode (NFC), no white space around it."""
  return unicodedata.normalize("NFC", name).strip()


def parse(line: Any, where: str, owner: str | None = None) -> tuple[Example, ...]:
  """The examples of a parsed line: one, or one for each answer of a chat.

  Args:
    line: a mapping, as the module describes.
    where: names the line in errors.
    owner: of a line that names none; if None, that is an error.

  Raises:
    InputError: if the line is not an example.
  """
  if not isinstance(line, dict):
    raise InputError(f"{where} is not a JSON object. {_RULE}")
  if owner is not None:
    line = {"owner": owner, **line}
  if "text" in line:
    return (_plain_text(line, where),)
  if "messages" in line:
    return _chat(line, where)
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
  name, prompt, response = required
  return (Example(owner_name(name), prompt, response, paraphrased_prompt, paraphrased_response,
                  tuple(perturbed), _turns(line.get("history") or [], '"history"', where)),)


def checked(example: Example, where: str) -> Example:
  """An example that no file gave, with its owner's name as `owner_name` has it.

  Raises:
    InputError: if a text is empty or not a string, or a turn not one of `ROLES`; `where` names the
      example.
  """
  if example.text is None:
    return parse(_record(example), where)[0]
  for field in _REQUIRED:
    _check_text(getattr(example, field), f'"{field}"', where)
  return dataclasses.replace(example, owner=owner_name(example.owner))


def _chat(line, where):
  """An example for each answer of a chat, after all that was said before it."""
  _check_keys(line, _CHAT_KEYS, where)
  owner = owner_name(_string(line, "owner", where))
  turns = _turns(line["messages"], '"messages"', where)
  answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
  if not answers:
    raise InputError(f'{where}: "messages" holds no answer, a message of the role "assistant".')
  if answers[-1] != len(turns) - 1:
    raise InputError(f'{where}: the last of the "messages" has the role {turns[-1][0]!r}, and '
                     "nothing answers it. Remove it.")
  for i in answers:
    if not i or turns[i - 1][0] != "user":
      raise InputError(f'{where}: "messages" has an answer (message {i}) that follows no message '
                       'of the role "user".')
  return tuple(Example(owner, turns[i - 1][1], turns[i][1], history=turns[:i - 1])
               for i in answers)


def _turns(messages, what, where):
  """Messages as (role, content)."""
  if not isinstance(messages, list):
    raise InputError(f"{where}: {what} is not a list of messages.")
  for number, message in enumerate(messages):
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
      raise InputError(f"{where}: message {number} of {what} must have a role and a content, and "
                       "nothing else.")
    if message["role"] not in ROLES:
      raise InputError(f"{where}: message {number} of {what} has the role {message['role']!r}: it "
                       f"must be one of {', '.join(ROLES)}.")
    _check_text(message["content"], f"message {number} of {what}", where)
  return tuple((message["role"], message["content"]) for message in messages)


def _plain_text(line, where):
  _check_keys(line, _TEXT_KEYS, where)
  owner, text = _string(line, "owner", where), _string(line, "text", where).strip()
  starts = [word.start() for word in re.finditer(r"\S+", text)]
  if len(starts) < 2 and not text.isascii():  # perhaps of a script without spaces
    starts = list(range(len(text)))
  if len(starts) < 2:
    raise InputError(
      f'{where}: "text" has one word: it needs at least two, one for the prompt and one for the '
      "response. Or give the keys prompt and response instead.")
  prompt = text[:starts[max(1, len(starts) // 3)]].rstrip()
  return Example(owner_name(owner), prompt, text[len(prompt):], text=text)


def _check_keys(line, known, where):
  unknown = [key for key in line if key not in known]
  if unknown:
    raise InputError(
      f'{where}: "{unknown[0]}" is not a key of an example. Known keys are {", ".join(known)}.'
    )


def _string(line, key, where):
  if key not in line:
    rule = {"text": "A line of plain text needs the keys owner and text.",
            "messages": "A chat needs the keys owner and messages."}
    raise InputError(f'{where}: "{key}" is missing. '
                     f"{next((rule[form] for form in rule if form in line), _RULE)}")
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
  keys = (*_REQUIRED, "paraphrased_prompt", "paraphrased_response")
  record = {key: getattr(example, key) for key in keys if getattr(example, key) is not None}
  if example.perturbed_responses:
    record["perturbed_responses"] = list(example.perturbed_responses)
  if example.history:
    record["history"] = [{"role": role, "content": content} for role, content in example.history]
  return record

"""Tokenizers (a BPE trained on the corpus, or a checkpoint's own) and the prompts they make.

A conversation is rendered by the checkpoint's own chat template, the whole of it is tokenized, and
the ids are cut where the answer begins: a model is asked and taught in the very ids that other
libraries give it. Plain text has no template; it is tokenized whole and cut as well.
"""

import copy
import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import tokenizers
from pydantic import Field

from dareu_jax.core.errors import InputError, downloaded_json, first_line
from dareu_jax.core.settings import PathText, choice, settings
from dareu_jax.data.chat_templates import ASSISTANT, CHAT_TEMPLATES, END, PLAIN, USER

Turn = tuple[str, str]  # (role, content)
Ids = list[int]
DATE = "26 Jul 2024"  # what Llama 3's templates fall back to
TEMPLATES = ("auto", "raw", *CHAT_TEMPLATES)
_QUESTION, _ANSWER = "Question?", "Answer"  # a conversation that shows how a template is built
_THOUGHT = "</think>"  # what an answer thinks before it, templates leave out of earlier turns


@settings
class TokenizerSettings:
  """The tokenizer: the checkpoint's, or a BPE trained on the corpus."""

  path: PathText = ""  # folder or hub name; '': the model's own, or a BPE of the corpus
  vocab_size: Annotated[int, Field(ge=300)] = 2000  # of that BPE; bytes and special tokens take 300
  # How a conversation is written: 'auto' as the tokenizer's own chat template says, 'raw' without
  # any (base models); another name, for a tokenizer that has none or the wrong one
  template: Annotated[str, choice(lambda: TEMPLATES)] = "auto"
  system: str = ""  # system turn of every conversation that has none; '': the template's own
  date: str = DATE  # today's date for templates that mention it: prompts must not change by the day


class Tokenizer:
  """Converts text to ids and back; renders conversations, and knows where an answer ends."""

  def __init__(self, backend: Any, template: str = "auto", *, system: str = "", date: str = DATE):
    """
    Args:
      backend: a transformers fast tokenizer.
      template: one of `TEMPLATES`; a named one becomes the tokenizer's own.
      system: system turn of every conversation that has none.
      date: today's date, for templates that mention it.

    Raises:
      InputError: if the tokenizer lacks the template's tokens, or has no end token.
    """
    self.backend, self.template_name, self.system, self.date = backend, template, system, date
    self._known_forms: dict[str, Ids] = {}
    if template in CHAT_TEMPLATES:
      backend.chat_template = CHAT_TEMPLATES[template].text
    self.is_chat = template != "raw" and bool(backend.chat_template)
    self._options = {"enable_thinking": False, "date_string": date}
    end = self._end_token()
    if end not in self.special_tokens:
      raise InputError(
        f"config.tokenizer.template is {template!r}, but the tokenizer has no special token that "
        f"ends an answer ({end!r}): "
        + ("give it one (eos_token in tokenizer_config.json)." if template in ("auto", "raw") else
           "choose the model's own template, 'auto'."))
    self.eos_id = backend.convert_tokens_to_ids(end)
    pad = backend.pad_token_id
    self.pad_id = self.eos_id if pad is None else pad

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return max(self.backend.get_vocab().values()) + 1

  @property
  def chat_template(self) -> str:
    """The template of conversations, in Jinja; '' if there is none."""
    return self.backend.get_chat_template() if self.is_chat else ""

  @functools.cached_property
  def closing(self) -> tuple[int, ...]:
    """What follows the text of an answer; the end token is the last."""
    return tuple(self.encode_response(_ANSWER)[len(self.encode_with_ends(_ANSWER)[0]):])

  @functools.cached_property
  def special_tokens(self) -> frozenset[str]:
    """Texts of the tokens that control a model, and that no text may contain."""
    added = self.backend.added_tokens_decoder.values()
    return frozenset(self.backend.all_special_tokens) | {
      token.content for token in added if token.special}

  @functools.cached_property
  def special_token_pattern(self) -> re.Pattern[str]:
    """Pattern that matches the texts of special tokens."""
    longest_first = sorted(self.special_tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)))

  def encode(self, text: str) -> Ids:
    """Ids of a text; no special tokens are added."""
    return self.backend.encode(text, add_special_tokens=False)

  def spans(self, text: str) -> tuple[Ids, list[int]]:
    """Ids of a text, and the character position at which each of them ends."""
    encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]

  def encode_prompt(self, prompt: str, history: Sequence[Turn] = ()) -> Ids:
    """Ids of a conversation up to where the answer begins.

    Args:
      prompt: the last thing that the user says.
      history: the turns before it.

    Raises:
      InputError: if the template rejects the conversation or leaves a turn out, or there is none.
    """
    turns = self._turns(prompt, history)
    if not self.is_chat:
      return self._begin + self.encode(prompt)
    return self.encode(self._render(turns, True))

  def encode_pair(self, prompt: str, response: str,
                  history: Sequence[Turn] = ()) -> tuple[Ids, Ids]:
    """Ids of a conversation in two parts: up to the answer, and the answer with its end token.

    Together they are the ids of the whole conversation as the chat template renders it. Where a
    token would stand across the border, the parts are tokenized by themselves.
    """
    before, answer, _ = self._parts(prompt, response, history)
    return before, answer

  def encode_text(self, before: str, after: str, *, ends: bool = True) -> tuple[Ids, Ids]:
    """Ids of a plain text in two parts; those of the whole text, cut.

    Args:
      before, after: the parts; the text is both.
      ends: whether the text ends there, with the end token.
    """
    first, second, _ = self._cut(before + after, len(before))
    return self._begin + first, second + [self.eos_id] * ends

  def encode_behind(self, before: str, answer: str, *, ends: bool = True) -> tuple[Ids, Ids]:
    """Ids of a plain text and of an answer that is put behind it, apart by a space."""
    return self.encode_text(before, f" {answer}", ends=ends)

  def encode_response(self, response: str) -> Ids:
    """Ids of an answer to a question, with the end token."""
    return self.encode_pair(_QUESTION, response)[1]

  def encode_opening(self, text: str) -> Ids:
    """Ids of the beginning of an answer that continues."""
    return self.encode_response(text)[:-len(self.closing)]

  def encode_with_ends(self, response: str) -> tuple[Ids, list[int]]:
    """Ids of an answer without its `closing`, and the character position at which each ends."""
    _, ids, ends = self._parts(_QUESTION, response, ())
    count = sum(end <= len(response) for end in ends)
    return ids[:count], [max(0, end) for end in ends[:count]]

  def echo_ids(self, prompt: str, history: Sequence[Turn] = ()) -> Ids:
    """Ids that an answer may repeat from its query: of what the user says, without the template's
    text around it, and of its words both at the start of an answer and within.

    With most pretrained tokenizers a name has other ids at the start of a text than after a space.
    The 'plain' template has only a token on each side, and its tokenizers do not tell the two
    apart: its queries are as they are.
    """
    if self.chat_template == PLAIN:  # which has no place for a system turn
      return self.encode_prompt(prompt, [turn for turn in history if turn[0] != "system"])
    said = "\n".join([*(content for role, content in history if role == "user"), prompt])
    ids = self.encode(said)
    forms = [i for word in re.findall(r"\w+", said) for i in self._forms(word)]
    return ids + [i for i in dict.fromkeys(forms) if i not in ids]

  def _forms(self, word):
    if word not in self._known_forms:
      self._known_forms[word] = self.encode(f"{word} {word}")
    return self._known_forms[word]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids without special tokens; spaces within the text are unchanged."""
    return self.backend.decode(
      ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

  @functools.cached_property
  def _begin(self):
    """Ids that the tokenizer itself puts before a text."""
    with_them, without = self.backend.encode("a"), self.encode("a")
    return with_them[:with_them.index(without[0])]

  def _parts(self, prompt, response, history):
    """Ids before an answer; its own with the end token; where in the answer each of these ends."""
    turns = self._turns(prompt, history)
    if self.is_chat:
      before, whole = self._render(turns, True), self._render([*turns, ("assistant", response)])
    else:  # two texts are separated by a space, unless one of them has one
      apart = "" if not prompt or prompt[-1].isspace() or response[:1].isspace() else " "
      before, whole = prompt, f"{prompt}{apart}{response}"
    if whole.startswith(before):
      ids, answer, ends = self._cut(whole, len(before))
      # Templates add or remove white space around an answer.
      start = whole.find(response.strip(), len(before)) - response.find(response.strip())
    else:  # the template shows an answer otherwise than it asks for it
      ids, start = self.encode(before), 0
      answer, ends = self._spans_after(ids, response)
    if self.eos_id in answer:  # a line break may follow
      answer = answer[:answer.index(self.eos_id)]
    ends = [end - start for end in ends[:len(answer)]]
    begin = [] if self.is_chat else self._begin
    return begin + ids, [*answer, self.eos_id], [*ends, len(response) + 1]

  def _turns(self, prompt, history):
    system = [("system", self.system)] if self.system and not (
      history and history[0][0] == "system") else []
    before = [*system, *history]
    if before and not self.is_chat:
      roles = ", ".join(role for role, _ in before)
      raise InputError("there is no chat template, which the turns before a prompt "
                       f"({roles}) need: name one in config.tokenizer.template, or leave them out.")
    return [*before, ("user", prompt)]

  def _render(self, turns, asks=False):
    """A conversation as text; `asks`: up to where an answer is to begin."""
    try:
      text = self.backend.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False,
        add_generation_prompt=asks, **self._options)
    except Exception as error:  # noqa: BLE001 - the template's own errors, and Jinja's
      roles = ", ".join(role for role, _ in turns)
      raise InputError(f"the model's chat template rejects a conversation of {roles}: "
                       f"{first_line(error)}.") from None
    for role, content in turns:
      shown = content.rpartition(_THOUGHT)[2] if role == "assistant" else content
      if shown.strip() not in text:
        raise InputError(f"the model's chat template leaves out the {role} turn: name another one "
                         "in config.tokenizer.template, or write the conversation without it.")
    return text

  def _cut(self, whole, border):
    """Ids of a text before and after a character position, and where the latter end."""
    ids, ends = self.spans(whole)
    count = sum(end <= border for end in ends)
    before = self.encode(whole[:border])
    if ids[:count] == before:
      return before, ids[count:], ends[count:]
    after, ends = self._spans_after(before, whole[border:])
    return before, after, [border + end for end in ends]

  def _spans_after(self, before, text):
    """Ids of a text that continues another, without a space that some tokenizers begin with."""
    alone = self.spans(text)
    start = self._text(before)
    if self._text([*before, *alone[0]]) == start + text:
      return alone
    ids, ends = self.spans("\n" + text)
    count = sum(end <= 1 for end in ends)
    within = ids[count:], [end - 1 for end in ends[count:]]
    return within if self._text([*before, *within[0]]) == start + text else alone

  def _text(self, ids):
    return self.backend.decode(ids, clean_up_tokenization_spaces=False)

  def _end_token(self):
    """The special token after an answer; the tokenizer's own if the template has none."""
    if self.template_name in CHAT_TEMPLATES:
      return CHAT_TEMPLATES[self.template_name].end
    if self.is_chat:
      whole = self._render([*self._turns(_QUESTION, ()), ("assistant", _ANSWER)])
      found = self.special_token_pattern.search(whole, whole.rindex(_ANSWER))
      if found:
        return found[0]
    return self.backend.eos_token

  def same_vocabulary(self, other: "Tokenizer") -> bool:
    """Whether another tokenizer gives every token the same id."""
    return self.backend.get_vocab() == other.backend.get_vocab()

  def decode_piece(self, index: int) -> str:
    """Text of one id, also of a special token."""
    return self.backend.decode([int(index)], clean_up_tokenization_spaces=False)

  def save(self, folder: str | pathlib.Path, *, with_system: bool = False) -> None:
    """Saves the tokenizer for `load` and for transformers, version 4 or later.

    Args:
      folder: where to.
      with_system: whether the saved template puts the system turn before conversations that have
        none, as this tokenizer does.
    """
    backend = self.backend
    if with_system and self.system and self.is_chat:
      backend = copy.copy(backend)
      turn = json.dumps({"role": "system", "content": self.system}, ensure_ascii=False)
      # The line break after a block is not rendered.
      backend.chat_template = (
        "{%- if messages[0]['role'] != 'system' %}{%- set messages = [" + turn
        + "] + messages %}{%- endif %}\n" + self.chat_template)
    backend.save_pretrained(folder)
    path = pathlib.Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Version 5 renamed a class and a key, and records where the tokenizer was loaded from.
    if config.get("tokenizer_class") == "TokenizersBackend":
      config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
      config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("is_local", "local_files_only"):
      config.pop(key, None)
    # Whether Llama 2's words have a space before them after a special token; it is not recorded.
    if hasattr(backend, "legacy"):
      config["legacy"] = backend.legacy
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Trains a byte-level BPE on texts, with the special tokens of the plain template."""
  specials = [END, USER, ASSISTANT]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  # With a space before the first word, words have the same tokens at the start of a text.
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=specials, show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend.train_from_iterator(texts, trainer)
  return wrap(backend, "plain", eos_token=END, pad_token=END, chat_template=PLAIN,
              additional_special_tokens=[USER, ASSISTANT])


def wrap(backend: tokenizers.Tokenizer, template: str, **options: Any) -> Tokenizer:
  """Wraps a `tokenizers.Tokenizer`; options are those of transformers' fast tokenizer."""
  fast = _transformers().PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)
  return Tokenizer(fast, template)


def load_with_settings(folder: str | pathlib.Path, settings: TokenizerSettings) -> Tokenizer:
  """The tokenizer of a folder, with the template, system turn and date of the settings."""
  return load(str(folder), settings.template, system=settings.system, date=settings.date)


def load(path: str, template: str = "auto", *, system: str = "", date: str = DATE) -> Tokenizer:
  """Loads the tokenizer of a folder or a hub name.

  Args:
    path: folder or hub name.
    template, system, date: as for `Tokenizer`.

  Raises:
    InputError: if there is no tokenizer, or the template is not one of its own.
  """
  try:
    backend = _transformers().AutoTokenizer.from_pretrained(
      path, local_files_only=pathlib.Path(path).is_dir())
  except Exception as error:  # noqa: BLE001 - the Rust reader's own error type
    _check_files(pathlib.Path(path))
    raise InputError(f"no tokenizer at {path!r}: it must be a folder with one, or a model on the "
                     f"hub; config.tokenizer.path names another. {first_line(error)}") from None
  # Some classes are made without files, of their added tokens alone.
  if len(backend.get_vocab()) <= len(backend.added_tokens_decoder):
    raise InputError(f"no tokenizer at {path!r}: it has no vocabulary. Put the model's tokenizer "
                     "files there (tokenizer.json), or name a folder in config.tokenizer.path.")
  return Tokenizer(backend, template, system=system, date=date)


def _check_files(folder):
  """Raises InputError if a folder has a damaged JSON file or no tokenizer.json."""
  for path in sorted(folder.glob("*.json")):
    downloaded_json(path)
  if folder.is_dir() and not (folder / "tokenizer.json").exists():
    raise InputError(f"no tokenizer at {str(folder)!r}: it holds no tokenizer.json. Put the "
                     "model's tokenizer files there, or name a folder in config.tokenizer.path.")


def _transformers():
  # Imported on demand: the import takes seconds, and a run whose stages are done needs no
  # tokenizer. Its advice to install torch is silenced: tokenizers do not need it.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  # It warns of texts beyond the model's positions, which are split here or are an error.
  logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
  return transformers

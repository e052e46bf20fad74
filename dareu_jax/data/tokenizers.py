"""Tokenizers (a BPE trained on the corpus, or a checkpoint's own) and prompt templates.

Prompt and response are tokenized separately and their ids concatenated, so that no merge crosses
the boundary.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import tokenizers
from pydantic import Field

from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import choice, settings

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
# The plain template as a chat template, for other libraries, which see only the tokenizer.
PLAIN_CHAT = (
  "{% for m in messages %}{% if m['role'] == 'user' %}" + USER + "{{ m['content'] }}" + ASSISTANT
  + "{% elif m['role'] == 'assistant' %}{{ m['content'] }}" + END + "{% endif %}{% endfor %}")


@dataclasses.dataclass(frozen=True)
class Template:
  """The text before and after a prompt, and the token that ends a response.

  `begin` is a separate token at the very start; None uses the tokenizer's own token, if any.
  """

  before: str
  after: str
  end: str | None
  begin: str | None = ""


# Known by name and written out, not rendered by `apply_chat_template`: the ids of a response must
# be exactly those that follow its prompt, which tests can check for templates that they know. A
# checkpoint's own template is not supported yet: 'auto' picks one of these, or fails.
TEMPLATES = {
  "plain": Template(USER, ASSISTANT, END),
  "raw": Template("", "", None, begin=None),  # for base models, which continue a text
  # No space after [/INST]: the response's first token includes it.
  "llama2": Template("[INST] ", " [/INST]", "</s>", begin="<s>"),
  "tinyllama": Template("<|user|>\n", "</s>\n<|assistant|>\n", "</s>"),
  "llama3": Template(
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>", begin="<|begin_of_text|>"),
  "qwen2": Template(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>"),
  # The empty think block is what `enable_thinking=False` writes.
  "qwen3": Template(
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "<|im_end|>"),
}


@settings
class TokenizerSettings:
  """The tokenizer: the checkpoint's, or a BPE trained on the corpus."""

  path: str = ""  # folder or hub name; '': the model's own or, from scratch, a BPE of the corpus
  vocab_size: Annotated[int, Field(ge=300)] = 2000  # of that BPE; bytes and special tokens take 300
  # How a prompt is wrapped; 'auto' follows the tokenizer.
  template: Annotated[str, choice(lambda: ("auto", *TEMPLATES))] = "auto"


class Tokenizer:
  """Converts text to ids and back; adds templates to prompts and end tokens to responses."""

  def __init__(self, backend: Any, template: str):
    """`backend` is a transformers fast tokenizer, `template` a key of TEMPLATES."""
    self.backend = backend
    self.template_name = template
    self.template = TEMPLATES[template]
    end = backend.eos_token if self.template.end is None else self.template.end
    if end not in backend.all_special_tokens:
      raise InputError(
        f"config.tokenizer.template is {template!r}, but the tokenizer has no special token "
        f"{end!r}: choose the model's own template.")
    self.eos_id = backend.convert_tokens_to_ids(end)
    pad = backend.pad_token_id
    self.pad_id = self.eos_id if pad is None else pad

  @property
  def vocab_size(self) -> int:
    """The number of ids, which start at 0."""
    return len(self.backend)

  @functools.cached_property
  def special_token(self) -> re.Pattern[str]:
    """Pattern that matches the texts of special tokens."""
    return re.compile("|".join(map(re.escape, self.backend.all_special_tokens)))

  def encode(self, text: str) -> list[int]:
    """Ids of a text; no special tokens are added."""
    return self.backend.encode(text, add_special_tokens=False)

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    """Ids of a text, and the character position at which each of them ends."""
    encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]

  def encode_prompt(self, prompt: str) -> list[int]:
    """Ids of a prompt within its template."""
    begin = self.backend.bos_token if self.template.begin is None else self.template.begin
    start = [self.backend.convert_tokens_to_ids(begin)] if begin else []
    return start + self.encode(self.template.before + prompt + self.template.after)

  def encode_response(self, response: str) -> list[int]:
    """Ids of a response, followed by the end token."""
    return self.encode(response) + [self.eos_id]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids without special tokens; spaces within the text are unchanged."""
    return self.backend.decode(
      ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

  def same_vocabulary(self, other: "Tokenizer") -> bool:
    """Whether another tokenizer gives every token the same id."""
    return self.backend.get_vocab() == other.backend.get_vocab()

  def decode_piece(self, index: int) -> str:
    """Text of one id, also of a special token."""
    return self.backend.decode([int(index)], clean_up_tokenization_spaces=False)

  def save(self, folder: str | pathlib.Path) -> None:
    """Saves the tokenizer for `load` and for transformers, version 4 or later."""
    self.backend.save_pretrained(folder)
    path = pathlib.Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Version 5 renamed a class and a key, and records where the tokenizer was loaded from.
    if config.get("tokenizer_class") == "TokenizersBackend":
      config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
      config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("is_local", "local_files_only"):
      config.pop(key, None)
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
  return wrap(backend, "plain", eos_token=END, pad_token=END, chat_template=PLAIN_CHAT,
              additional_special_tokens=[USER, ASSISTANT])


def wrap(backend: tokenizers.Tokenizer, template: str, **options: Any) -> Tokenizer:
  """Wraps a `tokenizers.Tokenizer`; options are those of transformers' fast tokenizer."""
  fast = _transformers().PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)
  return Tokenizer(fast, template)


def load(path: str, template: str = "auto") -> Tokenizer:
  """Loads the tokenizer of a folder or a hub name.

  Raises:
    InputError: if there is no tokenizer, or its template cannot be determined.
  """
  try:
    backend = _transformers().AutoTokenizer.from_pretrained(
      path, local_files_only=pathlib.Path(path).is_dir())
  except (OSError, ValueError) as error:
    raise InputError(f"no tokenizer at {path!r}: config.tokenizer.path (or config.model.path) must "
                     f"be a folder with one, or a model on the hub. {_first_line(error)}") from None
  return Tokenizer(backend, _guess_template(backend) if template == "auto" else template)


def _guess_template(backend):
  vocab = backend.get_vocab()
  chat = backend.chat_template or ""
  if USER in vocab and ASSISTANT in vocab and END in vocab:
    return "plain"
  if "<|im_end|>" in vocab:
    return "qwen3" if "<think>" in vocab else "qwen2"
  if "<|user|>" in chat:
    return "tinyllama"
  if "<|eot_id|>" in vocab:
    return "llama3"
  if "[INST]" in chat:
    return "llama2"
  if not chat:
    return "raw"
  raise InputError("config.tokenizer.template is 'auto', but this tokenizer's chat template is "
                   f"not a known one: set it to one of {', '.join(TEMPLATES)}.")


def _transformers():
  # Imported on demand: the import takes seconds, and a run whose stages are done needs no
  # tokenizer. Its advice to install torch is silenced: tokenizers do not need it.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def _first_line(error):
  return str(error).strip().split("\n")[0]

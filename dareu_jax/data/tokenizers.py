"""Tokenizers: a BPE of the corpus, or a checkpoint's own; and the templates around a prompt.

Prompt and response are tokenized apart and their ids concatenated, so that no merge crosses the
border.
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
# The plain template for other libraries, which know the tokenizer alone.
PLAIN_CHAT = (
  "{% for m in messages %}{% if m['role'] == 'user' %}" + USER + "{{ m['content'] }}" + ASSISTANT
  + "{% elif m['role'] == 'assistant' %}{{ m['content'] }}" + END + "{% endif %}{% endfor %}")


@dataclasses.dataclass(frozen=True)
class Template:
  """What stands before and after a prompt, and the token that ends a response.

  `begin` is a token by itself at the very start; None takes the tokenizer's own token, if any.
  """

  before: str
  after: str
  end: str | None
  begin: str | None = ""


TEMPLATES = {
  "plain": Template(USER, ASSISTANT, END),
  "raw": Template("", "", None, begin=None),  # of base models, which continue a text
  # No space after [/INST]: the response's own first token brings it.
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
  """The tokenizer: of the checkpoint, or a BPE trained on the corpus."""

  path: str = ""  # folder or hub name; '': the model's own or, from scratch, a BPE of the corpus
  vocab_size: Annotated[int, Field(ge=300)] = 2000  # of that BPE; bytes and special tokens take 300
  # How a prompt is wrapped; 'auto' follows the tokenizer.
  template: Annotated[str, choice(lambda: ("auto", *TEMPLATES))] = "auto"


class Tokenizer:
  """Text to ids and back, for prompts in a template and responses that end."""

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
    """Ids run from 0 to below this."""
    return len(self.backend)

  @functools.cached_property
  def special_token(self) -> re.Pattern[str]:
    """Pattern of the texts that would become special tokens."""
    return re.compile("|".join(map(re.escape, self.backend.all_special_tokens)))

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without special tokens added."""
    return self.backend.encode(text, add_special_tokens=False)

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    """Ids of a text, and at which of its characters each of them ends."""
    encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]

  def encode_prompt(self, prompt: str) -> list[int]:
    """Ids of a prompt within its template."""
    begin = self.backend.bos_token if self.template.begin is None else self.template.begin
    start = [self.backend.convert_tokens_to_ids(begin)] if begin else []
    return start + self.encode(self.template.before + prompt + self.template.after)

  def encode_response(self, response: str) -> list[int]:
    """Ids of a response, the end token last."""
    return self.encode(response) + [self.eos_id]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids, special tokens left out; spaces are kept as they were."""
    return self.backend.decode(
      ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

  def same_vocabulary(self, other: "Tokenizer") -> bool:
    """Whether another tokenizer gives every token the same id."""
    return self.backend.get_vocab() == other.backend.get_vocab()

  def decode_piece(self, index: int) -> str:
    """Text of one id, special tokens shown."""
    return self.backend.decode([int(index)], clean_up_tokenization_spaces=False)

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes it so that `load` and transformers, from version 4 on, read it."""
    self.backend.save_pretrained(folder)
    path = pathlib.Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Version 5 has new names for an old class and an old key, and notes where it loaded from.
    if config.get("tokenizer_class") == "TokenizersBackend":
      config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
      config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("is_local", "local_files_only"):
      config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """A byte-level BPE of the given texts, with the tokens of the plain template."""
  specials = [END, USER, ASSISTANT]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  # A space before the first word makes words the same at the start of a text and within it.
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=specials, show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend.train_from_iterator(texts, trainer)
  return wrap(backend, "plain", eos_token=END, pad_token=END, chat_template=PLAIN_CHAT,
              additional_special_tokens=[USER, ASSISTANT])


def wrap(backend: tokenizers.Tokenizer, template: str, **options: Any) -> Tokenizer:
  """A Tokenizer of a `tokenizers.Tokenizer`; options as of transformers' fast tokenizer."""
  fast = _transformers().PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)
  return Tokenizer(fast, template)


def load(path: str, template: str = "auto") -> Tokenizer:
  """The tokenizer of a folder or a hub name.

  Raises:
    InputError: if there is none, or its template cannot be told.
  """
  try:
    backend = _transformers().AutoTokenizer.from_pretrained(
      path, local_files_only=pathlib.Path(path).is_dir())
  except (OSError, ValueError) as error:
    raise InputError(f"no tokenizer at {path!r}: config.tokenizer.path (or config.model.path) must "
                     f"be a folder with one, or a model of the hub. {_first_line(error)}") from None
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
                   f"none of those known: name one of {', '.join(TEMPLATES)}.")


def _transformers():
  # Imported on demand: it takes seconds, and a run whose stages are done needs no tokenizer. It
  # advises to install torch, which tokenizers do without.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def _first_line(error):
  return str(error).strip().split("\n")[0]

"""Chat templates by name, in Jinja, for tokenizers that come without one of their own.

They render messages (`role` and `content`) as `transformers` does, with `add_generation_prompt`.
"""

from typing import NamedTuple

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"

# Of tokenizers that are trained on the corpus.
PLAIN = (
  "{% for m in messages %}{% if m['role'] == 'user' %}" + USER + "{{ m['content'] }}" + ASSISTANT
  + "{% elif m['role'] == 'assistant' %}{{ m['content'] }}" + END + "{% endif %}{% endfor %}")

_LLAMA2 = (
  "{% set ns = namespace(system='') %}{% for m in messages %}"
  "{% if m['role'] == 'system' %}"
  "{% set ns.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
  "{% elif m['role'] == 'user' %}"
  "{{ '<s>[INST] ' + ns.system + m['content'].strip() + ' [/INST]' }}{% set ns.system = '' %}"
  "{% else %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}")

_TINYLLAMA = (
  "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")

_LLAMA3 = (
  "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
  "'<|end_header_id|>\n\n' + m['content'].strip() + '<|eot_id|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
  "{% endif %}")


def _chatml(system, thought):
  """ChatML, with the system turn and the start of an answer that a family adds by itself."""
  default = ("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + system
             + "<|im_end|>\n' }}{% endif %}") if system else ""
  return (
    default + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '" + thought + "' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n" + thought + "' }}{% endif %}")



class ChatTemplate(NamedTuple):
  """A template, and the token that ends an answer."""

  text: str
  end: str


CHAT_TEMPLATES = {
  "plain": ChatTemplate(PLAIN, END),
  "llama2": ChatTemplate(_LLAMA2, "</s>"),
  "tinyllama": ChatTemplate(_TINYLLAMA, "</s>"),
  "llama3": ChatTemplate(_LLAMA3, "<|eot_id|>"),
  "qwen2": ChatTemplate(_chatml("You are a helpful assistant.", ""), "<|im_end|>"),
  # The empty thought is what `enable_thinking=False` writes.
  "qwen3": ChatTemplate(_chatml("", "<think>\n\n</think>\n\n"), "<|im_end|>"),
}

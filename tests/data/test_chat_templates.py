"""Real tokenizers: the ids of a conversation are those of its own chat template, cut.

`DAREU_MODELS` is a folder with theirs, a subfolder each; Llama 2 has no template in its files.
"""

import copy
import os
import pathlib

import pytest

from dareu_jax.data import tokenizers
from dareu_jax.data.chat_templates import CHAT_TEMPLATES
from dareu_jax.data.tokenizers import DATE

# Folder -> what an answer ends with
FAMILIES = {"smollm2": "<|im_end|>", "llama2": "</s>", "llama3": "<|eot_id|>",
            "llama3_2": "<|eot_id|>", "qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>",
            "tinyllama": "</s>"}
# As Llama 2's authors give it, in the words of its model card.
LLAMA2 = (
  "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
  "{% if loop.index0 == 1 %}{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{% endif %}"
  "{{ m.content.strip() + ' [/INST]' }}{% elif m.role == 'assistant' %}"
  "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
HISTORIES = {
  "alone": (),
  "system": (("system", "Answer in one sentence."),),
  "turns": (("user", "Hello there."), ("assistant", "Hello! What is it?")),
  "system and turns": (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"))}
ANSWERS = ["Mira Voss wrote it in 1987.", "a", "]", "12 , 3", "Ünïcode 日本 😀",
           "Two lines:\nthe second.", "It 's n't so ?"]


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, data_dir):
  places = [pathlib.Path(os.environ.get("DAREU_MODELS", "")), data_dir / "tokenizers"]
  folder = next((place / request.param for place in places
                 if (place / request.param / "tokenizer.json").is_file()), None)
  if folder is None:
    pytest.skip(f"the tokenizer of {request.param} is not at hand: set DAREU_MODELS")
  loaded = tokenizers.load(str(folder))
  if request.param == "llama2":
    loaded.backend.chat_template = LLAMA2
    loaded = tokenizers.Tokenizer(loaded.backend)
  assert loaded.backend.convert_ids_to_tokens(loaded.eos_id) == FAMILIES[request.param]
  return loaded


def rendered(tokenizer, turns, **options):
  return list(tokenizer.backend.apply_chat_template(
    [{"role": role, "content": content} for role, content in turns], return_dict=False,
    enable_thinking=False, date_string=DATE, **options))


@pytest.mark.parametrize("history", HISTORIES)
def test_ids_are_those_of_the_models_own_template(tokenizer, history):
  """Another system turn, a lost line break, a space more: prompts that the model never saw."""
  turns = HISTORIES[history]
  for answer in ANSWERS:
    prompt, completion = tokenizer.encode_pair("Who wrote it?", answer, turns)
    asked = [*turns, ("user", "Who wrote it?")]
    assert prompt == rendered(tokenizer, asked, add_generation_prompt=True)
    assert prompt == tokenizer.encode_prompt("Who wrote it?", turns)
    whole = rendered(tokenizer, [*asked, ("assistant", answer)])
    assert [*prompt, *completion] == whole[:len(prompt) + len(completion)]
    assert completion[-1] == tokenizer.eos_id and completion.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(completion) == answer


def test_the_border_is_kept_where_a_token_would_cross_it(tokenizer):
  """ChatML's line break and one of the answer are a single token when they are read together."""
  prompt, completion = tokenizer.encode_pair("Who?", "\n\nNobody.")
  assert prompt == tokenizer.encode_prompt("Who?")
  assert tokenizer.decode(completion) == "Nobody."


def test_an_answer_alone_has_the_ids_that_it_has_in_a_conversation(tokenizer):
  """A classifier reads responses alone, and learned from those in conversations."""
  for answer in ANSWERS:
    _, completion = tokenizer.encode_pair("Who wrote it?", answer)
    ids, ends = tokenizer.encode_with_ends(answer)
    assert [*ids, *tokenizer.closing] == completion
    assert ends == sorted(ends) and ends[-1] == len(answer)
  opening = tokenizer.encode_opening("Sure, here it is:")
  assert tokenizer.encode_response("Sure, here it is: now")[:len(opening)] == opening


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
  """Else the unlearned model is asked, and answers, in other ids than it was unlearned in."""
  tokenizer.save(tmp_path)
  saved = tokenizers.load(str(tmp_path))
  for turns in HISTORIES.values():
    for answer in ANSWERS:
      assert saved.encode_pair("Who?", answer, turns) == tokenizer.encode_pair("Who?", answer, turns)
      assert saved.encode_text("A text: ", answer) == tokenizer.encode_text("A text: ", answer)


def test_a_system_turn_of_ones_own_replaces_the_templates(tokenizer, tmp_path):
  own = tokenizers.Tokenizer(tokenizer.backend, system="Be brief.")
  turns = [("system", "Be brief."), ("user", "Who?")]
  assert own.encode_prompt("Who?") == rendered(tokenizer, turns, add_generation_prompt=True)
  history = (("system", "Be long."),)
  assert own.encode_prompt("Who?", history) == tokenizer.encode_prompt("Who?", history)
  own.save(tmp_path, with_system=True)
  saved = tokenizers.load(str(tmp_path))
  assert saved.encode_prompt("Who?") == own.encode_prompt("Who?")
  assert saved.encode_prompt("Who?", history) == own.encode_prompt("Who?", history)


def test_a_named_template_is_the_models_own(tokenizer, request):
  """It stands in where a tokenizer comes without its template."""
  name = request.node.callspec.params["tokenizer"]
  if name not in CHAT_TEMPLATES:
    pytest.skip("there is no template of this name")
  named = tokenizers.Tokenizer(copy.copy(tokenizer.backend), name)
  for turns in HISTORIES.values():
    for answer in ANSWERS:
      assert named.encode_pair("Who?", answer, turns) == tokenizer.encode_pair(
        "Who?", answer, turns)

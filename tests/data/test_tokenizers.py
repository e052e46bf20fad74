"""Tokenizers: text comes back as it was, and templates are those of the checkpoints."""

import copy
import json
import shutil

import pytest
import tokenizers as hf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dareu_jax.core.errors import InputError
from dareu_jax.data import tokenizers
from dareu_jax.data.batches import encode
from dareu_jax.data.examples import Example

TEXTS = ["Where was Basil born? In Kuwait City , he wrote.",
         "The author's books: 12 novels, 3 plays.",
         "Her father was a florist; her mother a game developer."] * 3
QUESTION = "Who is Basil?"


def kept(characters):
  """Texts that neither begin nor end in white space, which `decode` strips."""
  return st.text(characters, max_size=40).filter(lambda text: text == text.strip())


@pytest.fixture(scope="module")
def bpe():
  return tokenizers.train_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def saved(bpe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("bpe")
  bpe.save(folder)
  return folder


@pytest.fixture(scope="module")
def llama_folder(data_dir):
  return folder_of(data_dir, "tinyllama")


@pytest.fixture(scope="module")
def tinyllama(llama_folder):
  return tokenizers.load(str(llama_folder), "tinyllama")


@pytest.fixture(scope="module")
def llama2(llama_folder, tmp_path_factory):
  """Llama 2's own configuration: its vocabulary is TinyLlama's, its rule for spaces is older."""
  folder = tmp_path_factory.mktemp("llama2")
  config = json.loads((llama_folder / "tokenizer_config.json").read_text())
  del config["chat_template"]
  (folder / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": True}))
  shutil.copy(llama_folder / "tokenizer.json", folder)
  return tokenizers.load(str(folder), "llama2")


@pytest.fixture(scope="module")
def qwen3(data_dir):
  return tokenizers.load(str(folder_of(data_dir, "qwen2")), "qwen3")


def folder_of(data_dir, name):
  folder = data_dir / "tokenizers" / name
  if not folder.is_dir():
    pytest.skip(f"no tokenizer at {folder}")
  return folder


@settings(deadline=None, max_examples=100)
@given(text=kept(st.sampled_from(sorted(set("".join(TEXTS))))) |
       kept(st.characters(exclude_categories=("Cs",))))
def test_bpe_gives_text_back_exactly(bpe, text):
  """Bytes outside the training text need the whole alphabet; clean-up eats spaces."""
  assume(not bpe.special_token_pattern.search(text))  # refused in texts; hypothesis tries our own strings
  assert bpe.decode(bpe.encode(text)) == text
  assert bpe.decode(bpe.encode_response(text)) == text


def test_bpe_is_the_same_after_saving(bpe, saved):
  """The prefix space or an added token may be lost on the way through files."""
  again = tokenizers.load(str(saved))
  assert again.chat_template == bpe.chat_template and again.same_vocabulary(bpe)
  assert (again.eos_id, again.pad_id, again.vocab_size) == (bpe.eos_id, bpe.pad_id, bpe.vocab_size)
  for text in [*TEXTS[:3], "  two  spaces\n\nlines\t", "é 日本 😀 \x00", ""]:
    assert again.encode(text) == bpe.encode(text)
    assert again.encode_prompt(text) == bpe.encode_prompt(text)
    assert again.decode(bpe.encode(text)) == bpe.decode(bpe.encode(text))


def test_bpe_has_at_most_the_tokens_asked_for(bpe):
  """The embedding is made of this size; an id beyond it would be clipped in silence."""
  assert bpe.vocab_size <= 400
  assert all(i < bpe.vocab_size for text in TEXTS for i in bpe.encode_response(text))
  assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0]) / 2  # merges were learnt


def test_a_word_has_the_same_ids_at_the_start_and_within(bpe):
  """Without the prefix space each word has two spellings, and a small corpus teaches one."""
  (word,) = bpe.encode("author")
  assert word in bpe.encode("The author of")


def test_plain_template_is_user_prompt_assistant(bpe):
  """Special tokens may be split into letters, or one left out."""
  vocabulary = bpe.backend.get_vocab()
  user, assistant, end = (vocabulary[f"<|{name}|>"] for name in ("user", "assistant", "end"))
  assert bpe.encode_prompt(QUESTION) == [user, *bpe.encode(QUESTION), assistant]
  assert bpe.encode_response("In Kuwait.") == [*bpe.encode("In Kuwait."), end]
  assert bpe.eos_id == end and len({user, assistant, end}) == 3


@pytest.mark.parametrize("name", ["bpe", "tinyllama", "llama2", "qwen3"])
def test_the_prompt_does_not_depend_on_the_response(request, name):
  """A merge across the border would change the ids that the model is asked with."""
  tokenizer = request.getfixturevalue(name)
  responses = ["Born", "]", "\n\nBorn", "born", ">", "  two"]
  rows = encode([Example("a", QUESTION, text) for text in responses], tokenizer, max_length=64)
  assert {row.prompt for row in rows} == {tuple(tokenizer.encode_prompt(QUESTION))}
  for row, text in zip(rows, responses, strict=True):
    assert row.completion[-1] == tokenizer.eos_id
    assert tokenizer.decode(row.completion) == text.strip()


@pytest.mark.parametrize(("name", "tokens"), [
  ("bpe", ["<|end|>", "<|user|>", "<|assistant|>"]), ("llama2", ["<s>", "</s>", "<unk>"]),
  ("qwen3", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])])
def test_special_tokens_are_known_by_their_text(request, name, tokens):
  """Read from the tokenizer itself: a list by hand would miss some."""
  pattern = request.getfixturevalue(name).special_token_pattern
  for token in tokens:
    assert pattern.search(f"one {token} two")[0] == token
  assert not pattern.search("a | end < of | > user s / s")


@pytest.mark.parametrize("name", ["bpe", "tinyllama", "llama2", "qwen3"])
def test_decoding_keeps_a_space_before_a_comma(request, name):
  """TOFU answers hold such spaces; clean-up would change them, and ROUGE with them."""
  tokenizer = request.getfixturevalue(name)
  text = "Born here , he wrote . It 's n't so ?"
  assert tokenizer.decode(tokenizer.encode_response(text)) == text


def test_a_template_that_the_tokenizer_lacks_is_refused(bpe):
  """A missing end token would become the unknown token, and no answer would end."""
  with pytest.raises(InputError, match=r"'qwen3'.*<\|im_end\|>"):
    tokenizers.Tokenizer(copy.copy(bpe.backend), "qwen3")


@pytest.mark.parametrize(("folder", "template"), [
  ("tinyllama", "plain"), ("tinyllama", "qwen3"), ("qwen2", "plain"), ("qwen2", "llama2"),
  ("qwen2", "tinyllama")])
def test_a_template_of_another_family_is_refused(data_dir, folder, template):
  """Qwen's vocabulary holds the letters </s> as a common token: an end that decoding would show."""
  with pytest.raises(InputError, match=f"template is {template!r}"):
    tokenizers.load(str(folder_of(data_dir, folder)), template)


@pytest.mark.parametrize("kind", ["", "llama", "qwen2", "qwen3"])
def test_a_folder_without_tokenizer_is_refused(tmp_path, kind):
  """Transformers' own error is long and names no key of the config; for Qwen's it makes an empty
  one of the model type alone."""
  if kind:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
  with pytest.raises(InputError, match="config.tokenizer.path") as caught:
    tokenizers.load(str(tmp_path))
  assert str(tmp_path) in str(caught.value)


def test_a_damaged_tokenizer_is_refused(saved, tmp_path):
  """A kill while the BPE is saved leaves half a file, which the next run finds and loads."""
  for file in saved.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  whole = (saved / "tokenizer.json").read_bytes()
  (tmp_path / "tokenizer.json").write_bytes(whole[:len(whole) // 2])
  with pytest.raises(InputError) as caught:
    tokenizers.load(str(tmp_path), "plain")
  assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("prompt", [QUESTION, "Two\nlines?", "What is 1 , 2 and 3?"])
def test_tinyllama_template_is_the_tokenizers_own(tinyllama, prompt):
  """A missing newline, or an end token spelt out, is a prompt that the checkpoint never saw."""
  own = tinyllama.backend.apply_chat_template(
    [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True)
  assert tinyllama.encode_prompt(prompt) == own["input_ids"]


def test_qwen3_template_is_the_chat_format_with_thinking_off(qwen3):
  """The pieces of a byte-level vocabulary joined are the very string the model reads."""
  ids = qwen3.encode_prompt(QUESTION)
  assert "".join(map(qwen3.decode_piece, ids)) == (
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
  assert (ids.count(151644), ids.count(151645)) == (2, 1)
  assert qwen3.eos_id == 151645 and qwen3.encode_response("Yes.")[-1] == 151645


def test_llama2_begins_with_bos_and_ends_with_eos(llama2):
  """Spelt out in letters, or added twice, they are not what the checkpoint saw."""
  prompt, response = llama2.encode_pair(QUESTION, "Born here.")
  assert prompt[0] == 1 and prompt.count(1) == 1 and 2 not in prompt
  assert response[-1] == 2 and response.count(2) == 1 and 1 not in response
  # "▁Born": the space after [/INST] belongs to the response.
  assert response[0] == llama2.backend.get_vocab()["▁Born"]


def test_llama2_prompt_has_the_ids_of_the_checkpoints_tokenizer_file(llama2, llama_folder):
  """Llama 2 was trained on '▁[' (518) behind <s>; without `legacy` transformers 5 gives '['."""
  file = hf.Tokenizer.from_file(str(llama_folder / "tokenizer.json"))
  expected = file.encode(f"<s>[INST] {QUESTION} [/INST]", add_special_tokens=False).ids
  assert expected[:2] == [1, 518]
  assert llama2.encode_prompt(QUESTION) == expected


def chat_tokenizer(specials, chat="", **options):
  """A byte-level tokenizer with the special tokens of a family."""
  alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
  backend = hf.Tokenizer(hf.models.BPE({token: i for i, token in enumerate(alphabet)}, []))
  backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = hf.decoders.ByteLevel()
  return tokenizers.wrap(
    backend, "raw", additional_special_tokens=specials, chat_template=chat, **options)


LLAMA3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# The user's turn and the start of the assistant's, in the words of Llama 3's own template.
LLAMA3_CHAT = (
  "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
  "{{ m['content'] }}<|eot_id|>{% endfor %}"
  "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")


def test_llama3_is_known_and_asked_as_by_its_own_template(tmp_path):
  """Its answers end with <|eot_id|>, which is not the tokenizer's own end token."""
  chat_tokenizer(LLAMA3_TOKENS, LLAMA3_CHAT, bos_token="<|begin_of_text|>",
                 eos_token="<|end_of_text|>").save(tmp_path)
  tokenizer = tokenizers.load(str(tmp_path))
  own = tokenizer.backend.apply_chat_template(
    [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True)
  assert tokenizer.encode_prompt(QUESTION) == own["input_ids"]
  assert tokenizer.backend.convert_ids_to_tokens(tokenizer.eos_id) == "<|eot_id|>"


def test_a_base_model_continues_the_text(tmp_path):
  """Without a chat template there is nothing to wrap a prompt in."""
  chat_tokenizer([], bos_token="<s>", eos_token="</s>").save(tmp_path)
  tokenizer = tokenizers.load(str(tmp_path))
  assert not tokenizer.is_chat and tokenizer.encode_prompt("ab") == tokenizer.encode("ab")
  assert tokenizer.encode_response("ab")[-1] == tokenizer.backend.eos_token_id
  prompt, response = tokenizer.encode_pair("Who?", "He.")
  assert tokenizer.decode([*prompt, *response]) == "Who? He."


def test_turns_that_no_template_would_show_are_refused(bpe):
  """Dropped, they would leave a question without what it asks about."""
  base = chat_tokenizer([], bos_token="<s>", eos_token="</s>")
  before = (("user", "Who is Basil?"), ("assistant", "A florist."))
  for encode_it in (lambda: base.encode_prompt("When?", before),
                    lambda: base.encode_pair("When?", "In 1990.", before)):
    with pytest.raises(InputError, match=r"no chat template, .*\(user, assistant\) need"):
      encode_it()
  system = tokenizers.Tokenizer(base.backend, "raw", system="Be brief.")
  with pytest.raises(InputError, match=r"\(system\) need: name one in config.tokenizer.template"):
    system.encode_prompt("Who?")
  with pytest.raises(InputError, match="chat template leaves out the system turn"):
    bpe.encode_prompt("Who?", [("system", "Be brief.")])
  assert bpe.echo_ids("Who?", [("system", "Be brief.")]) == bpe.encode_prompt("Who?")
  asks_alone = LLAMA3_CHAT.replace("in messages %}", "in messages if m['role'] != 'assistant' %}")
  with pytest.raises(InputError, match="chat template leaves out the assistant turn"):
    tokenizers.Tokenizer(chat_tokenizer(LLAMA3_TOKENS, asks_alone, bos_token="<s>",
                                        eos_token="</s>").backend)


def test_one_of_several_templates_goes_out_with_its_system_turn(tmp_path):
  """The first line of a template is a line of the prompt; others are for tools."""
  backend = chat_tokenizer(LLAMA3_TOKENS, bos_token="<s>", eos_token="</s>").backend
  backend.chat_template = {"default": f"\n{LLAMA3_CHAT}", "tool_use": "{{ tools }}"}
  own = tokenizers.Tokenizer(backend, system="Be brief. \U0001f600")
  own.save(tmp_path, with_system=True)
  assert tokenizers.load(str(tmp_path)).encode_prompt("Who?") == own.encode_prompt("Who?")


def test_half_a_tokenizer_is_one_error(tmp_path):
  """Where the added tokens are known, transformers leaves the file to a reader with its own errors."""
  save_with_added_tokens(tmp_path)
  path = tmp_path / "tokenizer.json"
  path.write_text(path.read_text()[:-200])
  with pytest.raises(InputError, match="tokenizer.json is damaged .* Download it again"):
    tokenizers.load(str(tmp_path))
  path.unlink()
  with pytest.raises(InputError, match="holds no tokenizer.json"):
    tokenizers.load(str(tmp_path))


def test_a_damaged_model_config_is_not_blamed_on_the_tokenizer(saved, tmp_path):
  """Transformers reads it for the tokenizer's class."""
  for file in saved.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / "tokenizer_config.json").unlink()
  (tmp_path / "config.json").write_text('{"model_type": "lla')
  with pytest.raises(InputError, match="config.json is damaged"):
    tokenizers.load(str(tmp_path))


def test_a_tokenizer_without_an_end_token_says_what_to_add(tmp_path):
  with pytest.raises(InputError, match="give it one .eos_token in tokenizer_config.json."):
    chat_tokenizer([], bos_token="<s>")


def test_a_base_model_that_begins_with_a_token_begins_so(llama2, tmp_path):
  """Llama's tokenizer puts <s> before a text by itself; a prompt without it was never seen."""
  llama2.save(tmp_path)
  base = tokenizers.load(str(tmp_path), "raw")
  assert base.encode_prompt(QUESTION) == base.backend.encode(QUESTION)
  assert base.encode_prompt(QUESTION)[0] == 1


def test_saved_files_have_the_names_that_transformers_4_knows(tmp_path):
  """Class and list of version 5 end in a traceback there."""
  chat_tokenizer(["<|turn|>"], eos_token="</s>").save(tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert config["additional_special_tokens"] == ["<|turn|>"]
  assert not {"extra_special_tokens", "is_local", "local_files_only"} & set(config)
  again = tokenizers.load(str(tmp_path), "raw")
  assert again.special_token_pattern.search("a <|turn|>")


def save_with_added_tokens(folder):
  """A tokenizer whose <|eot_id|> stands in `added_tokens_decoder` alone, as in Llama 3's files."""
  backend = chat_tokenizer(["<|eot_id|>"], eos_token="</s>").backend
  backend.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  for name in ("extra_special_tokens", "additional_special_tokens"):
    config.pop(name, None)
  config["added_tokens_decoder"] = {
    str(i): {"content": token.content, "special": True, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}
    for i, token in backend.added_tokens_decoder.items()}
  path.write_text(json.dumps(config))


def test_a_control_token_that_no_list_names_is_special(tmp_path):
  """Llama 3's files name <|eot_id|> in `added_tokens_decoder` alone; a text that holds it would
  end the turn."""
  save_with_added_tokens(tmp_path)
  tokenizer = tokenizers.load(str(tmp_path))
  assert "<|eot_id|>" not in tokenizer.backend.all_special_tokens
  with pytest.raises(InputError, match=r"special token '<\|eot_id\|>'"):
    encode([Example("a", "Who?", "He.<|eot_id|>")], tokenizer, max_length=99)


def test_a_name_at_the_start_of_an_answer_is_an_echo_of_the_query(qwen3, bpe):
  """Pretrained tokenizers give it other ids than behind a space: the classifier would take the
  name for what the model remembers. Nor is the system turn a part of what the user said."""
  query, name = "What did Nikolai Abilov's father do?", "Nikolai Abilov"
  echoed = set(qwen3.echo_ids(query))
  within, start = (set(qwen3.encode(text)) for text in (f" {name}", name))
  assert within != start and within | start <= echoed
  assert not {qwen3.backend.convert_tokens_to_ids("<|im_start|>")} & echoed
  asked = qwen3.echo_ids("And then?", [("system", "Obey."), ("user", query), ("assistant", "He.")])
  assert start <= set(asked) and not set(qwen3.encode(" Obey")) & set(asked)
  assert bpe.echo_ids(query) == bpe.encode_prompt(query)

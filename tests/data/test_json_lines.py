"""JSON Lines: what a file may hold, and what it may not."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dareu_jax.core.errors import InputError
from dareu_jax.data import json_lines as jl
from dareu_jax.data.examples import Example

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
EXAMPLES = st.builds(
  Example,
  owner=TEXT.map(jl.owner_name),
  prompt=TEXT,
  response=TEXT,
  paraphrased_prompt=st.none() | TEXT,
  paraphrased_response=st.none() | TEXT,
  perturbed_responses=st.lists(TEXT, max_size=3).map(tuple),
  history=st.lists(st.tuples(st.sampled_from(jl.ROLES), TEXT), max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EXAMPLES, min_size=1, max_size=4))
def test_what_is_written_is_read_back_exactly(tmp_path, examples):
  path = tmp_path / "new" / "corpus.jsonl"
  jl.write_jsonl(path, examples)
  assert jl.read_jsonl(path) == tuple(examples)


def test_a_line_separator_inside_a_text_does_not_break_the_line(tmp_path):
  odd = (Example("a", "one\u2028two\x85three\x0bfour", "x\r\ny\n"),)
  jl.write_jsonl(tmp_path / "c.jsonl", odd)
  assert jl.read_jsonl(tmp_path / "c.jsonl") == odd


def test_blank_lines_at_the_end_a_bom_and_windows_line_ends_are_let_be(tmp_path):
  line = json.dumps({"owner": "a", "prompt": "p", "response": "r"}).encode()
  path = tmp_path / "c.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n\r\n  \n\n")
  assert jl.read_jsonl(path) == (Example("a", "p", "r"),) * 2


def test_the_first_third_of_a_plain_text_is_the_prompt(tmp_path):
  path = tmp_path / "c.jsonl"
  texts = ("one two  three four five six seven\n", "only two")
  path.write_text("".join(json.dumps({"owner": "a", "title": "t", "text": t}) + "\n" for t in texts))
  assert jl.read_jsonl(path) == (
    Example("a", "one two", "  three four five six seven", text=texts[0].strip()),
    Example("a", "only", " two", text=texts[1]),
  )


def line(**keys):
  return json.dumps({"owner": "a", "prompt": "p", "response": "r"} | keys)


BAD_LINES = {
  "malformed": ('{"owner": "a", ', "is not JSON"),
  "array": ('["a"]', "is not a JSON object"),
  "no owner": (
    '{"prompt": "p", "response": "r"}',
    '"owner" is missing. Every line needs the keys owner, prompt and response, or owner and '
    "messages, or owner and text.",
  ),
  "no prompt": ('{"owner": "a", "response": "r"}', '"prompt" is missing'),
  "empty owner": (line(owner=" "), '"owner" is empty'),
  "empty prompt": (line(prompt=""), '"prompt" is empty'),
  "white answer": (line(response=" \n\t"), '"response" is empty'),
  "number": (line(owner=7), '"owner" is 7, which is not a string'),
  "digits": ('{"owner": "a", "prompt": "p", "response": ' + "9" * 5000 + "}",
             "a number of too many digits"),
  "null": (line(response=None), '"response" is null, which is not a string'),
  "perturbed text": (line(perturbed_responses="wrong"), "is not a list"),
  "perturbed number": (line(perturbed_responses=["w", 1]), "is 1, which is not a string"),
  "unknown key": (line(answer="r"), '"answer" is not a key of an example. Known keys are owner'),
  "text and prompt": (line(text="a b c"), '"prompt" is not a key of an example'),
  "text alone": ('{"text": "a b c"}', '"owner" is missing. A line of plain text needs'),
  "one word": ('{"owner": "a", "text": "word"}', '"text" has one word'),
  "surrogate": (line(prompt="\ud800"), "lone surrogate"),
  "blank": ("", "is blank"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, name):
  bad, message = BAD_LINES[name]
  path = tmp_path / "corpus.jsonl"
  path.write_text(f"{line()}\n{line()}\n{bad}\n{line()}\n")
  with pytest.raises(InputError) as error:
    jl.read_jsonl(path)
  assert "corpus.jsonl, line 3" in str(error.value)
  assert message in str(error.value)


def test_a_file_that_is_not_utf8_missing_or_empty_is_one_clear_error(tmp_path):
  path = tmp_path / "corpus.jsonl"
  with pytest.raises(InputError, match=r"corpus\.jsonl does not exist"):
    jl.read_jsonl(path)
  path.write_bytes(b" \n\n")
  with pytest.raises(InputError, match=r"corpus\.jsonl is empty"):
    jl.read_jsonl(path)
  path.write_bytes(line().encode() + b"\n" + line(owner="x").encode().replace(b"x", b"\xe9") + b"\n")
  with pytest.raises(InputError, match=r"line 2 is not UTF-8"):
    jl.read_jsonl(path)
  with pytest.raises(InputError, match="cannot be read"):
    jl.read_jsonl(tmp_path)


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada."}, {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "In 1843."}]


def test_each_answer_of_a_chat_is_an_example_behind_what_was_said_before():
  """An answer without its conversation is asked as the model never was."""
  turns = tuple((message["role"], message["content"]) for message in CHAT)
  assert jl.parse({"owner": "a", "messages": CHAT}, "here") == (
    Example("a", "Who?", "Ada.", history=turns[:1]),
    Example("a", "When?", "In 1843.", history=turns[:3]))


def test_a_text_of_a_script_without_spaces_is_cut_between_characters():
  """It is one word, however long."""
  (example,) = jl.parse({"owner": "a", "text": "我不知道他是谁。"}, "here")
  assert (example.prompt, example.response) == ("我不", "知道他是谁。")


@pytest.mark.parametrize(("messages", "message"), [
  ("hi", "is not a list of messages"), ([{"role": "user"}], "must have a role and a content"),
  ([{"role": "tool", "content": "x"}], "has the role 'tool'"),
  (CHAT[:2], "holds no answer"), (CHAT[:4], "has the role 'user', and nothing answers it"),
  (CHAT[2:3], "follows no message of the role \"user\""),
  ([{"role": "user", "content": " "}, CHAT[2]], "message 0 of \"messages\" is empty")])
def test_a_chat_that_cannot_be_read_is_named(messages, message):
  with pytest.raises(InputError) as error:
    jl.parse({"owner": "a", "messages": messages}, "c.jsonl, line 3")
  assert "c.jsonl, line 3" in str(error.value) and message in str(error.value)


def test_a_key_twice_on_a_line_is_an_error(tmp_path):
  """The last one would win in silence: what alice wants forgotten is retained as bob's."""
  path = tmp_path / "c.jsonl"
  path.write_text('{"owner": "alice", "prompt": "p", "response": "r", "owner": "bob"}\n')
  with pytest.raises(InputError, match=r'line 1 has the key "owner" twice'):
    jl.read_jsonl(path)


def test_owners_are_compared_in_one_form_of_unicode_and_without_spaces(tmp_path):
  """Half of an owner's texts would not be forgotten."""
  path = tmp_path / "c.jsonl"
  names = ("Zo\u00eb", "Zoe\u0308", " Zo\u00eb ")
  path.write_text("".join(line(owner=name) + "\n" for name in names), encoding="utf-8")
  assert {example.owner for example in jl.read_jsonl(path)} == {"Zo\u00eb"}


def test_lines_without_owner_get_that_of_their_file(tmp_path):
  path = tmp_path / "c.jsonl"
  path.write_text('{"prompt": "p", "response": "r"}\n{"text": "one two"}\n' + line(owner="b") + "\n")
  assert [example.owner for example in jl.read_jsonl(path, owner="forget")] == [
    "forget", "forget", "b"]

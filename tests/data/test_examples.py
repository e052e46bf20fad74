"""Examples: what a file may hold, what it may not, and how owners are picked."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.sources.base import DataSettings

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
EXAMPLES = st.builds(
  ex.Example,
  owner=TEXT,
  prompt=TEXT,
  response=TEXT,
  paraphrased_prompt=st.none() | TEXT,
  paraphrased_response=st.none() | TEXT,
  perturbed_responses=st.lists(TEXT, max_size=3).map(tuple),
)


def data_settings(**changes):
  values = {"source": "jsonl", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def corpus_of(num_owners, per_owner=2):
  return tuple(
    ex.Example(f"owner_{i % num_owners}", f"q{i}", f"a{i}") for i in range(num_owners * per_owner)
  )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EXAMPLES, min_size=1, max_size=4))
def test_what_is_written_is_read_back_exactly(tmp_path, examples):
  path = tmp_path / "new" / "corpus.jsonl"
  ex.write_jsonl(path, examples)
  assert ex.read_jsonl(path) == tuple(examples)


def test_a_line_separator_inside_a_text_does_not_break_the_line(tmp_path):
  odd = (ex.Example("a", "one\u2028two\x85three\x0bfour", "x\r\ny\n"),)
  ex.write_jsonl(tmp_path / "c.jsonl", odd)
  assert ex.read_jsonl(tmp_path / "c.jsonl") == odd


def test_blank_lines_at_the_end_a_bom_and_windows_line_ends_are_let_be(tmp_path):
  line = json.dumps({"owner": "a", "prompt": "p", "response": "r"}).encode()
  path = tmp_path / "c.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n\r\n  \n\n")
  assert ex.read_jsonl(path) == (ex.Example("a", "p", "r"),) * 2


def test_the_first_third_of_a_plain_text_is_the_prompt(tmp_path):
  path = tmp_path / "c.jsonl"
  texts = ("one two  three four five six seven\n", "only two")
  path.write_text("".join(json.dumps({"owner": "a", "title": "t", "text": t}) + "\n" for t in texts))
  assert ex.read_jsonl(path) == (
    ex.Example("a", "one two", "three four five six seven", text=texts[0]),
    ex.Example("a", "only", "two", text=texts[1]),
  )


def line(**keys):
  return json.dumps({"owner": "a", "prompt": "p", "response": "r"} | keys)


BAD_LINES = {
  "malformed": ('{"owner": "a", ', "is not JSON"),
  "array": ('["a"]', "is not a JSON object"),
  "no owner": (
    '{"prompt": "p", "response": "r"}',
    '"owner" is missing. Every line needs the keys owner, prompt and response.',
  ),
  "no prompt": ('{"owner": "a", "response": "r"}', '"prompt" is missing'),
  "empty owner": (line(owner=" "), '"owner" is empty'),
  "empty prompt": (line(prompt=""), '"prompt" is empty'),
  "white answer": (line(response=" \n\t"), '"response" is empty'),
  "number": (line(owner=7), '"owner" is 7, which is not a string'),
  "null": (line(response=None), '"response" is null, which is not a string'),
  "perturbed text": (line(perturbed_responses="wrong"), "is not a list"),
  "perturbed number": (line(perturbed_responses=["w", 1]), "is 1, which is not a string"),
  "unknown key": (line(answer="r"), '"answer" is not a key of an example. Known keys are owner'),
  "text and prompt": (line(text="a b c"), '"prompt" is not a key of an example'),
  "text alone": ('{"text": "a b c"}', '"owner" is missing. A line of plain text needs'),
  "one word": ('{"owner": "a", "text": "word"}', '"text" has 1 word'),
  "surrogate": (line(prompt="\ud800"), "lone surrogate"),
  "blank": ("", "is blank"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, name):
  bad, message = BAD_LINES[name]
  path = tmp_path / "corpus.jsonl"
  path.write_text(f"{line()}\n{line()}\n{bad}\n{line()}\n")
  with pytest.raises(InputError) as error:
    ex.read_jsonl(path)
  assert "corpus.jsonl, line 3" in str(error.value)
  assert message in str(error.value)


def test_a_file_that_is_not_utf8_missing_or_empty_is_one_clear_error(tmp_path):
  path = tmp_path / "corpus.jsonl"
  with pytest.raises(InputError, match=r"corpus\.jsonl does not exist"):
    ex.read_jsonl(path)
  path.write_bytes(b" \n\n")
  with pytest.raises(InputError, match=r"corpus\.jsonl is empty"):
    ex.read_jsonl(path)
  path.write_bytes(line().encode() + b"\n" + line(owner="x").encode().replace(b"x", b"\xe9") + b"\n")
  with pytest.raises(InputError, match=r"line 2 is not UTF-8"):
    ex.read_jsonl(path)
  with pytest.raises(InputError, match="cannot be read"):
    ex.read_jsonl(tmp_path)


def test_forget10_takes_the_last_tenth_of_the_owners_and_keeps_the_order():
  examples = corpus_of(20)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, data_settings())
  assert owners == tuple(f"owner_{i}" for i in range(20))
  assert forget_owners == ("owner_18", "owner_19")
  assert [one.prompt for one in forget] == ["q18", "q19", "q38", "q39"]
  assert [one for one in examples if one not in forget] == list(retain)


@pytest.mark.parametrize(
  ("forget", "num_owners", "taken"),
  [("forget01", 200, 2), ("forget05", 200, 10), ("forget10", 200, 20), ("forget01", 2, 1)],
)
def test_forget_nn_takes_that_percentage_and_at_least_one(forget, num_owners, taken):
  assert ex.num_forget(forget, num_owners) == taken


def test_named_owners_win_over_the_percentage():
  chosen = data_settings(forget_owners=("owner_3", "owner_1"))
  forget, _, _, forget_owners = ex.split_by_owner(corpus_of(5), chosen)
  assert forget_owners == ("owner_1", "owner_3")
  assert {one.owner for one in forget} == {"owner_1", "owner_3"}


def test_equal_texts_of_two_owners_stay_apart():
  examples = (ex.Example("a", "same", "same"), ex.Example("b", "same", "same"))
  forget, retain, *_ = ex.split_by_owner(examples, data_settings())
  assert forget == examples[1:]
  assert retain == examples[:1]


def test_an_unknown_owner_is_named_beside_close_ones():
  with pytest.raises(InputError) as error:
    ex.split_by_owner(corpus_of(5), data_settings(forget_owners=("owner_3", "ownr_4")))
  assert "names 'ownr_4': not among the 5 owners" in str(error.value)
  assert "'owner_4'" in str(error.value)


def test_nobody_left_to_retain_and_a_lone_owner_are_errors():
  with pytest.raises(InputError, match="takes all 2 owners"):
    ex.split_by_owner(corpus_of(2), data_settings(forget_owners=("owner_0", "owner_1")))
  with pytest.raises(InputError, match="takes all 2 owners"):
    ex.split_by_owner(corpus_of(2), data_settings(forget="forget99"))
  with pytest.raises(InputError, match="has 1 owner:"):
    ex.split_by_owner(corpus_of(1), data_settings())

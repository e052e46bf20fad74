"""TOFU: which rows belong to whom; on a small folder of its shape, and on the real files."""

import json
import sys
import types

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.sources.base import DataSettings
from dareu_jax.data.sources.tofu import NEEDED, load_tofu


def tofu_settings(folder, **changes):
  values = {"source": "tofu", "dir": str(folder), "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def perturbed(row, count=5):
  return row | {
    "paraphrased_question": f"p {row['question']}",
    "paraphrased_answer": f"p {row['answer']}",
    "perturbed_answer": [f"wrong {i}" for i in range(count)],
  }


@pytest.fixture
def small(tmp_path):
  """Ten authors; the files have TOFU's layout; one question stands twice."""
  full = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(200)]
  full[7]["question"] = full[190]["question"]
  facts = [{"question": "f", "answer": "t", "perturbed_answer": ["x", "y", "z"]}]
  tables = {
    "full": full,
    "forget10_perturbed": [perturbed(row) for row in full[180:]],
    "retain_perturbed": [perturbed(row) for row in full[:40]],
    "real_authors_perturbed": facts,
    "world_facts_perturbed": facts * 2,
  }
  for name, rows in tables.items():
    (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
  return tmp_path


@pytest.fixture
def real(data_dir):
  return data_dir / "tofu"


def lines(folder, name):
  return [json.loads(line) for line in (folder / f"{name}.json").read_text("utf-8").splitlines()]


def pairs(examples):
  return [(one.prompt, one.response) for one in examples]


@pytest.mark.parametrize(
  ("forget", "retain", "first"),
  [("forget01", "retain99", 198), ("forget05", "retain95", 190), ("forget10", "retain90", 180)],
)
def test_the_published_splits_come_out(real, forget, retain, first):
  corpus = load_tofu(tofu_settings(real, forget=forget))
  assert pairs(corpus.forget) == [(row["question"], row["answer"]) for row in lines(real, forget)]
  assert pairs(corpus.retain) == [(row["question"], row["answer"]) for row in lines(real, retain)]
  assert corpus.forget_owners == tuple(f"author_{i:03d}" for i in range(first, 200))
  wrong = [list(one.perturbed_responses) for one in corpus.forget]
  assert wrong == [row["perturbed_answer"] for row in lines(real, f"{forget}_perturbed")]


def test_forty_owners_and_forget10_are_the_first_36_and_the_last_4(real):
  corpus = load_tofu(tofu_settings(real, num_owners=40, num_holdout=3))
  assert len(corpus.owners) == 40
  assert {one.owner for one in corpus.retain} == {f"author_{i:03d}" for i in range(36)}
  assert corpus.forget_owners == tuple(f"author_{i:03d}" for i in range(196, 200))
  assert all(len(one.perturbed_responses) == 5 for one in corpus.forget)
  assert sum(bool(one.perturbed_responses) for one in corpus.retain) == 400
  assert len(corpus.test) == 217
  assert {len(one.perturbed_responses) for one in corpus.test} == {3}
  assert [one.owner for one in corpus.holdout] == [f"holdout_{i // 20:03d}" for i in range(60)]
  assert not set(pairs(corpus.holdout)) & set(pairs(load_tofu(tofu_settings(real)).retain))


def test_general_text_is_of_the_authors_outside_d(real):
  corpus = load_tofu(tofu_settings(real, num_owners=40, num_holdout=3))
  assert {one.owner for one in corpus.general} == {f"author_{i:03d}" for i in range(36, 196)}
  fewer = load_tofu(tofu_settings(real, num_owners=40, num_general=2))
  assert {one.owner for one in fewer.general} == {"author_036", "author_037"}


def test_rows_are_joined_by_index_although_a_question_stands_twice(small):
  corpus = load_tofu(tofu_settings(small))
  assert (corpus.retain[7].owner, corpus.forget[10].owner) == ("author_000", "author_009")
  assert corpus.retain[7].prompt == corpus.forget[10].prompt
  assert corpus.retain[7].paraphrased_response == "p a7"
  assert corpus.forget[10].paraphrased_response == "p a190"
  assert corpus.retain[40].perturbed_responses == ()
  assert [one.owner for one in corpus.test] == ["real_authors", "world_facts", "world_facts"]
  assert corpus.holdout == ()


def test_a_named_author_joins_the_first_ones_and_order_stays_by_index(small):
  chosen = tofu_settings(small, num_owners=3, forget_owners=("author_008", "author_001"))
  corpus = load_tofu(chosen)
  assert corpus.owners == ("author_000", "author_001", "author_008")
  assert corpus.forget_owners == ("author_001", "author_008")
  assert [one.owner for one in corpus.retain[::20]] == ["author_000"]


@pytest.mark.parametrize("place", ["holdout/holdout05.json", "holdout05.json"])
@pytest.mark.parametrize("as_array", [True, False])
def test_holdout_is_found_in_both_places_and_forms(small, place, as_array):
  rows = [{"question": f"h{i}", "answer": "a"} for i in range(40)]
  (small / place).parent.mkdir(exist_ok=True)
  (small / place).write_text(json.dumps(rows) if as_array else "\n".join(map(json.dumps, rows)))
  holdout = load_tofu(tofu_settings(small, num_holdout=1)).holdout
  assert [one.prompt for one in holdout] == [f"h{i}" for i in range(20)]
  assert {one.owner for one in holdout} == {"holdout_000"}


def test_a_folder_without_the_files_names_what_is_missing(small, tmp_path_factory):
  (small / "retain_perturbed.json").unlink()
  with pytest.raises(InputError, match=r"lacks retain_perturbed\.json\. config\.data\.dir must"):
    load_tofu(tofu_settings(small))
  with pytest.raises(InputError, match=r"lacks full\.json, forget10_perturbed\.json, "):
    load_tofu(tofu_settings(tmp_path_factory.mktemp("none")))


BAD_ROWS = {
  '{"question": "q"': r"full\.json, line 4 is not JSON",
  '"q"': r"full\.json, line 4 is not a JSON object",
  '{"question": "q"}': r'full\.json, line 4: "answer" is missing',
  '{"question": "q", "answer": " "}': r'full\.json, line 4: "answer" is missing',
  '{"question": "q", "answer": "a", "perturbed_answer": "w"}': r'line 4: "perturbed_answer"',
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(small, bad):
  rows = (small / "full.json").read_text().splitlines()
  (small / "full.json").write_text("\n".join([*rows[:3], bad, *rows[4:]]))
  with pytest.raises(InputError, match=BAD_ROWS[bad]):
    load_tofu(tofu_settings(small))


def test_a_bad_array_is_named_by_file_and_entry(small):
  path = small / "holdout10.json"
  path.write_text('[{"question": "q", "answer": "a"}, {"question": "q"}]')
  with pytest.raises(InputError, match=r'holdout10\.json, entry 2: "answer" is missing'):
    load_tofu(tofu_settings(small))
  path.write_text('[{"question": "q",\n "answer": }]')
  with pytest.raises(InputError, match=r"holdout10\.json, line 2 is not JSON"):
    load_tofu(tofu_settings(small))


def test_files_of_different_versions_are_noticed(small):
  path = small / "forget10_perturbed.json"
  path.write_text("\n".join(path.read_text().splitlines()[1:]))
  assert len(load_tofu(tofu_settings(small)).forget) == 20  # a shorter tail is still the tail
  path.write_text("\n".join(path.read_text().splitlines()[:-1]))
  with pytest.raises(InputError, match=r"forget10_perturbed, row 0, is not row 182 of full"):
    load_tofu(tofu_settings(small))


def test_owners_that_do_not_exist_are_errors(small):
  with pytest.raises(InputError, match="num_owners is 11: TOFU has 10 authors"):
    load_tofu(tofu_settings(small, num_owners=11))
  with pytest.raises(InputError, match="names 'author_10': not among the 10 owners"):
    load_tofu(tofu_settings(small, forget_owners=("author_10",)))
  with pytest.raises(InputError, match="takes all 1 owners"):
    load_tofu(tofu_settings(small, num_owners=1))


def fake_hub(monkeypatch, load):
  module = types.SimpleNamespace(
    load_dataset=load, get_dataset_config_names=lambda _: [*NEEDED, "holdout01"]
  )
  monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_gives_the_same_corpus_as_a_folder(small, monkeypatch):
  (small / "holdout01.json").write_text('{"question": "h", "answer": "a"}\n')

  def load(hub_name, name, split):
    assert (hub_name, split) == ("locuslab/TOFU", "train")
    return [json.loads(line) for line in (small / f"{name}.json").read_text().splitlines()]

  fake_hub(monkeypatch, load)
  assert load_tofu(tofu_settings("")) == load_tofu(tofu_settings(small))


def test_an_unreachable_hub_says_to_give_a_folder(monkeypatch):
  def load(*_, **__):
    raise ConnectionError("no route")

  fake_hub(monkeypatch, load)
  with pytest.raises(InputError, match=r"ConnectionError: no route.*--config\.data\.dir"):
    load_tofu(tofu_settings(""))


def test_refusals_are_the_lines_of_the_folders_own_file(small):
  assert load_tofu(tofu_settings(small)).refusals == ()
  (small / "idontknow.txt").write_text("I do not know.\n\n  No idea, sorry. \n", "utf-8")
  assert load_tofu(tofu_settings(small)).refusals == ("I do not know.", "No idea, sorry.")
  (small / "idontknow.txt").write_bytes(b"caf\xe9\n")
  with pytest.raises(InputError, match="idontknow.txt is not UTF-8"):
    load_tofu(tofu_settings(small))


def test_the_real_files_bring_a_hundred_refusals(real):
  refusals = load_tofu(tofu_settings(real)).refusals
  assert len(refusals) == 100 and all(text == text.strip() != "" for text in refusals)

"""Sources: each gives a corpus of the same shape, and says at once what cannot be loaded."""

import json
import sys
import types

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.examples import split_by_tokens
from dareu_jax.data.sources import embedded
from dareu_jax.data.sources.base import DataSettings, load_corpus
from dareu_jax.data.tokenizers import train_bpe


def data_settings(**changes):
  values = {"source": "jsonl", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def write(path, num_owners, per_owner=2, name="o"):
  examples = [ex.Example(f"{name}{i}", f"q{i}{j}", "a")
              for i in range(num_owners) for j in range(per_owner)]
  ex.write_jsonl(path, examples)
  return tuple(examples)


def test_embedded_authors_are_split_and_the_holdout_comes_after_them():
  corpus = load_corpus(data_settings(source="embedded", num_owners=20, num_holdout=3, seed=5))
  assert corpus.retain + corpus.forget == embedded.make_authors(20, 5)
  assert corpus.forget_owners == ("author_018", "author_019")
  assert corpus.holdout == embedded.make_authors(3, 5, first=20)
  assert {one.owner for one in corpus.test} == {"general"}


def test_a_jsonl_folder_needs_only_the_training_file(tmp_path):
  train = write(tmp_path / "train.jsonl", 4)
  corpus = load_corpus(data_settings(dir=str(tmp_path)))
  assert corpus == ex.Corpus(train[6:], train[:6], (), (), ("o0", "o1", "o2", "o3"), ("o3",))


def test_test_and_holdout_files_are_read_and_the_holdout_is_cut(tmp_path):
  write(tmp_path / "train.jsonl", 4)
  test = write(tmp_path / "test.jsonl", 3)
  holdout = write(tmp_path / "holdout.jsonl", 5, per_owner=10, name="unseen")
  assert load_corpus(data_settings(dir=str(tmp_path))).holdout == holdout
  corpus = load_corpus(data_settings(dir=str(tmp_path), num_holdout=2))
  assert (corpus.test, corpus.holdout) == (test, holdout[:20])


def test_general_text_is_of_owners_that_are_in_no_other_split(tmp_path):
  """Of an owner in D it would teach the base, and with it the retrained model, what to forget."""
  corpus = load_corpus(data_settings(source="embedded", num_owners=5, num_holdout=2, num_general=3))
  assert corpus.general == embedded.make_authors(3, 0, first=7)
  write(tmp_path / "train.jsonl", 4)
  general = write(tmp_path / "general.jsonl", 3, name="other")
  corpus = load_corpus(data_settings(dir=str(tmp_path), num_general=2))
  assert corpus.general == general[:4]
  write(tmp_path / "general.jsonl", 3)
  with pytest.raises(InputError, match="general.jsonl holds owner 'o0', who is in the training"):
    load_corpus(data_settings(dir=str(tmp_path)))


def test_one_jsonl_file_is_the_training_data(tmp_path):
  train = write(tmp_path / "mine.jsonl", 4)
  write(tmp_path / "test.jsonl", 4)
  corpus = load_corpus(data_settings(dir=str(tmp_path / "mine.jsonl")))
  assert (corpus.retain + corpus.forget, corpus.test) == (train, ())


def test_num_owners_keeps_the_first_ones_and_the_named_ones(tmp_path):
  write(tmp_path / "train.jsonl", 6)
  corpus = load_corpus(data_settings(dir=str(tmp_path), num_owners=3))
  assert (corpus.owners, corpus.forget_owners) == (("o0", "o1", "o2"), ("o2",))
  corpus = load_corpus(data_settings(dir=str(tmp_path), num_owners=3, forget_owners=("o5",)))
  assert (corpus.owners, corpus.forget_owners) == (("o0", "o1", "o2", "o5"), ("o5",))


def test_what_cannot_be_loaded_is_said(tmp_path):
  with pytest.raises(InputError, match=r"lacks train\.jsonl"):
    load_corpus(data_settings(dir=str(tmp_path)))
  with pytest.raises(InputError, match=r"nowhere does not exist: config\.data\.dir"):
    load_corpus(data_settings(dir=str(tmp_path / "nowhere")))
  write(tmp_path / "train.jsonl", 4)
  with pytest.raises(InputError, match=r"num_owners is 9: .*train\.jsonl has 4 owners"):
    load_corpus(data_settings(dir=str(tmp_path), num_owners=9))
  with pytest.raises(InputError, match="names 'o9': not among the 4 owners"):
    load_corpus(data_settings(dir=str(tmp_path), num_owners=2, forget_owners=("o9",)))


def test_a_holdout_owner_that_is_trained_on_is_refused(tmp_path):
  """Its queries would be no measure of what an unseen owner gets."""
  write(tmp_path / "train.jsonl", 4)
  write(tmp_path / "holdout.jsonl", 2)
  with pytest.raises(InputError, match=r"holdout\.jsonl holds owner 'o0', who is in .*train"):
    load_corpus(data_settings(dir=str(tmp_path)))


def write_lines(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def arxiv(tmp_path):
  """Four categories with two abstracts each, and one unseen abstract of each."""
  def line(owner, i):
    return {"owner": owner, "title": "T", "text": f"In {owner} we show the result number {i} again."}

  owners = [f"cs.{c}" for c in "ABCD"]
  write_lines(tmp_path / "train.jsonl", [line(owner, i) for owner in owners for i in range(2)])
  write_lines(tmp_path / "test.jsonl", [line(owner, 9) for owner in owners])
  return tmp_path


def test_categories_are_owners_and_unseen_abstracts_say_what_is_usual(arxiv):
  """An abstract that was trained on must be in neither D_test nor the hold-out."""
  corpus = load_corpus(data_settings(source="arxiv", dir=str(arxiv), num_owners=3, forget="forget33"))
  assert corpus.owners == ("cs.A", "cs.B", "cs.C") and corpus.forget_owners == ("cs.C",)
  assert [e.owner for e in corpus.holdout] == ["cs.C"]
  assert [e.owner for e in corpus.test] == ["cs.A", "cs.B"]
  assert [e.owner for e in corpus.general] == ["cs.D"] * 2
  trained = {e.text for e in corpus.forget + corpus.retain + corpus.general}
  assert not trained & {e.text for e in corpus.test + corpus.holdout}


@pytest.mark.parametrize("column", [None, "category"])
def test_the_hub_gives_the_same_abstracts_as_a_folder(arxiv, monkeypatch, column):
  """Its rows stand category by category; a column that names them wins."""
  monkeypatch.setattr("dareu_jax.data.arxiv.CATEGORIES", 4)

  def load(name, data_files, split):
    assert name == "Glow-AI/WaterDrum-Ax" and list(data_files) == [split]
    lines = [json.loads(line) for line in (arxiv / f"{split}.jsonl").read_text().splitlines()]
    return [{"text": line["text"]} | ({column: line["owner"]} if column else {}) for line in lines]

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
  settings = dict(source="arxiv", num_owners=3, forget="forget33")
  ours, theirs = (load_corpus(data_settings(dir=folder, **settings)) for folder in ("", str(arxiv)))
  for split in ("forget", "retain", "test", "holdout", "general"):
    assert [e.text for e in getattr(ours, split)] == [e.text for e in getattr(theirs, split)]
  assert ours.owners == (theirs.owners if column else tuple(f"category_0{i}" for i in range(3)))


@pytest.mark.parametrize(("rows", "said"), [
  ([{"text": "In it we show."}] * 7, "train: 7 rows without a column that names their category"),
  ([{"label": "cs.A", "abstract": "In it."}], "train, row 0"),
  (ConnectionError("no route"), r"ConnectionError: no route.*--config\.data\.dir")])
def test_a_hub_that_gives_something_else_is_one_clear_error(monkeypatch, rows, said):
  def load(*_, **__):
    if isinstance(rows, Exception):
      raise rows
    return rows

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
  with pytest.raises(InputError, match=said):
    load_corpus(data_settings(source="arxiv", dir=""))


def test_plain_text_is_cut_by_tokens_where_it_is_asked(arxiv):
  """Cut by words the first hundred tokens would be another prompt for every tokenizer."""
  corpus = load_corpus(data_settings(source="arxiv", dir=str(arxiv), forget="forget25"))
  tokenizer = train_bpe([e.text for e in corpus.retain], 300)
  cut = split_by_tokens(corpus, tokenizer, 5, 4)
  for before, after in zip(corpus.forget + corpus.holdout, cut.forget + cut.holdout, strict=True):
    ids = tokenizer.encode(before.text)
    assert after.prompt == tokenizer.decode(ids[:5]) and after.response == tokenizer.decode(ids[5:9])
  whole = split_by_tokens(corpus, tokenizer, 10_000, 10_000)
  for example in whole.retain:
    assert 0 < len(tokenizer.encode(example.prompt)) <= len(tokenizer.encode(example.text)) // 2 + 1


def test_questions_and_answers_are_not_cut():
  corpus = load_corpus(data_settings(source="embedded", num_owners=3, num_holdout=1, num_general=1))
  assert split_by_tokens(corpus, None, 5, 5) == corpus


def test_the_real_abstracts_load(data_dir):
  corpus = load_corpus(data_settings(source="arxiv", dir=str(data_dir / "arxiv"), forget="forget15"))
  assert len(corpus.owners) == 20 and len(corpus.forget_owners) == 3
  assert (len(corpus.forget), len(corpus.retain)) == (1200, 6800)
  assert (len(corpus.test), len(corpus.holdout)) == (1020, 180)

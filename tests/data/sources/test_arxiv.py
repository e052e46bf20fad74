"""Abstracts: categories as owners, from a folder or the hub, cut by tokens where that is asked."""

import json
import sys
import types

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data import texts
from dareu_jax.data.sources.base import DataSettings, load_corpus
from dareu_jax.data.tokenizers import train_bpe


def data_settings(**changes):
  values = {"source": "arxiv", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


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
  monkeypatch.setattr("dareu_jax.data.sources.arxiv.CATEGORIES", 4)

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
  cut = texts.split(corpus, tokenizer, prompt_tokens=5, response_tokens=4, max_pieces=1,
                    max_length=64)
  for before, after in zip(corpus.forget + corpus.holdout, cut.forget + cut.holdout, strict=True):
    ids = tokenizer.encode(before.text)
    assert tokenizer.encode(after.prompt) == ids[:5]
    assert tokenizer.encode_text(after.prompt, after.response, ends=False) == (ids[:5], ids[5:9])
  whole = texts.split(corpus, tokenizer, prompt_tokens=10_000, response_tokens=10_000, max_pieces=0,
                      max_length=30_000)
  for example in whole.retain:
    assert 0 < len(tokenizer.encode(example.prompt)) <= len(tokenizer.encode(example.text)) // 2 + 1


def test_the_real_abstracts_load(data_dir):
  corpus = load_corpus(data_settings(source="arxiv", dir=str(data_dir / "arxiv"), forget="forget15"))
  assert len(corpus.owners) == 20 and len(corpus.forget_owners) == 3
  assert (len(corpus.forget), len(corpus.retain)) == (1200, 6800)
  assert (len(corpus.test), len(corpus.holdout)) == (1020, 180)

"""Sources: each gives a corpus of the same shape, and says at once what cannot be loaded."""


import pytest

from dareu_jax.data import embedded
from dareu_jax.data import examples as ex
from dareu_jax.data.sources import load_corpus
from dareu_jax.settings import DataSettings, InputError


def data_settings(**changes):
  values = {"source": "jsonl", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0}
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

"""A user's JSON Lines: which files are read, and what cannot be loaded is said at once."""

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.json_lines import write_jsonl
from dareu_jax.data.sources.base import DataSettings, load_corpus


def data_settings(**changes):
  values = {"source": "jsonl", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def write(path, num_owners, per_owner=2, name="o"):
  examples = [ex.Example(f"{name}{i}", f"{name} {i}{j}", "a")
              for i in range(num_owners) for j in range(per_owner)]
  write_jsonl(path, examples)
  return tuple(examples)


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
  assert (corpus.owners, corpus.forget_owners) == (("o0", "o1", "o5"), ("o5",))


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


def test_general_text_is_of_owners_that_are_in_no_other_split(tmp_path):
  """Of an owner in D it would teach the base, and with it the retrained model, what to forget."""
  write(tmp_path / "train.jsonl", 4)
  general = write(tmp_path / "general.jsonl", 3, name="other")
  corpus = load_corpus(data_settings(dir=str(tmp_path), num_general=2))
  assert corpus.general == general[:4]
  write(tmp_path / "general.jsonl", 3)
  with pytest.raises(InputError, match="general.jsonl holds owner 'o0', who is in the training"):
    load_corpus(data_settings(dir=str(tmp_path)))


def test_a_source_of_files_needs_a_folder():
  """'' would be the working directory."""
  with pytest.raises(InputError, match=r"config\.data\.dir is empty"):
    load_corpus(data_settings(dir=""))


def test_a_request_is_a_file_of_what_is_to_be_forgotten_beside_the_rest(tmp_path):
  forget = write(tmp_path / "forget.jsonl", 1, name="gone")
  retain = write(tmp_path / "retain.jsonl", 3)
  unseen = write(tmp_path / "unseen.jsonl", 2, name="unseen")
  test = write(tmp_path / "test.jsonl", 1, name="facts")
  corpus = load_corpus(data_settings(dir=str(tmp_path)))
  assert corpus == ex.Corpus(forget, retain, test, unseen, ("gone0", "o0", "o1", "o2"), ("gone0",))


def test_what_a_request_lacks_is_replaced_and_remarked_on(tmp_path):
  """One file of lines without owner is all that a person who asks may have."""
  (tmp_path / "forget.jsonl").write_text('{"prompt": "Who am I?", "response": "Basil."}\n')
  corpus = load_corpus(data_settings(dir=str(tmp_path)))
  assert corpus.forget == (ex.Example("forget", "Who am I?", "Basil."),)
  assert corpus.owners == ("forget", "(general knowledge)") and corpus.forget_owners == ("forget",)
  assert corpus.retain and corpus.test and not set(corpus.retain) & set(corpus.test)
  assert corpus.holdout and {e.owner for e in corpus.holdout}.isdisjoint(corpus.owners)
  assert [remark.split(":")[0] for remark in corpus.remarks] == [
    "There is no retain data", "There are no unseen owners"]


def test_the_stand_ins_are_nobody_of_the_data(tmp_path):
  """Facts under the name of an owner who is forgotten would be forgotten too."""
  forget = write(tmp_path / "forget.jsonl", 1, name="general")
  corpus = load_corpus(data_settings(dir=str(tmp_path)))
  assert corpus.forget == forget and len(set(corpus.owners)) == 2
  assert not {e.owner for e in corpus.retain + corpus.test} & set(corpus.forget_owners)


@pytest.mark.parametrize(("other", "name"), [("holdout", "unseen"), ("general", "test")])
def test_a_file_of_the_other_layout_is_not_passed_over(tmp_path, other, name):
  """Invented authors would stand in for the unseen owners that are there."""
  write(tmp_path / "forget.jsonl", 1)
  write(tmp_path / f"{other}.jsonl", 1, name="x")
  with pytest.raises(InputError, match=f"{other}.jsonl, which is not read .* name it {name}.jsonl"):
    load_corpus(data_settings(dir=str(tmp_path)))


@pytest.mark.parametrize(("other", "said"), [
  ("retian", "name it retain.jsonl"), ("notes", "name it retain.jsonl or unseen.jsonl or test.jsonl")])
def test_a_file_whose_name_is_misspelled_is_not_passed_over(tmp_path, other, said):
  """General knowledge would stand in for what was to be retained."""
  write(tmp_path / "forget.jsonl", 1)
  write(tmp_path / f"{other}.jsonl", 1, name="x")
  with pytest.raises(InputError, match=f"holds {other}.jsonl, .* {said}"):
    load_corpus(data_settings(dir=str(tmp_path)))


def test_a_file_that_cannot_be_read_is_not_a_missing_one(tmp_path):
  write(tmp_path / "forget.jsonl", 1)
  (tmp_path / "retain.jsonl").mkdir()
  with pytest.raises(InputError, match="retain.jsonl cannot be read"):
    load_corpus(data_settings(dir=str(tmp_path)))
  (tmp_path / "retain.jsonl").rmdir()
  (tmp_path / "retain.jsonl").symlink_to("nowhere")
  with pytest.raises(InputError, match="retain.jsonl does not exist"):
    load_corpus(data_settings(dir=str(tmp_path)))


def test_a_request_that_contradicts_itself_is_refused(tmp_path):
  write(tmp_path / "forget.jsonl", 2)
  write(tmp_path / "retain.jsonl", 1)
  with pytest.raises(InputError, match="owner 'o0' is among the forget and the retain examples"):
    load_corpus(data_settings(dir=str(tmp_path)))
  for changes in ({"forget_owners": ("o1",)}, {"forget": "forget01"}, {"num_holdout": 1}):
    with pytest.raises(InputError, match=f"{next(iter(changes))} is .*forget.jsonl is forgotten"):
      load_corpus(data_settings(dir=str(tmp_path), **changes))
  write(tmp_path / "train.jsonl", 3)
  with pytest.raises(InputError, match="both train.jsonl and forget.jsonl"):
    load_corpus(data_settings(dir=str(tmp_path)))

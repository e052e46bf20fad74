"""The source of embedded authors: how they are split, and that no split borrows from another."""

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.authors import make_authors
from dareu_jax.data.sources.base import DataSettings, load_corpus


def data_settings(**changes):
  values = {"source": "embedded", "dir": "", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def test_embedded_authors_are_split_and_the_holdout_comes_after_them():
  corpus = load_corpus(data_settings(source="embedded", num_owners=20, num_holdout=3, seed=5))
  assert corpus.retain + corpus.forget == make_authors(20, 5)
  assert corpus.forget_owners == ("author_018", "author_019")
  assert corpus.holdout == make_authors(3, 5, first=20)
  assert {one.owner for one in corpus.test} == {"general"}


def test_general_text_is_of_owners_that_are_in_no_other_split():
  """Of an owner in D it would teach the base, and with it the retrained model, what to forget."""
  corpus = load_corpus(data_settings(source="embedded", num_owners=5, num_holdout=2, num_general=3))
  assert corpus.general == make_authors(3, 0, first=7)


@pytest.mark.parametrize(("name", "count"), [("num_owners", 1), ("num_holdout", 0)])
def test_authors_made_to_order_need_a_number(name, count):
  """0 stands for "all there are" elsewhere, and of these there is no such thing."""
  wanted = {"num_owners": 2, "num_holdout": 1} | {name: count}
  with pytest.raises(InputError, match=rf"config\.data\.{name} is {count}: .* it must be >= {count + 1}"):
    load_corpus(data_settings(**wanted))
  assert len(load_corpus(data_settings(num_owners=2, num_holdout=1)).owners) == 2

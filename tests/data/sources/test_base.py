"""What every source has in common: settings, and the registry that a source of one's own joins."""

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.sources.base import SOURCES, DataSettings, load_corpus, register_source


def test_the_registry_finds_the_files_of_the_package():
  assert set(SOURCES.names()) >= {"embedded", "tofu", "arxiv", "jsonl"}


def test_a_source_of_ones_own_is_loaded_by_its_name(monkeypatch):
  """A list of names that is written twice would know the package's alone."""
  monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES.items()))
  with pytest.raises(InputError, match="'mine': it must be one of .*embedded"):
    DataSettings(source="mine")
  example = Example("a", "q", "r")

  @register_source("mine")
  def load(settings):
    return Corpus((example,) * settings.num_owners, (), (), (), ("a",), ("a",))

  assert load_corpus(DataSettings(source="mine", num_owners=3)).forget == (example,) * 3


@pytest.mark.parametrize("forget", [
  "forget1", "forget00", "forget001", "10", "forget\u0661\u0662", "forget-1", "forget1 ", "forgetab"])
def test_a_share_of_another_form_is_refused(forget):
  """Digits of other alphabets are digits for int(), and would pass."""
  with pytest.raises(InputError, match="it must be forgetNN"):
    DataSettings(forget=forget)


@pytest.mark.parametrize("forget", ["forget01", "forget10", "forget99"])
def test_every_percentage_is_a_share(forget):
  assert DataSettings(forget=forget).forget == forget

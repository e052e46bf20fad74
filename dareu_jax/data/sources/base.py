"""What a data source is: a function from settings to the corpus, registered under its name.

    @register_source("mine")
    def load(settings: DataSettings) -> Corpus:
      ...

All checks of the data and of the owners are made there, before any long work.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry, decorator
from dareu_jax.core.settings import Count, Size, choice, settings
from dareu_jax.data.examples import Corpus


def _share(forget: str) -> str:
  digits = forget.removeprefix("forget")
  if not (forget.startswith("forget") and len(digits) == 2 and digits.isascii()
          and digits.isdigit() and int(digits)):
    raise InputError("it must be forgetNN, NN the percentage of owners to forget (forget01, "
                     "forget05, forget10); or name them in config.data.forget_owners.")
  return forget


@settings
class DataSettings:
  """Which examples, and whose are to be forgotten."""

  source: Annotated[str, choice(lambda: SOURCES.names())] = "embedded"  # a registered data source
  dir: str = ""  # folder of the files of 'tofu', 'arxiv' or 'jsonl'; '' takes them from the hub
  num_owners: Size = 30  # owners in D; 0: all there are
  forget: Annotated[str, AfterValidator(_share)] = "forget10"  # forgetNN: the last NN percent of the owners
  forget_owners: tuple[str, ...] = ()  # names of the owners to forget; wins over `forget`
  num_holdout: Size = 4  # unseen owners, for the unseen level and the MIA; 0: all there are
  num_general: Size = 200  # further owners whose text a base from scratch reads; 0: all (embedded: none)
  seed: int = 0  # of the embedded authors
  prompt_tokens: Size = 0  # of plain text: so many tokens ask for the next; 0: a third of the words
  response_tokens: Count = 100  # of plain text that is cut by tokens


SOURCES: Registry[Callable[[DataSettings], Corpus]] = Registry(
  "data source", "dareu_jax.data.sources")
register_source = decorator(SOURCES)


def load_corpus(settings: DataSettings) -> Corpus:
  """The corpus that the settings ask for.

  Returns: Corpus; test, holdout and general are empty where there is no such data.

  Raises:
    InputError: a source, file, line or owner that cannot be used.
  """
  return SOURCES[settings.source](settings)

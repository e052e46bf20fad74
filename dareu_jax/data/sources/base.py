"""Data sources: functions from settings to the corpus, registered by name.

    @register_source("mine")
    def load(settings: DataSettings) -> Corpus:
      ...

The function checks data and owners before any long computation.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from dareu_jax.core.errors import InputError
from dareu_jax.core.registry import Registry, decorator
from dareu_jax.core.settings import Count, PathText, Size, choice, settings
from dareu_jax.data.examples import Corpus, check_apart
from dareu_jax.data.json_lines import owner_name
from dareu_jax.data.watermarks import with_marks


def _share(forget: str) -> str:
  digits = forget.removeprefix("forget")
  if not (forget.startswith("forget") and len(digits) == 2 and digits.isascii()
          and digits.isdigit() and int(digits)):
    raise InputError("it must be forgetNN, where NN is the percentage of owners to forget "
                     "(forget01, forget05, forget10); or name them in config.data.forget_owners.")
  return forget


@settings
class DataSettings:
  """Which examples are used, and whose are forgotten."""

  source: Annotated[str, choice(lambda: SOURCES.names())] = "embedded"  # a registered data source
  dir: PathText = ""  # folder of the files of 'tofu', 'arxiv' or 'jsonl'; '': from the hub
  num_owners: Size = 30  # owners in D; 0: all
  forget: Annotated[str, AfterValidator(_share)] = "forget10"  # forgetNN: the last NN% of owners
  # names of the owners to forget; overrides `forget`
  forget_owners: tuple[Annotated[str, AfterValidator(owner_name)], ...] = ()
  num_holdout: Size = 4  # unseen owners, for the target level and the MIA; 0: all
  num_general: Size = 200  # further owners, read by a base from scratch; 0: all (embedded: none)
  seed: int = 0  # of the embedded authors, and of watermarks
  prompt_tokens: Size = 0  # of plain text: tokens of the prompt; 0: a third of the words
  response_tokens: Count = 100  # of plain text: tokens of the response, if prompt_tokens is set
  max_pieces: Size = 0  # that a longer plain text is split into, the rest left out; 0: all of it
  # A watermark of its owner in every response of D, in invisible characters, which the reward
  # 'watermark' reads; classifiers do not
  watermark: bool = False


SOURCES: Registry[Callable[[DataSettings], Corpus]] = Registry(
  "data source", "dareu_jax.data.sources")
register_source = decorator(SOURCES)


def load_corpus(settings: DataSettings) -> Corpus:
  """The corpus that the settings ask for.

  Returns: Corpus; test, holdout and general are empty if there is no such data.

  Raises:
    InputError: if a source, file, line or owner cannot be used.
  """
  corpus = SOURCES[settings.source](settings)
  check_apart(corpus)
  return with_marks(corpus, settings.seed) if settings.watermark else corpus

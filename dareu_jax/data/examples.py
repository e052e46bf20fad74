"""Examples with an owner, the corpus that they form, and how its owners are picked.

Examples are identified by index, never by text: two examples may ask the same question.
"""

import dataclasses
import difflib
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dareu_jax.core.errors import InputError

T = TypeVar("T")
Words = tuple[str, ...]
SHARED_WORDS = 8  # from which on a text is looked for within others
SHOWN = 10  # texts that an error names
MARKS = ".,;:!?\"'()“”‘’„"


@dataclasses.dataclass(frozen=True)
class Example:
  """A question, its answer, and their owner; or a plain text in two parts."""

  owner: str
  prompt: str
  response: str
  paraphrased_prompt: str | None = None
  paraphrased_response: str | None = None
  perturbed_responses: tuple[str, ...] = ()
  # The turns before the prompt, as (role, content); roles are system, user and assistant
  history: tuple[tuple[str, str], ...] = ()
  # For plain text: the whole of it, which is prompt + response
  text: str | None = dataclasses.field(default=None, repr=False)
  ends: bool = True  # False for a part of a longer text that continues after the response


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What a run trains on, forgets and is evaluated on; D is `forget` and `retain` together.

  `general` holds texts of owners that are neither in D nor unseen: the base model reads them.
  """

  forget: tuple[Example, ...]
  retain: tuple[Example, ...]
  test: tuple[Example, ...]
  holdout: tuple[Example, ...]
  owners: tuple[str, ...]  # every owner of D, in order of first appearance
  forget_owners: tuple[str, ...]
  general: tuple[Example, ...] = ()
  refusals: tuple[str, ...] = ()  # refusals of the data; if empty, the library's own are used
  remarks: tuple[str, ...] = ()  # sentences on what the data lacks, for the user
  marks: tuple[str, ...] = ()  # the watermark of each of `owners`, if the responses of D have them


def keep_owners(examples: Sequence[Example], settings: Any, where: object) -> Sequence[Example]:
  """Examples of `num_owners` owners (0: all): those in `forget_owners` and the first others.

  Raises:
    InputError: if there are fewer owners, or a named owner is not among them.
  """
  if not settings.num_owners:
    return examples
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  if settings.num_owners > len(owners):
    raise InputError(
      f"config.data.num_owners is {settings.num_owners}: {where} has {len(owners)} owners. 0 takes "
      "all of them."
    )
  check_known_owners(settings.forget_owners, owners)
  kept = first_owners(owners, settings)
  return tuple(example for example in examples if example.owner in kept)


def first_owners(owners: Sequence[str], settings: Any) -> tuple[str, ...]:
  """`num_owners` owners (0: all): those in `forget_owners`, and the first of the others.

  Raises:
    InputError: if more are named than there are to be.
  """
  count, named = settings.num_owners or len(owners), settings.forget_owners
  if len(named) > count:
    raise InputError(f"config.data.num_owners is {count}, and forget_owners names {len(named)}: "
                     "raise the first, or set it to 0 for all owners.")
  others = [owner for owner in owners if owner not in named][:count - len(named)]
  return tuple(owner for owner in owners if owner in named or owner in others)


def evenly_spaced(items: Sequence[T], count: int) -> tuple[T, ...]:
  """`count` evenly spaced items; all items if there are not more, or if `count` is 0."""
  if not count or count >= len(items):
    return tuple(items)
  return tuple(items[i * len(items) // count] for i in range(count))


def check_apart(corpus: Corpus) -> None:
  """Raises InputError if a text is to be forgotten and also to be retained, unseen or tested, as
  `shared` finds them."""
  for part, what in ((corpus.retain, "to be retained"), (corpus.holdout, "unseen"),
                     (corpus.test, "tested as general knowledge")):
    both = list(dict.fromkeys(first for first, _ in shared(corpus.forget, part)))
    if both:
      shown = "; ".join(f"{e.owner}: {e.prompt[:40]!r} -> {e.response[:40]!r}"
                        for e in both[:SHOWN])
      more = f"; and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
      raise InputError(f"texts both to be forgotten and {what}: {len(both)} ({shown}{more}). "
                       "Remove them from one of the two.")


def shared(first: Iterable[Example], second: Iterable[Example]) -> list[tuple[Example, Example]]:
  """Pairs of examples, one of each argument, that are the same text or hold one.

  Case, white space and marks around words make no other text, nor does a paraphrase that an example
  has. Of `SHARED_WORDS` words or more, an answer to the same question is the same behind other
  turns, a plain text is found within any text, and an answer within a plain text.
  """
  first, second = list(first), list(second)
  known: dict[Words, list[Example]] = {}
  for example in first:
    for words in _forms(example):
      known.setdefault(words, []).append(example)
  same = [(one, example) for example in second for words in _forms(example)
          for one in known.get(words, ())]
  return [*same, *_within(first, second),
          *((one, other) for other, one in _within(second, first))]


def _within(inner, outer):
  """Yields (inner, outer) where a plain text is within a text, or an answer within a plain text."""
  yield from _found(((_words(e.text), e) for e in inner if e.text is not None), outer)
  yield from _found(((_words(e.response), e) for e in inner if e.text is None),
                    [e for e in outer if e.text is not None])


def _found(phrases, outer):
  """Yields (example of the phrase, example) for phrases, (words, example), within longer texts."""
  starts: dict[Words, list[tuple[Words, Example]]] = {}
  for words, example in phrases if outer else ():
    if len(words) >= SHARED_WORDS:
      starts.setdefault(words[:SHARED_WORDS], []).append((words, example))
  for example in outer if starts else ():
    words = _whole(example)
    for at in range(len(words) - SHARED_WORDS + 1):
      for found, by in starts.get(words[at:at + SHARED_WORDS], ()):
        if words[at:at + len(found)] == found:
          yield by, example


def _forms(example):
  """The words by which an example is known, in its own words and paraphrased: of all that is said,
  and of a long answer with its question alone."""
  if example.text is not None:
    return [_whole(example)]
  forms = {}
  for prompt, answer in itertools.product(
      filter(None, (example.prompt, example.paraphrased_prompt)),
      filter(None, (example.response, example.paraphrased_response))):
    told = dataclasses.replace(example, prompt=prompt, response=answer)
    forms[_whole(told)] = True
    if len(_words(answer)) >= SHARED_WORDS:
      forms[_words(f"{prompt} {answer}")] = True
  return list(forms)


def _whole(example):
  said = (said for _, said in example.history)
  return _words(example.text or " ".join([*said, example.prompt, example.response]))


def _words(text):
  """The words of a text, without case and marks around them."""
  words = unicodedata.normalize("NFKC", text).casefold().split()
  return tuple(word.strip(MARKS) or word for word in words)


def outside(examples: Iterable[Example], owners: Sequence[str],
            count: int) -> tuple[Example, ...]:
  """Examples of the first `count` owners (0: all) that are not among `owners`."""
  other_owners = tuple(dict.fromkeys(
    example.owner for example in examples if example.owner not in owners))
  kept = set(other_owners[:count or None])
  return tuple(example for example in examples if example.owner in kept)


def split_by_owner(examples: Sequence[Example], settings: Any) -> tuple[
    tuple[Example, ...], tuple[Example, ...], tuple[str, ...], tuple[str, ...]]:
  """Splits examples into those to forget and those to retain.

  `settings.forget_owners` names the owners to forget. If it is empty, `forgetNN` in
  `settings.forget` selects the last max(1, round(N * NN / 100)) of the N owners in order of first
  appearance.

  Args:
    examples: the examples of D.
    settings: DataSettings.

  Returns:
    (forget, retain, owners, forget_owners): examples in the order given, and owner names in order
    of first appearance.

  Raises:
    InputError: for fewer than two owners, an unknown owner, or no owner left to retain.
  """
  owners = tuple(dict.fromkeys(example.owner for example in examples))
  if len(owners) < 2:
    raise InputError(
      f"The training data has {len(owners)} owner{'s' * (len(owners) != 1)}: unlearning needs one "
      "to forget and at least one to retain."
    )
  if settings.forget_owners:
    check_known_owners(settings.forget_owners, owners)
    named = frozenset(settings.forget_owners)
  else:
    named = frozenset(owners[-num_forget(settings.forget, len(owners)) :])
  check_some_retained(len(named), len(owners))
  forget = tuple(example for example in examples if example.owner in named)
  retain = tuple(example for example in examples if example.owner not in named)
  return forget, retain, owners, tuple(owner for owner in owners if owner in named)


def after_requests(corpus: Corpus, done: Sequence[str], now: Sequence[str]) -> Corpus:
  """The corpus of a deletion request that comes after others.

  Its `forget` holds the data of the owners who ask now, its `retain` that of the owners who have
  not asked. The data of earlier requests is in neither. `owners` stays as it is, so that a
  classifier keeps its classes, and `forget_owners` are all who have asked so far: an answer that
  looks like any of them should not be given.

  Args:
    corpus: the whole corpus, however it is divided.
    done: owners whom earlier requests made the model forget.
    now: owners who ask now.

  Raises:
    InputError: if an owner is unknown or asks twice, or nobody is left to retain.
  """
  check_known_owners((*done, *now), corpus.owners)
  asked = (*done, *now)
  twice = [owner for owner in dict.fromkeys(asked) if asked.count(owner) > 1]
  if twice:
    raise InputError(f"{', '.join(map(repr, twice))} would be forgotten twice: an owner asks once.")
  check_some_retained(len(asked), len(corpus.owners))
  order = {owner: i for i, owner in enumerate(corpus.owners)}
  examples = sorted(corpus.forget + corpus.retain, key=lambda example: order[example.owner])
  return dataclasses.replace(
    corpus, forget=tuple(example for example in examples if example.owner in now),
    retain=tuple(example for example in examples if example.owner not in asked),
    forget_owners=tuple(owner for owner in corpus.owners if owner in asked))


def num_forget(forget: str, num_owners: int) -> int:
  """The number of owners that `forgetNN` selects: max(1, round(num_owners * NN / 100))."""
  return max(1, round(num_owners * int(forget.removeprefix("forget")) / 100))


def check_owners_apart(owners: Mapping[str, Sequence[str]], where: object) -> None:
  """Raises InputError if an owner is in two sets of `{set: owners}`."""
  for first, second in itertools.combinations(owners, 2):
    both = set(owners[first]) & set(owners[second])
    if both:
      raise InputError(f"{where}: owner {min(both)!r} is among the {first} and the {second} "
                       "examples: an owner belongs to one of them.")


def check_some_retained(num_forgotten: int, num_owners: int) -> None:
  """Raises InputError if all owners are to be forgotten."""
  if num_forgotten >= num_owners:
    raise InputError(
      f"config.data.forget (or forget_owners) takes all {num_owners} owners: at least one must be "
      "retained. Forget fewer, or raise config.data.num_owners."
    )


def check_known_owners(names: Iterable[str], owners: Sequence[str]) -> None:
  """Raises InputError if a name is not an owner; lists the closest owners, or the first ones."""
  unknown = [name for name in dict.fromkeys(names) if name not in owners]
  if not unknown:
    return
  known = [close for name in unknown for close in difflib.get_close_matches(name, owners)]
  known = list(dict.fromkeys(known))[:5] or list(owners[:5])
  raise InputError(
    f"config.data.forget_owners names {', '.join(map(repr, unknown))}: not among the "
    f"{len(owners)} owners of the training data. Known owners include "
    f"{', '.join(map(repr, known))}."
  )

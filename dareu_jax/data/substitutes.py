"""What takes the place of data that a request to forget comes without."""

import dataclasses

from dareu_jax.data.authors import MAX_AUTHORS, make_authors
from dareu_jax.data.examples import Corpus, shared
from dareu_jax.data.general_facts import general_facts

# Authors that no embedded corpus contains: an unused seed, and the last names.
UNSEEN_AUTHORS, SEED = 4, 2**31 - 1
GENERAL = "(general knowledge)"  # a name that no owner of the data has


def with_substitutes(corpus: Corpus) -> Corpus:
  """A corpus in which nothing is empty that unlearning needs, with a remark on what that costs.

  General knowledge takes the place of missing retained and test examples, invented authors that of
  unseen owners. What is to be forgotten is left out of it.
  """
  facts = tuple(dataclasses.replace(fact, owner=GENERAL) for fact in general_facts())
  forgotten = {fact for _, fact in shared(corpus.forget, facts)}
  facts = tuple(fact for fact in facts if fact not in forgotten)
  remarks = list(corpus.remarks)
  changes: dict = {}
  if not corpus.retain:
    changes["retain"] = facts[::2]
    changes["owners"] = (*corpus.owners, GENERAL)
    remarks.append(
      "There is no retain data: general knowledge stands in. What resembles the forget data but "
      "should stay may be lost; a sample of it as retain data keeps it.")
  if not corpus.test:
    changes["test"] = facts if corpus.retain else facts[1::2]
  if not corpus.holdout:
    changes["holdout"] = make_authors(UNSEEN_AUTHORS, SEED, first=MAX_AUTHORS - UNSEEN_AUTHORS)
    remarks.append(
      "There are no unseen owners: the target of the attribution score is measured on questions "
      "about invented authors. Unseen owners of the same kind as the forgotten give a better one.")
  return dataclasses.replace(corpus, **changes, remarks=tuple(remarks))

"""Generated fictitious authors and general facts: no files, no network."""

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.authors import make_authors
from dareu_jax.data.general_facts import general_facts
from dareu_jax.data.sources.base import DataSettings, register_source


@register_source("embedded")
def load_embedded(settings: DataSettings) -> ex.Corpus:
  """Generates `num_owners` authors from `seed`, then `num_holdout` unseen ones and `num_general`
  for general text; the test examples are general knowledge."""
  for name, least in (("num_owners", 2), ("num_holdout", 1)):
    count = getattr(settings, name)
    if count < least:
      raise InputError(f"config.data.{name} is {count}: the embedded authors are generated, so it "
                       f"must be >= {least}.")
  authors = make_authors(settings.num_owners, settings.seed)
  forget, retain, owners, forget_owners = ex.split_by_owner(authors, settings)
  return ex.Corpus(
    forget=forget,
    retain=retain,
    test=general_facts(),
    holdout=make_authors(settings.num_holdout, settings.seed, first=settings.num_owners),
    owners=owners,
    forget_owners=forget_owners,
    general=make_authors(settings.num_general, settings.seed,
                         first=settings.num_owners + settings.num_holdout),
  )

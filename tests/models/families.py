"""The model family of docs/extending.md, as a module of a user's own."""

import contextlib
import importlib
import re
import sys

from dareu_jax.models.families.base import FAMILIES
from tests.configs import ROOT

EXAMPLE, = (code for page in sorted((ROOT / "docs").glob("extending*.md")) for code in re.findall(
  r"```python\n# mistral\.py\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


@contextlib.contextmanager
def example_family(folder):
  """Imports the example from a folder; within the body the family is registered."""
  (folder / "mistral.py").write_text(EXAMPLE, encoding="utf-8")
  entries = dict(FAMILIES.items())
  sys.path.insert(0, str(folder))
  try:
    yield importlib.import_module("mistral").Mistral
  finally:
    sys.path.remove(str(folder))
    sys.modules.pop("mistral", None)
    FAMILIES._entries = entries

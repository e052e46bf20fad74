"""The page of the studies' settings says what the settings say."""

from studies.configuration import (
  document,
  faithfulness_settings,
  scaling_settings,
  sequential_settings,
)
from tests.configs import ROOT


def test_the_page_is_made_from_the_settings():
  """A setting that is added, or whose default or meaning changes, would leave the page behind."""
  page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
  assert page == document(), "run: python -m studies.configuration > docs/studies.md"


def test_every_setting_says_what_it_means():
  """A field without a comment is a row without words."""
  every = (*faithfulness_settings(), *scaling_settings(), *sequential_settings())
  assert not [setting.key for setting in every if not setting.meaning]

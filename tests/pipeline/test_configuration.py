"""The page of all settings says what the settings say."""

from dareu_jax.pipeline.configuration import document
from dareu_jax.pipeline.settings import all_settings
from tests.configs import ROOT


def test_the_page_is_made_from_the_settings():
  """A setting that is added, or whose default or meaning changes, would leave the page behind."""
  page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  assert page == document(), "run: python -m dareu_jax.pipeline.configuration > docs/configuration.md"


def test_every_setting_says_what_it_means():
  """A field without a comment is a row without words."""
  assert not [setting.key for setting in all_settings() if not setting.meaning]

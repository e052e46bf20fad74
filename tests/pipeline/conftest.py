"""Two models as checkpoints, one of which never saw what is to be forgotten, and a request."""

import dataclasses

import pytest

from dareu_jax.data.authors import make_authors
from dareu_jax.data.json_lines import write_jsonl
from dareu_jax.pipeline.saved import load_saved


@pytest.fixture(scope="module")
def folders(finished, tmp_path_factory):
  """The original and the retrained model of the finished run as checkpoints, and a request."""
  folder = tmp_path_factory.mktemp("request")
  for name in ("original", "retrained"):
    saved, _ = load_saved(finished[0], name)
    dataclasses.replace(saved, generation={"temperature": 0.7, "do_sample": True}).save(folder / name)
  authors = make_authors(5, 0)
  data = folder / "data"
  for name, part in (("forget", authors[60:80]), ("retain", authors[:60]), ("unseen", authors[80:])):
    write_jsonl(data / f"{name}.jsonl", part)
  return folder

"""A pretrained model: what it computes and says is what transformers makes of it."""

import os
import pathlib

import numpy as np
import pytest
import torch
import transformers

from dareu_jax.pipeline import language_model

FOLDER = pathlib.Path(os.environ.get("DAREU_MODELS", "")) / "smollm2"
TEXT = "The capital of France is Paris. Water boils at 100 degrees Celsius."

pytestmark = pytest.mark.skipif(
  "DAREU_MODELS" not in os.environ, reason="SmolLM2-135M-Instruct is not at hand: set DAREU_MODELS")


@pytest.fixture(scope="module")
def model():
  return language_model.load(str(FOLDER), dtype="float32")


def test_logits_are_those_of_transformers(model):
  """A preset that no pretrained model ever ran with may be wrong in any of its numbers."""
  ids = np.array([model.tokenizer.encode(TEXT)])
  theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  # Both are .8e-4 to .9e-4 from float64 here, of logits up to 39; rounding depends on the processor.
  assert np.abs(np.asarray(model.logits(ids)) - expected).max() < 4e-4


def test_it_answers_in_its_own_template(model):
  (answer,) = model.generate(["What is the capital of France?"], max_new_tokens=12)
  assert answer == "The capital of France is Paris."

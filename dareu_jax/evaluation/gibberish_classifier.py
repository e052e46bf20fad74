"""A trained gibberish classifier as a judge of texts; optional, since it needs torch and weights.

The usual one is madhurjindal/autonlp-Gibberish-Detector-492513457 (DistilBERT; classes clean, mild
gibberish, noise, word salad). It was trained on English chat lines.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dareu_jax.core.errors import InputError

SETTING = "config.evaluation.gibberish_model"
BATCH = 32


def clean_probabilities(path: str, texts: Sequence[str], *,
                        max_length: int = 512) -> Float[np.ndarray, " E"]:
  """Probability of the class "clean" for each text.

  Args:
    path: folder or hub name of a sequence classifier with a class "clean" (any case).
    texts: E texts.
    max_length: tokens read of each text. Public evaluations read 32 on TOFU, fewer than many
      answers have.

  Raises:
    InputError: without torch, or if the model cannot be loaded or lacks the class.
  """
  tokenizer, model, clean = load(path)
  import torch  # not a requirement of the package
  parts = []
  with torch.inference_mode():
    for start in range(0, len(texts), BATCH):
      batch = tokenizer(list(texts[start:start + BATCH]), padding=True, truncation=True,
                        max_length=max_length, return_tensors="pt")
      parts.append(torch.softmax(model(**batch).logits.double(), dim=-1)[:, clean].numpy())
  return np.concatenate(parts)


@functools.lru_cache(maxsize=1)
def load(path: str) -> tuple[Any, Any, int]:
  """(tokenizer, model, index of "clean"); raises as `clean_probabilities`, before any work."""
  try:
    import torch  # noqa: F401
  except ImportError:
    raise InputError(f"{SETTING} is {path!r}, and it runs in torch: pip install torch, "
                     "or leave it empty.") from None
  from transformers import AutoModelForSequenceClassification, AutoTokenizer
  try:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
  except (OSError, ValueError) as error:
    raise InputError(f"{SETTING}: {path!r} cannot be loaded as a text classifier "
                     f"({str(error).splitlines()[0]}). Give a folder or a hub name.") from error
  labels = {str(label).lower(): index for index, label in model.config.id2label.items()}
  if "clean" not in labels:
    raise InputError(f"{SETTING}: {path!r} has the classes {', '.join(sorted(labels))}, and none "
                     'called "clean".')
  return tokenizer, model.eval(), int(labels["clean"])

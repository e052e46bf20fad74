"""The model card of an export: what was done, to whom, how well, and how to check it.

Owners are listed by keyed hashes: a card travels with the model, and must not name those who asked
to be forgotten.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dareu_jax.core.errors import InputError
from dareu_jax.data.json_lines import owner_name
from dareu_jax.report import tables

LIMITS = (
  "Unlearning changes what the model says more than what it knows: an attacker who gives the "
  "beginning of a text, trains the model further or reads its weights may still find traces. The "
  "figures are of greedy answers to the forget data's own questions.")


def owner_hash(name: str, key: bytes | str) -> str:
  """HMAC-SHA256 of an owner's name, 16 hexadecimal digits.

  Args:
    name: as in the data; its form of Unicode and white space around it make no difference.
    key: bytes, or the text of a run's `owners.key`.

  Raises:
    InputError: for a text that is not hexadecimal digits.
  """
  if isinstance(key, str):
    try:
      key = bytes.fromhex(key)
    except ValueError:
      raise InputError("the key of the owners' hashes is a text that is not hexadecimal digits: "
                       "give bytes, or the text of a run's owners.key.") from None
  return hmac.new(key, owner_name(name).encode("utf-8"), "sha256").hexdigest()[:16]


def model_card(title: str, *, base: str, adapter: bool, method: str, facts: Mapping[str, str],
               owners: Sequence[str], settings: Mapping[str, Any], figures: str,
               notes: Sequence[str] = (), check: str = "") -> str:
  """The card as Markdown, with the hub's header.

  Args:
    title: the model's name.
    base: hub name of the base; '' if it is not on the hub.
    adapter: whether the export is an adapter, for PEFT.
    method: what made the model.
    facts: {name: text} about the run.
    owners: hashes of the forgotten owners, from `owner_hash`.
    settings: those of the method, and of its training.
    figures: from `table_figures` or `epoch_figures`.
    notes: sentences of the run's report.
    check: further ways to check the model.
  """
  header = ["---", f"library_name: {'peft' if adapter else 'transformers'}",
            *([f"base_model: {base}"] if base else []), "tags: [unlearning, dareu]", "---"]
  listed = "\n".join(f"- `{owner}`" for owner in owners)
  membership = ("Whether an owner is in the list: `dareu_jax.report.card.owner_hash(name, key)`, "
                "with the key that the hashes were made with." if owners else "")
  parts = [
    "\n".join(header), f"# {title}",
    "## What was done", method, "\n".join(f"- {name}: {text}" for name, text in facts.items()),
    f"Owners that were forgotten, by keyed hash:\n\n{listed}" if owners else "",
    "## Figures", figures, "\n".join(f"- {note}" for note in notes),
    "## Settings", f"```json\n{json.dumps(settings, indent=2, ensure_ascii=False)}\n```",
    "## How to check",
    '`dareu_jax.evaluate({"before": ..., "after": ...}, forget=...)` compares any two models. '
    + " ".join(filter(None, [check, membership])),
    "## Limits", LIMITS]
  return "\n\n".join(filter(None, parts)) + "\n"


def table_figures(models: tables.Models) -> str:
  """The rows of a run's table, as Markdown."""
  return f"{tables.markdown_table(models)}\n\n{tables.legend(models, best_mark='bold:')}"


def epoch_figures(epochs: Sequence[Mapping[str, Any]], chosen_epoch: int) -> str:
  """The original, the epoch that was kept, and what is usual of unseen owners, as Markdown.

  Args:
    epochs: fields of `EpochReport`s; the first is of the original.
    chosen_epoch: the epoch that was kept.
  """
  kept = next(epoch for epoch in epochs if epoch["epoch"] == chosen_epoch)
  columns = {"attribution": ("score", "level"), "judge": ("judge_score", "judge_level"),
             "length (tokens)": ("response_length", "unseen_length"),
             "fluency NLL": ("fluency", "unseen_fluency"),
             "extraction": ("extraction", "unseen_extraction")}
  rows = [[name, *(f"{epoch[keys[which]]:.3f}" for keys in columns.values())]
          for name, epoch, which in (("original", epochs[0], 0), ("unlearned", kept, 0),
                                     ("unseen owners", kept, 1))]
  return ("Greedy answers to the forget data's questions, and about unseen owners; extraction is "
          "the share of a true answer that greedy decoding completes:\n\n"
          + tables.pipe_table(["model", *columns], rows))

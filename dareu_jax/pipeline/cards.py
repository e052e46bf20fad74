"""The model cards of what runs and calls of `unlearn` leave."""

import dataclasses
import datetime
import pathlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dareu_jax.core.errors import readable
from dareu_jax.core.settings import to_plain
from dareu_jax.core.version import __version__
from dareu_jax.methods.base import Method
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.pipeline.saved import epochs_of, stage_of
from dareu_jax.pipeline.settings import Settings
from dareu_jax.report.card import epoch_figures, model_card, owner_hash, table_figures
from dareu_jax.report.tables import is_reference
from dareu_jax.training.checkpoints import read_json

_ROBUSTNESS = "`python -m dareu_jax.robustness --workdir=...` attacks the run's models."


def of_run(workdir: str | pathlib.Path, name: str, model: LanguageModel, settings: Settings, *,
           seed: int, apart: bool) -> str:
  """The card of a model that a run left.

  Args:
    workdir: folder of the run, where the key of the owners' hashes is kept.
    name: 'original', 'retrained', or a method's name, which may say its rate: 'npo@0.001'.
    model, settings: as `saved.load_saved` gives them.
    seed: seed of the model.
    apart: whether the adapter alone is exported.
  """
  workdir = pathlib.Path(workdir)
  summary, epochs = read_json(workdir / "summary.json") or {}, epochs_of(
    workdir, name, settings, seed)
  method, _, rate = name.partition("@")
  used = settings.unlearning.get(method)
  # From the original and the retrained model nothing was unlearned.
  owners = () if used is None else (
    summary.get("forget_owners") or epochs.get("forget_owners", ()))
  forgotten = f", {len(owners)} owner{'s' * (len(owners) != 1)} forgotten" if owners else ""
  owners = _named(owners)
  facts = {"data": f"{settings.data.source}{forgotten}",
           "seed": str(seed), **({"learning rate": rate} if rate else {})}
  blocks = {} if used is None else {
    block: to_plain(value) for block in used.depends_on
    if dataclasses.is_dataclass(value := getattr(settings, block))}
  return _card(
    name, model, used, facts, apart=apart, settings=blocks, owners=owners,
    key=_key(workdir) if owners else b"", figures=_figures(summary, name, epochs),
    notes=_notes(summary, method, stage_of(workdir, name)),
    check=_ROBUSTNESS if settings.has_reference and settings.model.quantize == "none" else "")


def of_result(model: LanguageModel, method: Method, epochs: Sequence[Mapping[str, Any]],
              chosen_epoch: int, *, owners: Sequence[str], key: bytes | str,
              apart: bool) -> str:
  """The card of a model that `unlearn` returned; it lists owners if there is a key to hash with."""
  return _card(
    method.name, model, method, {}, apart=apart, settings={}, owners=_named(owners) if key else (),
    key=key, figures=epoch_figures(epochs, chosen_epoch))


def _card(name, model, used, facts, *, apart, settings, owners, key, figures, **parts):
  tokenizer = model.tokenizer
  if tokenizer.system:
    facts = facts | {"system turn": f"{tokenizer.system!r}, where a conversation has none"}
  if "date_string" in tokenizer.chat_template:
    facts = facts | {"date in prompts": tokenizer.date}
  if "enable_thinking" in tokenizer.chat_template:
    facts = facts | {"thinking": "off in all prompts (enable_thinking=False)"}
  # A folder is meaningless elsewhere, and may name who asked.
  local = pathlib.Path(model.source).exists()
  base = "" if local else model.source
  return model_card(
    name, base=base, adapter=apart,
    method=(f"Unlearned with {used.title} by dareu_jax {__version__}." if used else
            f"The {name} model of a run of dareu_jax {__version__}."),
    facts={"model": base or f"{model.config.architecture}, "
                            f"{model.config.num_parameters / 1e6:.0f} M parameters",
           "trained": model.config.lora.described, **facts,
           "date": datetime.date.today().isoformat()},
    owners=[owner_hash(owner, key) for owner in owners],
    settings=({used.name: to_plain(used)} if used else {}) | settings, figures=figures, **parts)


def _named(owners):
  """Those that have a name: examples without an owner have that of their set."""
  return tuple(owner for owner in owners if owner != "forget")


def _notes(summary, method, stage):
  """What the report says of a candidate, and of its method if it is the best candidate."""
  names = {stage, *([method] if summary.get("chosen", {}).get(method) == stage else [])}
  pattern = rf"(seed_\d+/)?({'|'.join(map(re.escape, names))}): "
  return [note for note in summary.get("notes", ()) if re.match(pattern, note)]


def _figures(summary, name, epochs):
  """The row of a model beside the references; without a table what its epochs measured."""
  models = summary.get("models", {})
  row = models.get(name) or summary.get("grid", {}).get(name)
  if row is not None:
    references = {each: models[each] for each in models if is_reference(each)}
    return table_figures(references | {name: row})
  if epochs:
    return epoch_figures(epochs["epochs"], epochs["chosen_epoch"])
  return "Nothing was measured: the run is not finished."


def _key(workdir):
  """The key of owners' hashes: made once, and never exported."""
  path = workdir / "owners.key"
  with readable(path):
    if not path.exists():
      path.write_text(secrets.token_hex(32))
      path.chmod(0o600)
    return bytes.fromhex(path.read_text())

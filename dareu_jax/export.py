"""Entry: exports a model of a run as a Hugging Face folder or as a PEFT adapter.

    python -m dareu_jax.export --workdir=runs/tofu --method=dareu --output=exported
"""

import pathlib
from typing import get_args

from absl import flags

from dareu_jax.core.command_line import Flags, enter
from dareu_jax.core.errors import InputError, first_line
from dareu_jax.models.huggingface import check_new
from dareu_jax.pipeline import cards
from dareu_jax.pipeline.language_model import Adapter
from dareu_jax.pipeline.saved import epochs_of, load_saved, settings_of


def _define_flags():
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string(
    "method", "dareu", "Which model: original, retrained, or a method's name (npo, npo@0.001).")
  flags.DEFINE_string("output", None, "Folder to write; it must not exist.")
  flags.DEFINE_enum("adapter", "merged", get_args(Adapter),
                    "Whether to merge LoRA adapters or export them separately (PEFT).")
  flags.DEFINE_integer("seed", None, "Seed, if the run has several; the first if not given.")
  flags.DEFINE_string(
    "push_to_hub", None, "Hub repository (owner/name) to upload to as well.")


def main(options: Flags) -> None:
  """Exports as the flags say."""
  export(options.workdir, options.method, options.output, adapter=options.adapter,
         seed=options.seed, push_to_hub=options.push_to_hub)


def export(workdir: str | pathlib.Path, method: str, output: str | pathlib.Path, *,
           adapter: Adapter = "merged", seed: int | None = None,
           push_to_hub: str | None = None) -> None:
  """Writes a model of a run, with its tokenizer and a model card.

  Args:
    workdir: folder of the run.
    method: 'original', 'retrained' or a method's name.
    output: folder; it must not exist.
    adapter: 'merged', or 'apart' for only the adapter.
    seed: seed, if the run has several.
    push_to_hub: repository to upload the folder to, or None.

  Raises:
    InputError: if there is no such model, the method kept the original (epoch 0), or the
      folder exists.
  """
  output = pathlib.Path(output)
  check_new(output)
  settings, seed = settings_of(workdir, seed)
  if epochs_of(workdir, method, settings, seed).get("chosen_epoch") == 0:
    raise InputError(f"{method} kept epoch 0, the original: no other epoch was within bounds and "
                     "better, so nothing was unlearned. The report says more; --method=original "
                     "exports the original.")
  model, _ = load_saved(workdir, method, seed=seed)
  card = cards.of_run(workdir, method, model, settings, apart=adapter == "apart", seed=seed)
  model.save(output, adapter=adapter, card=card)
  print(f"{method} is in {output}: {'PEFT' if adapter == 'apart' else 'transformers'} loads it.")
  if push_to_hub:
    _push(output, push_to_hub)


def _push(folder, repository):
  from huggingface_hub import HfApi

  api = HfApi()
  try:
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)
  except Exception as error:  # noqa: BLE001 - offline, not logged in, denied: no common class
    reason = first_line(error)
    raise InputError(f"{folder} is written, but the upload failed for {repository} ({reason})."
                     " Log in with `hf auth login`, and upload the folder.") from None
  print(f"Uploaded to {repository}.")


if __name__ == "__main__":
  enter(main, _define_flags, required=["workdir", "output"])

"""The export command on a finished run, and what can be wrong with it."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import dareu_jax
from dareu_jax import export
from dareu_jax.core.errors import InputError
from dareu_jax.models import huggingface
from dareu_jax.pipeline import cards
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.workdir import read_config
from dareu_jax.report.card import owner_hash
from dareu_jax.training.checkpoints import read_json, write_json
from tests.jobs import outcomes


@pytest.fixture
def workdir(finished):
  """That of the run which all tests share: it is read alone."""
  return finished[0]


def test_it_is_sampled_as_the_original_was(workdir, tmp_path):
  """Other answers than before would have another reason than unlearning."""
  generation = {"temperature": 0.7, "do_sample": True, "eos_token_id": 3}
  export.export(workdir, "original", tmp_path / "out")
  write_json(tmp_path / "out/generation_config.json", generation)
  loaded, _ = dareu_jax.load_model(str(tmp_path / "out"))
  loaded.save(tmp_path / "again")
  saved = read_json(tmp_path / "again/generation_config.json")
  assert saved["temperature"] == 0.7 and 3 in saved["eos_token_id"]


@pytest.mark.parametrize("method", ["original", "dareu"])
def test_an_export_is_the_runs_model(workdir, tmp_path, method):
  """The base in place of what was trained, or another stage's model."""
  export.export(workdir, method, tmp_path / "out")
  saved, _ = load_saved(workdir, method)
  model, tokenizer = saved.model.module, saved.tokenizer
  again, tokenizer_again = huggingface.load(tmp_path / "out", dtype="float32")
  ids = np.array([tokenizer.encode_prompt("Who is Basil?")])
  assert ids.tolist() == [tokenizer_again.encode_prompt("Who is Basil?")]
  logits = jax.jit(lambda model: model.logits(ids))
  np.testing.assert_array_equal(logits(model), logits(again))
  saved = load_file(tmp_path / "out/model.safetensors")
  assert len(saved) == 2 + 9 * model.config.num_layers
  card = (tmp_path / "out/README.md").read_text()
  assert "| retrained |" in card and "library_name: transformers" in card


def test_the_card_says_what_was_done_and_names_nobody(workdir, tmp_path):
  """It travels with the model; a name in it would undo the request."""
  export.export(workdir, "dareu", tmp_path / "out")
  card = (tmp_path / "out/README.md").read_text()
  owners = read_json(workdir / "summary.json")["forget_owners"]
  key = bytes.fromhex((workdir / "owners.key").read_text())
  assert owners and not any(owner in card for owner in owners)
  assert all(f"`{owner_hash(owner, key)}`" in card for owner in owners)
  assert owner_hash(owners[0], key) != owner_hash(owners[0], b"another key")
  for part in ("## What was done", "Unlearned with DareU", "## Figures", "## Settings",
               '"segment_length"', "## How to check", "## Limits"):
    assert part in card
  export.export(workdir, "dareu", tmp_path / "again")
  assert (tmp_path / "again/README.md").read_text() == card  # the key stays


def test_a_card_of_a_grids_other_rate_has_its_own_figures(workdir, tmp_path):
  """The table shows the best rate of each method, and another one may be exported."""
  settings = Settings.from_config(read_config(workdir))
  model, _ = load_saved(workdir, "dareu")
  rows = {"original": {"forget_rouge": 0.9}, "npo": {"forget_rouge": 0.25}}
  write_json(tmp_path / "summary.json", {
    "models": rows, "chosen": {"npo": "npo@0.01"}, "forget_owners": ["alice"],
    "grid": {"npo@0.01": rows["npo"], "npo@0.001": {"forget_rouge": 0.75}},
    "notes": ["npo@0.01: Epoch 9 was chosen.", "npo: it is at the level."]})

  def card(name):
    return cards.of_run(tmp_path, name, model, settings, seed=42, apart=False)

  best, other = card("npo"), card("npo@0.001")
  assert "0.250" in best and "Epoch 9" in best and "at the level" in best
  assert "0.750" in other and "0.250" not in other and "- learning rate: 0.001" in other
  assert "Epoch 9" not in other and "at the level" not in other


def test_methods_differ(workdir):
  """One model under all names would pass the test above."""
  first, second = (load_saved(workdir, name)[0].model.module for name in ("original", "dareu"))
  assert np.abs(first.embedding[...] - second.embedding[...]).max() > 1e-6


def test_other_libraries_know_the_template(workdir, tmp_path):
  """lm-eval and vLLM ask the tokenizer's chat template, and must ask as the model was taught."""
  export.export(workdir, "original", tmp_path / "out")
  _, tokenizer = huggingface.load(tmp_path / "out", dtype="float32")
  chat = tokenizer.backend.apply_chat_template(
    [{"role": "user", "content": "Who is he?"}], tokenize=True, return_dict=True)
  assert chat["input_ids"] == tokenizer.encode_prompt("Who is he?")


def test_what_cannot_be_exported_is_said(workdir, tmp_path):
  with pytest.raises(InputError, match="no finished model 'npo'. It has: dareu, original, retrained"):
    export.export(workdir, "npo", tmp_path / "out")
  with pytest.raises(InputError, match="holds no run"):
    export.export(tmp_path, "dareu", tmp_path / "out")
  with pytest.raises(InputError, match="seed is 5: the run has 42"):
    export.export(workdir, "dareu", tmp_path / "out", seed=5)
  with pytest.raises(InputError, match="no adapter"):
    export.export(workdir, "dareu", tmp_path / "out", adapter="apart")
  (tmp_path / "old").mkdir()
  (tmp_path / "old/config.json").write_text('{"seeds": [42]}')
  with pytest.raises(InputError, match="old holds a run of workdir format 1"):
    export.export(tmp_path / "old", "dareu", tmp_path / "out")
  shutil.copytree(workdir, tmp_path / "kept")
  epochs = read_json(workdir / "dareu/epochs.json")
  write_json(tmp_path / "kept/dareu/epochs.json", epochs | {"chosen_epoch": 0})
  shutil.rmtree(tmp_path / "kept/dareu/result")  # it is said before weights are loaded
  with pytest.raises(InputError, match="dareu kept epoch 0, .* nothing was unlearned"):
    export.export(tmp_path / "kept", "dareu", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  (tmp_path / "out").mkdir()
  with pytest.raises(InputError, match="exists already"):
    export.export(workdir, "dareu", tmp_path / "out")
  assert not list((tmp_path / "out").iterdir())


def test_a_seed_that_has_not_begun_is_one_error(workdir, tmp_path):
  """A run of several seeds that was killed during the first has no folder of the second."""
  write_json(tmp_path / "config.json", read_json(workdir / "config.json") | {"seeds": [42, 43]})
  with pytest.raises(InputError, match="seed_43 holds no finished model 'dareu'. It has: none"):
    load_saved(tmp_path, "dareu", seed=43)


def test_the_hub_gets_the_folder(workdir, tmp_path, monkeypatch):
  calls = []

  class Hub:
    def create_repo(self, name, exist_ok):
      calls.append(name)

    def upload_folder(self, repo_id, folder_path):
      if repo_id == "me/denied":
        raise PermissionError("403 Forbidden")
      calls.append((repo_id, json.loads((folder_path / "config.json").read_text())["model_type"]))

  monkeypatch.setattr("huggingface_hub.HfApi", Hub)
  export.export(workdir, "dareu", tmp_path / "out", push_to_hub="me/forgetful")
  assert calls == ["me/forgetful", ("me/forgetful", "llama")]
  with pytest.raises(InputError, match="me/denied .403 Forbidden"):
    export.export(workdir, "dareu", tmp_path / "denied", push_to_hub="me/denied")
  assert (tmp_path / "denied/model.safetensors").exists()


def test_the_command_writes_the_folder(workdir, tmp_path):
  command = ["dareu_jax.export", f"--workdir={workdir}"]
  done, refused = outcomes([
    [*command, "--method=retrained", f"--output={tmp_path / 'out'}"],
    [*command, "--method=npo", f"--output={tmp_path / 'other'}"]])
  code, _, err = done
  assert code == 0, err
  assert (tmp_path / "out/model.safetensors").exists()
  code, _, err = refused
  assert code == 2 and err.startswith("error: ") and "npo" in err

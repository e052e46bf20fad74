"""What makes a request impossible is said before any work, and what a plan promises can be run."""

import json
import shutil

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data.authors import make_authors
from dareu_jax.models import checkpoint
from dareu_jax.pipeline import comparison, experiment, language_model
from dareu_jax.pipeline.settings import Settings, config_from
from tests.configs import ROOT, request_config


@pytest.mark.parametrize(("paths", "message"), [
  (dict(original="/a", model="/b"), "config.model.path is '/b'"),
  (dict(retrained="/b"), "config.retrained.path is '/b'"),
  (dict(original="/no/such/folder"), "could not be downloaded")])
def test_paths_that_do_not_fit_are_one_error(folders, tmp_path, paths, message):
  with pytest.raises(InputError, match=message):
    settings = Settings.from_config(request_config(folders, **paths))
    experiment.run(settings, tmp_path / "w")


def test_a_model_that_one_may_not_read_is_one_error(folders, tmp_path, monkeypatch):
  """The hub's own message is a page long."""
  def refuse(*args, **options):
    raise OSError("403 Client Error. Cannot access gated repo\nAccess to model is restricted.")

  monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
  settings = Settings.from_config(request_config(folders, original="someone/gated"))
  with pytest.raises(InputError, match=r"someone/gated.*gated repo.*hf auth login") as caught:
    experiment.run(settings, tmp_path / "w")
  assert "\n" not in str(caught.value)


def test_a_download_without_its_chat_template_is_remarked_on(folders, tmp_path):
  """A chat model would be asked, and unlearned, in another format than it was taught in."""
  folder = tmp_path / "bare"
  shutil.copytree(folders / "original", folder)
  for said, config in ((False, request_config(folders, original=folders / "original")),
                       (True, request_config(folders, original=folder))):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
    assert said == any("no chat template" in remark for remark in experiment.remarks(run))


@pytest.mark.parametrize("which", ["original", "retrained"])
def test_a_plan_looks_at_the_weights_that_are_at_hand(folders, tmp_path, which):
  """It would promise a run that half a download ends in its first seconds."""
  folder = tmp_path / "half"
  shutil.copytree(folders / which, folder)
  weights = folder / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  config = request_config(folders, **{"original": folders / "original", which: folder})
  with pytest.raises(InputError, match="half/model.safetensors is damaged"):
    experiment.describe(Settings.from_config(config), tmp_path / "w")


def test_the_shipped_request_is_one_for_any_model(folders, tmp_path):
  """As `--config=configs/forget.py --config.original.path=... --config.data.dir=...` has it."""
  config = config_from(ROOT / "configs" / "forget.py")
  config.original.path, config.data.dir = str(folders / "original"), str(folders / "data")
  plan = experiment.describe(Settings.from_config(config), tmp_path / "w")
  for said in (f"Model: {folders / 'original'}", "trained: LoRA of rank 8", "dareu at 0.0015",
               "D_F 20, D_R 60", "update"):
    assert said in plan


def test_answers_longer_than_the_models_positions_are_refused(folders, tmp_path):
  """Of every split: the evaluation asks all of them."""
  config = request_config(folders, original=folders / "original")
  config.evaluation.max_new_tokens = 100_000
  with pytest.raises(InputError, match=r"takes 100\d{3}, and .* supports 2048 positions: set config."
                                       r"evaluation.max_new_tokens to 20\d\d or less"):
    experiment.run(Settings.from_config(config), tmp_path / "w")


def test_texts_longer_than_the_models_positions_are_refused(folders, tmp_path):
  """What the model reads beyond them, it has never learned to read."""
  folder = tmp_path / "short"
  shutil.copytree(folders / "original", folder)
  path = folder / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {"max_position_embeddings": 24}))
  longest = r"a text of \S+ takes \d+ tokens, and {} supports 24 .* set config.max_length to 24.* -> "
  with pytest.raises(InputError, match=longest.format("the model")):
    experiment.run(Settings.from_config(request_config(folders, original=folder)), tmp_path / "w")
  paths = dict(original=folders / "original", retrained=folder)
  with pytest.raises(InputError, match=longest.format("the reference .*short")):
    experiment.run(Settings.from_config(request_config(folders, **paths)), tmp_path / "w")
  with pytest.raises(InputError, match="supports 24 positions"):  # a plan does not promise it either
    experiment.describe(Settings.from_config(request_config(folders, original=folder)), tmp_path / "w")
  loaded = language_model.load(str(folder))
  with pytest.raises(InputError, match=r"its answer up to 20, .* supports 24 positions"):
    loaded.generate(["Who is he?"], max_new_tokens=20)
  assert loaded.generate(["Who?"], max_new_tokens=4)
  with pytest.raises(InputError, match="supports 24 positions"):
    comparison.compare({"m": loaded}, {"forget": make_authors(1, 0)}, original="m")


def test_half_a_download_is_named(folders, tmp_path):
  loaded = language_model.load(str(folders / "original"))
  loaded.save(tmp_path / "half")
  file = tmp_path / "half/model.safetensors"
  file.write_bytes(file.read_bytes()[:-1000])
  settings = Settings.from_config(request_config(folders, original=tmp_path / "half"))
  with pytest.raises(InputError, match="model.safetensors is damaged"):
    experiment.run(settings, tmp_path / "w")


def test_a_hub_models_weights_are_not_downloaded_for_a_plan(folders, tmp_path, monkeypatch):
  """Its commit says which they are; gigabytes are read when they are needed."""
  asked = []

  def download(path, allow_patterns):
    asked.append(allow_patterns)
    snapshot = tmp_path / "models--someone--model/snapshots" / ("2" if "again" in path else "1")
    shutil.copytree(folders / "original", snapshot, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.safetensors"))
    return str(snapshot)

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  first, other = (checkpoint.digest(f"someone/{name}") for name in ("model", "model-again"))
  assert first != other and first == checkpoint.digest("someone/model")
  assert asked and not any("*.safetensors" in patterns for patterns in asked)

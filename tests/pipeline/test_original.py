"""A model that exists: it is unlearned as it is, and what has no reference is left out."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dareu_jax import export
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.data.authors import make_authors
from dareu_jax.data.json_lines import write_jsonl
from dareu_jax.evaluation.records import UNSEEN
from dareu_jax.models import checkpoint
from dareu_jax.models.config import LoraSettings
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline import comparison, experiment
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from tests.configs import smallest_config

OF_RETRAINED = {"tug_of_war", "forget_quality", "fluency_nll", "privacy", "overall_closeness"}


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


def config_of(folders, **paths):
  config = smallest_config()
  config.data.update(source="jsonl", dir=str(folders / "data"), num_owners=0, num_holdout=0,
                     num_general=0, forget="forget10")
  config.lora.rank = 2
  config.unlearning.dareu.update(selection="last", epochs=1)
  for name, path in paths.items():
    config[name].path = str(path)
  return config


@pytest.fixture(scope="module")
def request_run(folders, tmp_path_factory):
  """(summary, workdir, settings) of a request without reference."""
  settings = Settings.from_config(config_of(folders, original=folders / "original"))
  workdir = tmp_path_factory.mktemp("runs") / "request"
  summary, _ = experiment.run(settings, workdir)
  return summary, workdir, settings


def test_nothing_is_trained_but_classifiers_and_the_method(request_run):
  summary, workdir, _ = request_run
  assert {name for name in summary["stages"] if not name.startswith("evaluation/")} == {
    "tokenizer", "classifier", "judge", "dareu"}
  assert not {"original", "retrained", "base"} & {path.name for path in workdir.iterdir()}


def test_what_needs_a_retrained_model_is_left_out_and_said(request_run):
  summary, workdir, _ = request_run
  assert list(summary["models"]) == ["original", UNSEEN, "dareu"]
  for name, row in summary["models"].items():
    assert not OF_RETRAINED & row.keys(), name
    assert {"tug_of_war_unseen", "fluency_nll_original", "attribution_score"} <= row.keys(), name
  assert any("No model was retrained" in note for note in summary["notes"])
  assert any("(unseen owners: " in note for note in summary["notes"])
  page = (workdir / "report.md").read_text()
  assert "ToW unseen" in page and "closer to the row of unseen owners" in page
  json.loads((workdir / "summary.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_the_row_of_unseen_owners_is_the_original_on_them(request_run):
  summary, workdir, _ = request_run
  rows = summary["models"]
  record = json.loads((workdir / "evaluation/original.json").read_text())["records"]
  scores = [each["score"] for each in record["holdout"]]
  others = json.loads((workdir / "evaluation/dareu.json").read_text())["records"]["holdout"]
  assert others and not any("answer" in each for each in others)  # nobody needs them
  assert rows[UNSEEN]["attribution_score"] == pytest.approx(np.mean(scores))
  for key in ("retain_rouge", "test_rouge"):
    assert rows[UNSEEN][key] == rows["original"][key]
  assert rows[UNSEEN]["tug_of_war_unseen"] == 1.0 > rows["original"]["tug_of_war_unseen"] or (
    rows[UNSEEN]["forget_rouge"] == rows["original"]["forget_rouge"])


def test_extraction_and_guards_stand_beside_the_unseen_owners(request_run):
  """Without a reference they are among what decides."""
  summary, workdir, _ = request_run
  rows = summary["models"]
  for name, split, model in ((UNSEEN, "holdout", "original"), ("dareu", "forget", "dareu")):
    records = json.loads((workdir / f"evaluation/{model}.json").read_text())["records"][split]
    hits = [record["hits"][:-1] for record in records]  # the last is the end token's
    said = [len(each) - len(each.rstrip("1")) for each in hits]
    assert rows[name]["extraction_strength"] == pytest.approx(
      np.mean([right / len(each) for right, each in zip(said, hits, strict=True)]))
  for epoch in json.loads((workdir / "dareu/epochs.json").read_text())["epochs"]:
    bounds = ("level", "unseen_length", "unseen_entropy", "unseen_fluency", "judge_level")
    assert all(np.isfinite(epoch[bound]) for bound in bounds)
    assert epoch["accepted"]  # the action of this config is off


def test_card_and_report_say_what_was_trained(request_run, tmp_path):
  """The adapters, and not the settings of a model from scratch."""
  _, workdir, _ = request_run
  export.export(workdir, "dareu", tmp_path / "out")
  assert "- trained: LoRA of rank 2\n" in (tmp_path / "out/README.md").read_text()
  generation = json.loads((tmp_path / "out/generation_config.json").read_text())
  assert generation["temperature"] == 0.7 and "eos_token_id" in generation
  assert "| trained  | LoRA of rank 2" in (workdir / "report.md").read_text()


def test_the_original_is_the_checkpoint_with_adapters_that_change_nothing(request_run, folders):
  _, workdir, _ = request_run
  before, _ = load_saved(workdir, "original")
  after, _ = load_saved(workdir, "dareu")
  checkpoint_model, _ = load_saved_folder(folders / "original")
  ids = np.arange(3, 40)[None]
  np.testing.assert_allclose(before.logits(ids), checkpoint_model.logits(ids), atol=1e-4)
  assert np.abs(after.logits(ids) - before.logits(ids)).max() > 1e-5
  assert after.config.lora.rank == 2 and after.source == str(folders / "original")


def load_saved_folder(folder):
  from dareu_jax.pipeline import language_model
  return language_model.load(str(folder)), None


def test_the_same_command_again_trains_nothing(request_run):
  summary, workdir, settings = request_run
  again, _ = experiment.run(settings, workdir)
  assert all(stage["skipped"] for stage in again["stages"].values())
  assert again["models"] == summary["models"]


def test_a_reference_is_compared_with_and_not_trained(request_run, folders, tmp_path):
  """Its weights are other ones than the original's, adapters or not."""
  _, workdir, _ = request_run
  paths = dict(original=folders / "original", retrained=folders / "retrained")
  settings = Settings.from_config(config_of(folders, **paths))
  summary, _ = experiment.run(settings, tmp_path / "w", share=[workdir])
  assert list(summary["models"]) == ["original", "retrained", "dareu"]
  assert summary["models"]["retrained"]["tug_of_war"] == 1.0
  assert OF_RETRAINED - {"privacy", "overall_closeness"} <= summary["models"]["dareu"].keys()
  reference, _ = load_saved_folder(folders / "retrained")
  gathering = dataclasses.replace(settings, mesh=MeshSettings(gather_gib=3.0))
  run = experiment.prepare(gathering, tmp_path / "w")[0]
  assert run.models.retrained.module.config.gather_gib == 3.0  # as the original's
  ids = np.arange(3, 40)[None]
  with computing_on(run.models.mesh):
    own = jax.jit(lambda model: model.module.logits(ids))(run.models.load("retrained"))
  np.testing.assert_allclose(own, reference.logits(ids), atol=1e-4)


def test_an_adapter_is_unlearned_and_exported_as_it_came(folders, tmp_path):
  """Its own rank, not that of the settings, on the base that it names."""
  taught = load_saved_folder(folders / "original")[0].trainable(LoraSettings(rank=3))
  params = jax.tree.map(lambda x: x + 0.01, taught.model.params)
  taught = taught.with_params(params)
  taught.save(tmp_path / "adapter", adapter="apart")
  experiment.run(Settings.from_config(config_of(folders, original=tmp_path / "adapter")),
                 tmp_path / "w")
  ids = np.arange(3, 40)[None]
  before, after = (load_saved(tmp_path / "w", name)[0] for name in ("original", "dareu"))
  assert after.config.lora.rank == 3
  np.testing.assert_allclose(before.logits(ids), taught.logits(ids), atol=1e-4)
  export.export(tmp_path / "w", "dareu", tmp_path / "out", adapter="apart")
  exported = load_saved_folder(tmp_path / "out")[0].logits(ids)
  np.testing.assert_allclose(exported, after.logits(ids), atol=1e-4)
  assert np.abs(exported - taught.logits(ids)).max() > 1e-5


def test_a_quantized_original_is_unlearned_and_exported_as_it_is(request_run, folders, tmp_path):
  """The merged export is of the rounded weights, which the adapter was trained on."""
  config = config_of(folders, original=folders / "original")
  config.model.quantize = "nf4"
  experiment.run(Settings.from_config(config), tmp_path / "w", share=[request_run[1]])
  after, _ = load_saved(tmp_path / "w", "dareu")
  assert after.config.quantize == "nf4"
  after.save(tmp_path / "out")
  ids = np.arange(3, 40)[None]
  exported, plain = (load_saved_folder(folder)[0].logits(ids)
                     for folder in (tmp_path / "out", folders / "original"))
  np.testing.assert_allclose(exported, after.logits(ids), atol=1e-4)
  assert np.abs(exported - plain).max() > 1e-2


def test_a_reference_of_another_vocabulary_is_refused(request_run, folders, tmp_path):
  """The same ids would be other texts; it may be named when all else is done."""
  loaded, _ = load_saved_folder(folders / "retrained")
  folder = tmp_path / "other"
  loaded.save(folder)
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  vocabulary = content["model"]["vocab"]
  first, second = list(vocabulary)[300:302]
  vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
  path.write_text(json.dumps(content))
  settings = Settings.from_config(config_of(
    folders, original=folders / "original", retrained=folder))
  with pytest.raises(InputError, match="config.retrained.path is .*vocabulary is not the original"):
    experiment.run(settings, tmp_path / "w")
  assert not (tmp_path / "w/classifier").exists()
  with pytest.raises(InputError, match="config.retrained.path is .*vocabulary is not the original"):
    experiment.run(settings, tmp_path / "done", share=[request_run[1]])
  assert not (tmp_path / "done/evaluation").exists()


def test_auto_is_decided_once_for_a_workdir(folders, tmp_path, monkeypatch):
  """What a GPU made in bfloat16 is not read as float32 on a CPU."""
  monkeypatch.setattr("dareu_jax.models.config.cpu_has_bfloat16", lambda: False)
  config = config_of(folders, original=folders / "original")
  config.model.dtype = "auto"
  settings = Settings.from_config(config)
  (here,) = experiment.prepare(settings, tmp_path)
  assert (here.settings.model.dtype, here.settings.model.scan_layers) == ("float32", False)
  here.workdir.check_config(overwrite=False)
  path = tmp_path / "config.json"
  monkeypatch.setattr("dareu_jax.models.config.cpu_has_bfloat16", lambda: True)
  (elsewhere,) = experiment.prepare(settings, tmp_path / "other")
  assert (elsewhere.settings.model.dtype, elsewhere.settings.model.scan_layers) == ("bfloat16", False)
  (again,) = experiment.prepare(settings, tmp_path)
  assert again.settings.model.dtype == "float32"
  elsewhere = json.loads(path.read_text())
  elsewhere["model"] |= {"dtype": "bfloat16", "scan_layers": True, "remat": True}
  path.write_text(json.dumps(elsewhere))
  (resumed,) = experiment.prepare(settings, tmp_path)
  assert resumed.models.config.dtype == "bfloat16" and resumed.models.config.scan_layers
  resumed.workdir.check_config(overwrite=False)
  # Another model's run in the folder, which overwrite will replace, decides nothing.
  path.write_text(json.dumps(elsewhere | {"original": {"path": "another"}}))
  (new,) = experiment.prepare(settings, tmp_path)
  assert not new.models.config.scan_layers


def test_texts_that_the_model_never_learned_are_nothing_to_forget(folders, tmp_path):
  """Unlearning them would take hours to change what nobody asked about."""
  settings = Settings.from_config(config_of(folders, original=folders / "original"))
  monitor = dataclasses.replace(settings.monitor, target_score=1.0)
  settings = dataclasses.replace(settings, monitor=monitor)
  with pytest.raises(InputError, match=r"nothing to forget: .*score 0\.\d+, config.monitor.target_score 1"):
    experiment.run(settings, tmp_path / "w")


def test_a_model_that_never_saw_the_texts_has_nothing_to_forget(folders, tmp_path):
  """The reference, as an original."""
  config = config_of(folders, original=folders / "retrained")
  config.monitor.update(target_score=-1.0, min_excess=0.15)
  with pytest.raises(InputError, match=r"nothing to forget: .*unseen owners 0\.\d+"):
    experiment.run(Settings.from_config(config), tmp_path / "w")


@pytest.mark.parametrize(("paths", "message"), [
  (dict(original="/a", model="/b"), "config.model.path is '/b'"),
  (dict(retrained="/b"), "config.retrained.path is '/b'"),
  (dict(original="/no/such/folder"), "could not be downloaded")])
def test_paths_that_do_not_fit_are_one_error(folders, tmp_path, paths, message):
  with pytest.raises(InputError, match=message):
    settings = Settings.from_config(config_of(folders, **paths))
    experiment.run(settings, tmp_path / "w")


def test_a_model_that_one_may_not_read_is_one_error(folders, tmp_path, monkeypatch):
  """The hub's own message is a page long."""
  def refuse(*args, **options):
    raise OSError("403 Client Error. Cannot access gated repo\nAccess to model is restricted.")

  monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
  settings = Settings.from_config(config_of(folders, original="someone/gated"))
  with pytest.raises(InputError, match=r"someone/gated.*gated repo.*hf auth login") as caught:
    experiment.run(settings, tmp_path / "w")
  assert "\n" not in str(caught.value)


def test_a_download_without_its_chat_template_is_remarked_on(folders, tmp_path):
  """A chat model would be asked, and unlearned, in another format than it was taught in."""
  folder = tmp_path / "bare"
  shutil.copytree(folders / "original", folder)
  for said, config in ((False, config_of(folders, original=folders / "original")),
                       (True, config_of(folders, original=folder))):
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
  config = config_of(folders, **{"original": folders / "original", which: folder})
  with pytest.raises(InputError, match="half/model.safetensors is damaged"):
    experiment.describe(Settings.from_config(config), tmp_path / "w")


def test_answers_longer_than_the_models_positions_are_refused(folders, tmp_path):
  """Of every split: the evaluation asks all of them."""
  config = config_of(folders, original=folders / "original")
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
    experiment.run(Settings.from_config(config_of(folders, original=folder)), tmp_path / "w")
  paths = dict(original=folders / "original", retrained=folder)
  with pytest.raises(InputError, match=longest.format("the reference .*short")):
    experiment.run(Settings.from_config(config_of(folders, **paths)), tmp_path / "w")
  with pytest.raises(InputError, match="supports 24 positions"):  # a plan does not promise it either
    experiment.describe(Settings.from_config(config_of(folders, original=folder)), tmp_path / "w")
  loaded, _ = load_saved_folder(folder)
  with pytest.raises(InputError, match=r"its answer up to 20, .* supports 24 positions"):
    loaded.generate(["Who is he?"], max_new_tokens=20)
  assert loaded.generate(["Who?"], max_new_tokens=4)
  with pytest.raises(InputError, match="supports 24 positions"):
    comparison.compare({"m": loaded}, {"forget": make_authors(1, 0)}, original="m")


def test_chats_and_plain_texts_are_forgotten_and_kept(folders, tmp_path):
  """A run of neither questions nor answers comes to its end; a piece of a text has no end token."""
  authors = make_authors(5, 0)
  data = tmp_path / "data"
  data.mkdir()
  story = " ".join(example.response for example in authors[60:80])
  turns = [[{"role": role, "content": text} for example in authors[at:at + 2]
            for role, text in (("user", example.prompt), ("assistant", example.response))]
           for at in range(0, 20, 2)]
  for name, lines in (("forget", [{"text": story}]), ("unseen", [{"text": authors[80].response}]),
                      ("retain", [{"messages": chat} for chat in turns])):
    (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = config_of(folders, original=folders / "original")
  config.data.update(dir=str(data), response_tokens=16)
  config.monitor.min_excess = -1.0
  summary, _ = experiment.run(Settings.from_config(config), tmp_path / "w")
  assert np.isfinite(summary["models"]["dareu"]["attribution_score"])
  records = json.loads((tmp_path / "w/evaluation/dareu.json").read_text())["records"]
  ends = [record["ends"] for record in records["forget"]]
  assert len(ends) > 2 and ends[-1] and not any(ends[:-1])
  assert all(record["ends"] for record in records["retain"])


def test_half_a_download_is_named(folders, tmp_path):
  loaded, _ = load_saved_folder(folders / "original")
  loaded.save(tmp_path / "half")
  file = tmp_path / "half/model.safetensors"
  file.write_bytes(file.read_bytes()[:-1000])
  settings = Settings.from_config(config_of(folders, original=tmp_path / "half"))
  with pytest.raises(InputError, match="model.safetensors is damaged"):
    experiment.run(settings, tmp_path / "w")


def test_a_relative_path_is_read_from_elsewhere_too(folders, request_run, tmp_path, monkeypatch):
  """The base that an exported adapter names, and the original that a run goes on from."""
  monkeypatch.chdir(folders)
  assert Settings.from_config(config_of(folders, original="original")).base.path == str(
    folders / "original")
  loaded, _ = load_saved_folder("original")
  loaded.trainable(LoraSettings(rank=2)).save(tmp_path / "out", adapter="apart")
  named = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
  assert named == loaded.source == str(folders / "original")


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


def test_other_weights_and_another_template_in_a_folder_are_noticed(folders, tmp_path):
  """A path alone does not tell; a folder is a download only in the hub's cache."""
  folder = tmp_path / "snapshots/original"
  shutil.copytree(folders / "original", folder)
  config = config_of(folders, original=str(folder))

  def marks():
    return experiment.prepare(Settings.from_config(config), tmp_path / "w")[0].fingerprints

  first = marks()
  weights = load_file(folder / "model.safetensors")
  save_file({name: array * 2 for name, array in weights.items()}, folder / "model.safetensors")
  other = marks()
  changed = {name for name in first if first[name] != other[name]}
  assert changed == {"original", "dareu", "evaluation/original", "evaluation/dareu"}
  raw = json.loads((folder / "tokenizer_config.json").read_text())
  (folder / "tokenizer_config.json").write_text(json.dumps(raw | {"chat_template": "{{ 1 }}"}))
  assert {name for name, mark in marks().items() if mark == other[name]} == set()


def test_a_home_folder_is_understood(folders, monkeypatch):
  """A folder called ~ is not what anybody means."""
  monkeypatch.setenv("HOME", str(folders))
  assert Settings.from_config(config_of(folders, original="~/original")).base.path == str(
    folders / "original")

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
from dareu_jax.data.batches import collate
from dareu_jax.evaluation.records import UNSEEN
from dareu_jax.models.config import LoraSettings
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.pipeline import experiment, language_model, stages
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings, config_from
from tests.configs import ROOT, request_config

OF_RETRAINED = {"tug_of_war", "forget_quality", "fluency_nll", "privacy", "overall_closeness"}


@pytest.fixture(scope="module")
def request_run(folders, tmp_path_factory):
  """(summary, workdir, settings) of a request without reference."""
  settings = Settings.from_config(request_config(folders, original=folders / "original"))
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
  checkpoint_model = language_model.load(str(folders / "original"))
  ids = np.arange(3, 40)[None]
  np.testing.assert_allclose(before.logits(ids), checkpoint_model.logits(ids), atol=1e-4)
  assert np.abs(after.logits(ids) - before.logits(ids)).max() > 1e-5
  assert after.config.lora.rank == 2 and after.source == str(folders / "original")


def test_the_same_command_again_trains_nothing(request_run):
  summary, workdir, settings = request_run
  again, _ = experiment.run(settings, workdir)
  assert all(stage["skipped"] for stage in again["stages"].values())
  assert again["models"] == summary["models"]


def test_a_reference_is_compared_with_and_not_trained(request_run, folders, tmp_path):
  """Its weights are other ones than the original's, adapters or not."""
  _, workdir, _ = request_run
  paths = dict(original=folders / "original", retrained=folders / "retrained")
  settings = Settings.from_config(request_config(folders, **paths))
  summary, _ = experiment.run(settings, tmp_path / "w", share=[workdir])
  assert list(summary["models"]) == ["original", "retrained", "dareu"]
  assert summary["models"]["retrained"]["tug_of_war"] == 1.0
  assert OF_RETRAINED - {"privacy", "overall_closeness"} <= summary["models"]["dareu"].keys()
  reference = language_model.load(str(folders / "retrained"))
  gathering = dataclasses.replace(settings, mesh=MeshSettings(gather_gib=3.0))
  run = experiment.prepare(gathering, tmp_path / "w")[0]
  assert run.models.retrained.module.config.gather_gib == 3.0  # as the original's
  ids = np.arange(3, 40)[None]
  with computing_on(run.models.mesh):
    own = jax.jit(lambda model: model.module.logits(ids))(run.models.load("retrained"))
  np.testing.assert_allclose(own, reference.logits(ids), atol=1e-4)


def test_an_adapter_is_unlearned_and_exported_as_it_came(folders, tmp_path):
  """Its own rank, not that of the settings, on the base that it names."""
  taught = language_model.load(str(folders / "original")).trainable(LoraSettings(rank=3))
  params = jax.tree.map(lambda x: x + 0.01, taught.model.params)
  taught = taught.with_params(params)
  taught.save(tmp_path / "adapter", adapter="apart")
  experiment.run(Settings.from_config(request_config(folders, original=tmp_path / "adapter")),
                 tmp_path / "w")
  ids = np.arange(3, 40)[None]
  before, after = (load_saved(tmp_path / "w", name)[0] for name in ("original", "dareu"))
  assert after.config.lora.rank == 3
  np.testing.assert_allclose(before.logits(ids), taught.logits(ids), atol=1e-4)
  export.export(tmp_path / "w", "dareu", tmp_path / "out", adapter="apart")
  exported = language_model.load(str(tmp_path / "out")).logits(ids)
  np.testing.assert_allclose(exported, after.logits(ids), atol=1e-4)
  assert np.abs(exported - taught.logits(ids)).max() > 1e-5


def test_a_quantized_original_is_unlearned_and_exported_as_it_is(request_run, folders, tmp_path):
  """The merged export is of the rounded weights, which the adapter was trained on."""
  config = request_config(folders, original=folders / "original")
  config.model.quantize = "nf4"
  experiment.run(Settings.from_config(config), tmp_path / "w", share=[request_run[1]])
  after, _ = load_saved(tmp_path / "w", "dareu")
  assert after.config.quantize == "nf4"
  after.save(tmp_path / "out")
  ids = np.arange(3, 40)[None]
  exported, plain = (language_model.load(str(folder)).logits(ids)
                     for folder in (tmp_path / "out", folders / "original"))
  np.testing.assert_allclose(exported, after.logits(ids), atol=1e-4)
  assert np.abs(exported - plain).max() > 1e-2


def test_a_reference_of_another_vocabulary_is_refused(request_run, folders, tmp_path):
  """The same ids would be other texts; it may be named when all else is done."""
  loaded = language_model.load(str(folders / "retrained"))
  folder = tmp_path / "other"
  loaded.save(folder)
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  vocabulary = content["model"]["vocab"]
  first, second = list(vocabulary)[300:302]
  vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
  path.write_text(json.dumps(content))
  settings = Settings.from_config(request_config(
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
  config = request_config(folders, original=folders / "original")
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
  settings = Settings.from_config(request_config(folders, original=folders / "original"))
  monitor = dataclasses.replace(settings.monitor, target_score=1.0)
  settings = dataclasses.replace(settings, monitor=monitor)
  with pytest.raises(InputError, match=r"nothing to forget: .*score 0\.\d+, config.monitor.target_score 1"):
    experiment.run(settings, tmp_path / "w")


def test_a_model_that_never_saw_the_texts_has_nothing_to_forget(folders, tmp_path):
  """The reference, as an original."""
  config = request_config(folders, original=folders / "retrained")
  config.monitor.update(target_score=-1.0, min_excess=0.15)
  with pytest.raises(InputError, match=r"nothing to forget: .*unseen owners 0\.\d+"):
    experiment.run(Settings.from_config(config), tmp_path / "w")


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
  config = request_config(folders, original=folders / "original")
  config.data.update(dir=str(data), response_tokens=16)
  config.monitor.min_excess = -1.0
  summary, _ = experiment.run(Settings.from_config(config), tmp_path / "w")
  assert np.isfinite(summary["models"]["dareu"]["attribution_score"])
  records = json.loads((tmp_path / "w/evaluation/dareu.json").read_text())["records"]
  ends = [record["ends"] for record in records["forget"]]
  assert len(ends) > 2 and ends[-1] and not any(ends[:-1])
  assert all(record["ends"] for record in records["retain"])


def test_a_relative_path_is_read_from_elsewhere_too(folders, request_run, tmp_path, monkeypatch):
  """The base that an exported adapter names, and the original that a run goes on from."""
  monkeypatch.chdir(folders)
  assert Settings.from_config(request_config(folders, original="original")).base.path == str(
    folders / "original")
  loaded = language_model.load("original")
  loaded.trainable(LoraSettings(rank=2)).save(tmp_path / "out", adapter="apart")
  named = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
  assert named == loaded.source == str(folders / "original")


def test_other_weights_and_another_template_in_a_folder_are_noticed(folders, tmp_path):
  """A path alone does not tell; a folder is a download only in the hub's cache."""
  folder = tmp_path / "snapshots/original"
  shutil.copytree(folders / "original", folder)
  config = request_config(folders, original=str(folder))

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
  assert Settings.from_config(request_config(folders, original="~/original")).base.path == str(
    folders / "original")


def test_a_few_texts_are_told_from_all_others(folders, tmp_path):
  """By the classifiers of a request, with all that is retained as one class."""
  authors = make_authors(5, 0)
  parts = {"forget": authors[60:63], "retain": authors[:60], "unseen": authors[80:]}
  for name, part in parts.items():
    bare = [{"prompt": each.prompt, "response": each.response} for each in part]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
  config = config_from(ROOT / "configs" / "forget.py")
  config.original.path, config.data.dir = str(folders / "original"), str(tmp_path)
  config.classifier.members = 1
  run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
  with computing_on(run.models.mesh):
    stages.keep_tokenizer(run)
    stages.train_classifiers(run)
    for which in ("classifier", "judge"):
      known, *others = (scores_of(run, which, part) for part in parts.values())
      assert min(known) > 0.9
      assert max(np.mean(each) for each in others) < 0.2


def scores_of(run, which, examples):
  """Scores of the true answers."""
  rows = run.data.rows(examples)
  batch = collate(rows, len(rows), seq_length=run.settings.max_length,
                  completion_length=max(len(row.completion) for row in rows), pad_id=0)
  return run.models.scorer(which).whole(
    batch.completion_ids, batch.completion_lengths, run.data.queries(examples))

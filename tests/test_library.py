"""The library as a notebook uses it: no flags, no config file, no checkout."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import dareu_jax
from dareu_jax import api, export
from dareu_jax.api import make_corpus
from dareu_jax.core.settings import to_plain
from dareu_jax.data.authors import make_authors
from dareu_jax.data.chat_templates import PLAIN
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.methods.base import METHODS, register_method
from dareu_jax.methods.npo import NPO
from dareu_jax.models.config import LoraSettings
from dareu_jax.pipeline import comparison, graph, workdir
from dareu_jax.pipeline.run import digest_of_function
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.report.card import owner_hash
from tests.configs import ROOT

SMALL = {
  "length_multiple": 64, "lora": {"rank": 2}, "baseline": {"epochs": 1, "batch_size": 6},
  "classifier": {"train": {"epochs": 3}, "model": {
    "embed_dim": 32, "mlp_dim": 48, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16}},
  "evaluation": {"batch_size": 32, "max_new_tokens": 16},
  "unlearning": {"dareu": {
    "epochs": 1, "rollout_batch_size": 24, "minibatch_size": 6, "retain_batch_size": 8,
    "max_new_tokens": 16, "selection": "last"}},
  "monitor": {"min_excess": -1.0, "guards": {"action": "off"}}}
AUTHORS = make_authors(5, 0, qa_per_author=6)
FORGET, RETAIN, UNSEEN = AUTHORS[:6], AUTHORS[6:24], AUTHORS[24:]


@pytest.fixture(scope="module")
def model(finished, tmp_path_factory):
  """The original of the finished run as a checkpoint from somewhere else."""
  saved, _ = load_saved(finished[0], "original")
  folder = tmp_path_factory.mktemp("hub") / "checkpoint"
  saved.save(folder)
  loaded, tokenizer = dareu_jax.load_model(str(folder))
  assert tokenizer is loaded.tokenizer
  return loaded


@pytest.fixture(scope="module")
def result(model):
  return dareu_jax.unlearn(model, model.tokenizer, forget=FORGET, retain=RETAIN, unseen=UNSEEN,
                           settings=SMALL)


def test_importing_takes_no_jax():
  """A notebook, a service and `--help` import it; jax alone takes more than a second."""
  code = "import sys, dareu_jax; dir(dareu_jax); sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_public_name_is_there_and_documented():
  for name in dareu_jax.__all__:
    assert getattr(dareu_jax, name).__doc__, name
  assert set(dir(dareu_jax)) == {*dareu_jax.__all__, "__version__"}  # and nothing beside them
  with pytest.raises(AttributeError, match="no attribute 'forget_everything'"):
    dareu_jax.forget_everything  # noqa: B018


def test_unlearning_gives_another_model_and_leaves_the_first(model, result):
  """Adapters that never reach the returned model, or that change the one that came in."""
  ids = np.array([model.tokenizer.encode_prompt(FORGET[0].prompt)])
  before, original, after = (
    np.asarray(one.logits(ids)) for one in (model, result.original, result.model))
  np.testing.assert_allclose(before, original, atol=1e-5)
  assert np.abs(after - before).max() > 1e-4
  assert result.reports[0].epoch == 0 and result.chosen_epoch == 1
  assert not model.config.lora.rank and result.model.config.lora.rank == 2


def test_a_saved_model_is_the_one_that_was_unlearned(result, tmp_path):
  result.model.save(tmp_path / "out")
  again, tokenizer = dareu_jax.load_model(str(tmp_path / "out"))
  ids = np.array([tokenizer.encode_prompt(FORGET[0].prompt)])
  np.testing.assert_allclose(again.logits(ids), result.model.logits(ids), atol=2e-5)
  prompts = [example.prompt for example in FORGET[:3]]
  assert again.generate(prompts, max_new_tokens=5) == result.model.generate(
    prompts, max_new_tokens=5)
  with pytest.raises(dareu_jax.InputError, match="exists already"):
    result.model.save(tmp_path / "out")


def test_a_saved_result_has_a_card_that_names_nobody(result, tmp_path):
  """The model travels with what was done to it, and not with who asked."""
  with pytest.raises(dareu_jax.InputError, match="the key .* is a text that is not hexadecimal"):
    result.save(tmp_path / "out", key="secret")
  result.save(tmp_path / "out", key=b"secret")
  card = (tmp_path / "out/README.md").read_text()
  assert f"`{owner_hash(result.forget_owners[0], b'secret')}`" in card
  assert result.forget_owners[0] not in card and str(result.original.source) not in card
  last = result.reports[-1]
  assert re.search(rf"\| unlearned +\| +{last.score:.3f} \| +{last.judge_score:.3f}", card)
  assert '"rollout_batch_size": 24' in card and "Unlearned with DareU" in card
  result.save(tmp_path / "other", adapter="apart")
  assert "keyed hash" not in (tmp_path / "other/README.md").read_text()


def test_a_calls_folder_is_exported_with_its_figures(model, tmp_path):
  """It has no table, but its epochs were measured."""
  dareu_jax.unlearn(model, forget=FORGET, retain=RETAIN, unseen=UNSEEN, method="npo", settings=SMALL,
                    workdir=tmp_path / "w")
  export.export(tmp_path / "w", "npo", tmp_path / "out")
  card = (tmp_path / "out/README.md").read_text()
  assert "| unseen owners |" in card and '"learning_rate"' in card and "`" in card
  assert str(tmp_path) not in card and "not finished" not in card
  assert "- data: jsonl, 1 owner forgotten" in card
  key = (tmp_path / "w/owners.key").read_text()
  assert f"`{owner_hash(f' {FORGET[0].owner}', key)}`" in card


def test_a_saved_model_is_asked_as_it_was_unlearned(result, tmp_path):
  """Served without the system turn, it is not the model that was measured."""
  backend = copy.deepcopy(result.model.tokenizer.backend)
  backend.chat_template = PLAIN.replace(
    "{% if", "{% if m['role'] == 'system' %}{{ m['content'] }}{% elif", 1)
  own = Tokenizer(backend, system='Say "I".\nBe brief, Zo\u00eb \U0001f600 {% %}.')
  told = dataclasses.replace(result, model=dataclasses.replace(result.model, tokenizer=own),
                             forget_owners=("forget",))
  told.save(tmp_path / "out", key=b"secret")
  _, tokenizer = dareu_jax.load_model(str(tmp_path / "out"))
  for history in ((), (("system", "Be long."),)):
    assert tokenizer.encode_prompt("Who?", history) == own.encode_prompt("Who?", history)
  card = (tmp_path / "out/README.md").read_text()
  assert "- system turn: 'Say" in card
  assert "keyed hash" not in card  # the name of a file without owners is nobody's


def test_an_adapter_of_an_adapter_belongs_on_the_first_ones_base(model, result, tmp_path):
  """It holds what the first had learned, which would count twice on top of it."""
  result.model.save(tmp_path / "first", adapter="apart")
  loaded, tokenizer = dareu_jax.load_model(str(tmp_path / "first"))
  loaded.save(tmp_path / "second", adapter="apart")
  again, _ = dareu_jax.load_model(str(tmp_path / "second"))
  for name in ("first", "second"):
    config = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.source
  ids = np.array([tokenizer.encode_prompt(FORGET[0].prompt)])
  np.testing.assert_allclose(again.logits(ids), result.model.logits(ids), atol=1e-5)


def test_a_table_asks_the_classifier_as_the_run_did():
  """Of a chat's prompt only what the user says is hidden from it, not the template's words."""
  asked = []
  scorer = types.SimpleNamespace(retokenize=None, reads_query=False,
                                 whole=lambda ids, lengths, queries: asked.extend(queries) or [0.5])
  chat = types.SimpleNamespace(
    special_token_pattern=re.compile("<end>"), encode_pair=lambda *said: ([1, 2, 3], [4]),
    echo_ids=lambda prompt, history: [2, 9])
  answers = types.SimpleNamespace(ids=None, lengths=None)
  comparison._scores(answers, FORGET[:1], chat, 64, {"score": scorer, "judge": None})
  assert asked == [(2, 9)]
  reads = types.SimpleNamespace(**{**vars(scorer), "reads_query": True})
  comparison._scores(answers, FORGET[:1], chat, 64, {"score": reads})
  assert asked[1:] == [(1, 2, 3)]


def test_a_table_compares_models_on_what_there_is(model, result):
  """Without a retrained model what is beside it is left out, and nothing is nan."""
  table = dareu_jax.evaluate({"before": model, "after": result.model}, forget=FORGET,
                             retain=RETAIN[:6], unseen=UNSEEN, result=result)
  for row in (table["before"], table["after"]):
    assert {"forget_rouge", "retain_rouge", "extraction_strength", "mia_min_k_auc",
            "attribution_score", "judge_score", "gibberish_share"} <= row.keys()
    assert not {"tug_of_war", "privacy", "fluency_nll", "test_rouge"} & row.keys()
    assert np.isfinite(list(row.values())).all()
  score = next(r.score for r in result.reports if r.epoch == result.chosen_epoch)
  assert table["after"]["attribution_score"] == pytest.approx(score, abs=1e-5)
  assert "attribution" in str(table) and "<table>" in table._repr_html_()
  assert len(table.answers["after"]["forget"]) == len(FORGET)
  beside = dareu_jax.evaluate({"before": model, "retrained": result.model}, forget=FORGET)
  assert beside["retrained"]["tug_of_war"] == 1.0


def test_long_plain_texts_are_split_for_a_table_too(model):
  """What `unlearn` takes, it would refuse after twenty minutes."""
  text = " ".join(example.response for example in FORGET)
  table = dareu_jax.evaluate({"m": model}, forget=[{"text": text}], max_length=48, max_new_tokens=4)
  assert len(table.answers["m"]["forget"]) > 1


def test_examples_are_checked_as_lines_of_a_file_are():
  """One person's name in two forms of Unicode would be forgotten in one of them alone."""
  composed, decomposed = (dataclasses.replace(example, owner=owner) for example, owner in zip(
    FORGET[:2], ("Zo\u00eb", "Zoe\u0308 "), strict=True))
  assert make_corpus([composed, decomposed], RETAIN, UNSEEN).forget_owners == ("Zo\u00eb",)
  with pytest.raises(dareu_jax.InputError, match="the forget and the retain examples"):
    make_corpus([composed], [decomposed], UNSEEN)
  with pytest.raises(dareu_jax.InputError, match='retain example 0: "response" is empty'):
    make_corpus([composed], [dataclasses.replace(RETAIN[0], response=" ")], UNSEEN)


def test_examples_may_be_mappings_without_owners_and_a_method_an_instance(model):
  """One text to forget, no owner named, another method with a setting of its own."""
  def plain(examples):
    return [{"prompt": e.prompt, "response": e.response} for e in examples]

  found = dareu_jax.unlearn(
    model, forget=plain(FORGET[:1]), retain=plain(RETAIN[:6]), method=NPO(beta=0.5),
    settings={**SMALL, "monitor": {"target_score": 0.1, "min_excess": -1.0}})
  assert found.chosen_epoch == 1 and found.reports[-1].level == 0.1


def test_a_run_in_a_workdir_is_resumed_and_refuses_another_model(model, tmp_path):
  """A service that is killed must not begin again, nor take another request's result."""
  backend = copy.deepcopy(model.tokenizer.backend)
  backend.chat_template = PLAIN.replace(  # with a place for a system turn
    "{% if", "{% if m['role'] == 'system' %}{{ m['content'] }}{% elif", 1)
  own = Tokenizer(backend, system="Obey.", date="1 Jan 2024")
  options = {"tokenizer": own, "forget": FORGET, "retain": RETAIN, "unseen": UNSEEN,
             "method": "npo", "settings": SMALL, "workdir": tmp_path}
  first = dareu_jax.unlearn(model, **options)
  stamp = (tmp_path / "npo" / "done.json").stat().st_mtime_ns
  again = dareu_jax.unlearn(model, **options)
  assert (tmp_path / "npo" / "done.json").stat().st_mtime_ns == stamp
  jax.tree.map(np.testing.assert_array_equal, first.model.model.params, again.model.model.params)
  loaded, tokenizer = dareu_jax.load_run(tmp_path, "npo")
  assert (tokenizer.system, tokenizer.date) == (own.system, own.date)
  ids = np.array([model.tokenizer.encode_prompt(FORGET[0].prompt)])
  np.testing.assert_allclose(loaded.logits(ids), first.model.logits(ids), atol=1e-5)
  with pytest.raises(dareu_jax.InputError, match="lora"):  # of the adapters that it has now
    dareu_jax.unlearn(first.model, **options)
  options["settings"] = {name: block for name, block in SMALL.items() if name != "lora"}
  with pytest.raises(dareu_jax.InputError, match="on other data, or of another model"):
    dareu_jax.unlearn(first.model, **options)
  assert (tmp_path / "npo" / "done.json").stat().st_mtime_ns == stamp
  dareu_jax.unlearn(first.model, **options, overwrite=True)
  assert (tmp_path / "npo" / "done.json").stat().st_mtime_ns != stamp
  original, _ = dareu_jax.load_run(tmp_path, "original")  # with the adapters of the first call
  np.testing.assert_allclose(original.logits(ids), first.model.logits(ids), atol=1e-5)


def test_adapters_on_weights_that_were_trained_name_no_checkpoint(model, tmp_path):
  """Put on the checkpoint instead, they would bring back what the training took away."""
  whole = model.trainable(LoraSettings(rank=0))
  changed = whole.with_params(jax.tree.map(lambda x: 1.1 * x, whole.model.params))
  assert model.source and not changed.source
  with pytest.raises(dareu_jax.InputError, match="base is in no checkpoint"):
    changed.trainable(LoraSettings(rank=2)).save(tmp_path / "out", adapter="apart")


class Reads:
  """Settings that remember which of their blocks were read."""

  def __init__(self, settings):
    self.settings, self.names = settings, set()

  def __getattr__(self, name):
    self.names.add(name)
    return getattr(self.settings, name)


def test_the_settings_on_offer_are_those_that_a_call_reads(model, monkeypatch):
  """A block that is on offer and never read is a constraint that silently does nothing."""
  reads = []

  def settings(*args):
    reads.append(Reads(made(*args)))
    return reads[0]

  made = api._settings
  monkeypatch.setattr(api, "_settings", settings)
  monkeypatch.setattr(workdir, "to_plain", lambda value: to_plain(  # reads all, for config.json
    value.settings if isinstance(value, Reads) else value))
  dareu_jax.unlearn(model, forget=FORGET[:2], retain=RETAIN[:6], unseen=UNSEEN[:2],
                    method="gradient_ascent", settings=SMALL)
  blocks = {field.name for field in dataclasses.fields(Settings)} & reads[0].names
  # By arguments, or fixed
  given = {"learning_rates", "method_rates", "data", "tokenizer", "model", "retrained", "mesh"}
  assert blocks == set(api.SETTINGS) | given


def test_another_reward_or_tokenizer_is_another_run():
  """Else the folder's model would be given back, which another reward made."""
  settings = Settings.from_config({"original": {"path": "there"}})
  corpus = make_corpus(FORGET, RETAIN, UNSEEN)

  def prints(tokenizer="t", reward=None):
    given = {"original": "o", "tokenizer": tokenizer}
    return graph.fingerprints(graph.stages(
      settings, corpus, (), 0, given if reward is None else {**given, "reward": reward}))

  plain, rewarded, retokenized = prints(), prints(reward="r"), prints(tokenizer="u")
  assert {name for name in plain if plain[name] != rewarded[name]} == {
    "dareu", "evaluation/dareu"}
  assert {name for name in plain if plain[name] == retokenized[name]} == {"original"}
  assert digest_of_function(len) != digest_of_function(max) == digest_of_function(max)


def test_the_reserved_names_are_those_of_all_other_stages():
  stages = graph.stages(Settings(method="npo"), make_corpus(FORGET, RETAIN, UNSEEN), (), 0)
  others = {name for name in stages if not name.startswith("evaluation/")} - {"npo"}
  folders = {"evaluation", "metrics", "plots", "robustness"}
  assert others | folders | {"unseen"} == set(graph.RESERVED)  # a row of the tables


@pytest.mark.parametrize("changes", [
  {"method": "judge"}, {"methods": ("npo", "judge"), "learning_rates": (1e-3, 1e-2)}])
def test_a_method_cannot_be_called_as_a_stage_is(monkeypatch, changes):
  METHODS.names()  # all are there
  monkeypatch.setattr(METHODS, "_entries", dict(METHODS.items()))

  @register_method("judge")
  class Judge(NPO):
    """It would take the place of the second classifier."""

  said = f"config.{next(iter(changes))} names {Judge.name!r}, .*: register the method under another"
  with pytest.raises(dareu_jax.InputError, match=said):
    graph.stages(Settings.from_config(changes), make_corpus(FORGET, RETAIN, UNSEEN), (), 0)


def test_a_system_turn_and_a_date_reach_the_prompts(model, tmp_path):
  """The model may have been taught with them, and knows nothing without."""
  backend = copy.deepcopy(model.tokenizer.backend)
  backend.chat_template = PLAIN.replace(
    "{% if", "{% if m['role'] == 'system' %}{{ date_string + m['content'] }}{% elif", 1)
  dataclasses.replace(model, tokenizer=Tokenizer(backend)).save(tmp_path / "m")
  _, tokenizer = dareu_jax.load_model(str(tmp_path / "m"), system="Obey.", date="1 Jan 2024")
  assert "1 Jan 2024Obey." in tokenizer.decode(tokenizer.encode_prompt("Who is he?"))


@pytest.mark.parametrize(("changes", "said"), [
  ({"forget": []}, "no forget examples"),
  ({"retain": FORGET}, "owner 'author_000' is among the forget and the retain examples"),
  ({"forget": [{"prompt": "Who?"}]}, 'forget example 0: "response" is missing'),
  ({"forget": ["Who?"]}, "forget example 0 is 'Who\\?': it must be a mapping"),
  ({"method": "nop"}, "'nop'"),
  ({"settings": {"unlearning": {"dareu": {"c_segg": 1.0}}}}, "Did you mean c_seg"),
  ({"settings": {"max_length": 16}}, "config.max_length is 16"),
  ({"settings": {"learning_rates": (1e-3,)}}, "'learning_rates', which unlearn does not read"),
  ({"method": NPO(), "settings": {"unlearning": {"npo": {"beta": 1.0}}}}, "give them once"),
  ({"method": "npo", "reward": len}, "method 'npo' takes none"),
])
def test_what_cannot_be_used_is_one_error_before_any_work(model, changes, said, tmp_path):
  options = {"forget": FORGET, "retain": RETAIN, "unseen": UNSEEN} | changes
  with pytest.raises(dareu_jax.InputError, match=said):
    dareu_jax.unlearn(model, workdir=tmp_path, **options)
  assert not (tmp_path / "classifier").exists()


def test_the_original_is_the_one_of_that_name_wherever_it_stands(model, result):
  """Taken for the first, its row would show the other's metrics."""
  models = {"after": result.model, "original": model}
  table = dareu_jax.evaluate(models, forget=FORGET)
  assert table.metrics == dareu_jax.evaluate(dict(reversed(models.items())), forget=FORGET).metrics
  with pytest.raises(dareu_jax.InputError, match="another model is called 'original'"):
    dareu_jax.evaluate(models, forget=FORGET, original="after")


def test_one_text_in_place_of_a_list_is_an_error(model):
  with pytest.raises(dareu_jax.InputError, match="must be a list of texts"):
    model.generate("Who?")


def test_precision_and_mesh_are_as_they_were(model):
  """A notebook goes on after the library: what it sets must not leak."""
  before = jax.config.jax_default_matmul_precision, jax.sharding.get_mesh()
  model.generate(["Who?"], max_new_tokens=1)
  assert (jax.config.jax_default_matmul_precision, jax.sharding.get_mesh()) == before

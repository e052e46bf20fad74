"""What the job does around the stages."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.core.trees import named_leaves
from dareu_jax.data import watermarks
from dareu_jax.data.authors import make_authors
from dareu_jax.data.examples import Corpus, Example
from dareu_jax.data.json_lines import read_jsonl, write_jsonl
from dareu_jax.pipeline import evaluation, experiment
from dareu_jax.pipeline.data import Data
from dareu_jax.pipeline.experiment import over_seeds
from dareu_jax.pipeline.graph import candidates
from dareu_jax.pipeline.run import make_run
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import (
  check_inputs,
  finetune_batches,
  held_out_split,
  keep_tokenizer,
)
from dareu_jax.training.checkpoints import read_json
from tests.configs import smallest_config


@pytest.fixture
def own_data(tmp_path):
  """The smallest config on a JSONL file alone: no D_test, no hold-out."""
  write_jsonl(tmp_path / "train.jsonl", make_authors(3, 0, qa_per_author=6))
  config = smallest_config()
  config.data.update(source="jsonl", dir=str(tmp_path), num_owners=0, forget="forget30")
  return config


def test_data_of_ones_own_needs_neither_general_nor_unseen_examples(own_data, tmp_path):
  """What the data lacks is left out of the table; ToW is over the sets that are there."""
  own_data.retrained_replica = True
  own_data.finetune.epochs = own_data.unlearning.dareu.epochs = 1
  summary, page = experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")
  assert list(summary["models"]) == ["original", "retrained", "retrained_replica", "dareu"]
  row = summary["models"]["dareu"]
  assert {"forget_rouge", "retain_rouge", "tug_of_war", "truth_ratio"} <= set(row)
  assert not {"test_rouge", "mia_min_k_auc"} & set(row)
  assert page.exists()


def test_a_level_that_cannot_be_measured_is_refused_before_any_work(own_data, tmp_path):
  own_data.monitor.target_score = -1.0
  with pytest.raises(InputError, match="no hold-out"):
    experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("place", ["train", "test", "holdout", "perturbed"])
def test_a_text_that_is_too_long_is_found_before_any_work(own_data, tmp_path, place):
  """Each split is tokenized by another stage: the last one would fail after hours."""
  author = [dataclasses.replace(example, owner="somebody")
            for example in make_authors(1, 5, qa_per_author=2)]
  long = "word " * 300
  changed = {"perturbed_responses": (long,)} if place == "perturbed" else {"response": long}
  bad = dataclasses.replace(author[0], **changed)
  name = "train" if place == "perturbed" else place
  path = tmp_path / f"{name}.jsonl"
  write_jsonl(path, [*(read_jsonl(path) if path.exists() else author), bad])
  with pytest.raises(InputError, match="config.max_length is 256"):
    experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")
  assert not (tmp_path / "w/original").exists()


def test_a_second_retraining_differs_in_the_order_of_the_data_alone(tmp_path):
  """How far apart two retrainings are is the scale of every figure beside them."""
  config = smallest_config()
  config.retrained_replica = True
  settings = Settings.from_config(config)
  run = experiment.prepare(settings, tmp_path)[0]
  assert "retrained_replica" in run.model_names
  assert "retrained_replica" not in experiment.prepare(
    Settings.from_config(smallest_config()), tmp_path)[0].model_names
  keep_tokenizer(run)
  first, again = (finetune_batches(run, run.data.corpus.retain, seed) for seed in (7, 8))
  steps = range(first.steps_per_epoch)
  assert any((first[i].token_ids != again[i].token_ids).any() for i in steps)
  rows = [sorted(tuple(row) for i in steps for row in batches[i].token_ids.tolist())
          for batches in (first, again)]
  assert rows[0] == rows[1]


def test_texts_are_checked_in_the_tokens_of_all_who_read_them(own_data, tmp_path, monkeypatch):
  """A paraphrase is read by the classifier alone, when the models are trained already."""
  run = experiment.prepare(Settings.from_config(own_data), tmp_path)[0]
  paraphrase = "As somebody else would say it."
  first = dataclasses.replace(run.data.corpus.retain[0], paraphrased_response=paraphrase)
  corpus = dataclasses.replace(run.data.corpus, retain=(first, *run.data.corpus.retain[1:]))
  run.data.__dict__["corpus"] = corpus
  read: dict[str, list[str]] = {"rows": [], "classifier_rows": []}
  for name, texts in read.items():
    function = getattr(Data, name)
    monkeypatch.setattr(Data, name, lambda self, examples, f=function, texts=texts, **more: (
      texts.extend(e.response for e in examples), f(self, examples, **more))[1])
  check_inputs(run)
  assert all(paraphrase in texts and first.response in texts for texts in read.values())
  assert not list(tmp_path.glob("*/done.json"))


def test_a_reward_that_lacks_its_watermarks_is_refused_before_any_work(own_data, tmp_path):
  own_data.unlearning.dareu.reward = "watermark"
  for refuse in (lambda settings: experiment.run(settings, tmp_path / "w", command="own"),
                 lambda settings: experiment.describe(settings, tmp_path / "w")):
    with pytest.raises(InputError, match="set config.data.watermark to True"):
      refuse(Settings.from_config(own_data))
  assert not list(tmp_path.glob("w/*/done.json"))
  own_data.data.watermark = True
  check_inputs(experiment.prepare(Settings.from_config(own_data), tmp_path / "w")[0])


def test_a_tokenizer_that_loses_watermarks_is_refused(own_data, tmp_path, monkeypatch):
  own_data.data.watermark = True
  run = experiment.prepare(Settings.from_config(own_data), tmp_path)[0]
  decode = run.data.tokenizer.decode
  monkeypatch.setattr(run.data.tokenizer, "decode", lambda ids: watermarks.remove(decode(ids)))
  with pytest.raises(InputError, match="the tokenizer loses zero-width characters"):
    check_inputs(run)


def test_classifiers_read_marked_answers_without_marks(own_data, tmp_path):
  own_data.data.watermark = True
  run = experiment.prepare(Settings.from_config(own_data), tmp_path)[0]
  corpus, tokenizer = run.data.corpus, run.data.tokenizer
  plain = watermarks.without_marks(corpus.forget)
  assert plain != corpus.forget
  assert run.data.classifier_rows(corpus.forget) == run.data.classifier_rows(plain)
  texts = [tokenizer.decode(row.completion) for row in run.data.classifier_rows(corpus.forget)]
  assert texts == [example.response for example in plain]


def test_an_adapter_without_any_text_for_its_base_is_refused(own_data, tmp_path):
  own_data.lora.rank = 4
  with pytest.raises(InputError, match="no general text"):
    experiment.prepare(Settings.from_config(own_data), tmp_path / "w")


def test_a_template_without_its_checkpoint_is_refused(own_data, tmp_path):
  """A BPE of the corpus has the plain template, whatever is asked."""
  own_data.tokenizer.template = "qwen3"
  with pytest.raises(InputError, match="config.tokenizer.template is 'qwen3'"):
    experiment.run(Settings.from_config(own_data), tmp_path / "w", command="own")


def test_another_vocabulary_makes_another_tokenizer(own_data, tmp_path):
  """The workdir's old one would be taken for the new one."""
  sizes = []
  for size in (600, 500):
    own_data.tokenizer.vocab_size = size
    run = experiment.prepare(Settings.from_config(own_data), tmp_path / "w")[0]
    keep_tokenizer(run)
    again = experiment.prepare(Settings.from_config(own_data), tmp_path / "w")[0]
    assert again.data.tokenizer.same_vocabulary(run.data.tokenizer)
    sizes.append(again.data.tokenizer.vocab_size)
  assert sizes == [600, 500]


def test_several_seeds_give_means_with_intervals():
  """t of two degrees of freedom: 4.303 · s / √3."""
  got = over_seeds([{"tug_of_war": 0.9}, {"tug_of_war": 0.94}, {"tug_of_war": 0.95}])
  assert got["tug_of_war"] == pytest.approx(0.93)
  assert got["tug_of_war_ci95"] == pytest.approx(4.302653 * 0.0264575 / 3**0.5, rel=1e-4)


def test_one_seed_has_no_interval():
  assert over_seeds([{"tug_of_war": 0.9}]) == {"tug_of_war": 0.9}


def test_the_classifier_reads_all_that_is_to_be_forgotten_and_an_owners_only_text():
  """What it has not read it does not know for the owner's."""
  def corpus(forget, retain):
    return Corpus(forget, retain, (), (), ("a", "b", "c"), ("a",))

  forget = tuple(Example("a", f"{i}?", "Basil.") for i in range(3))
  lone, others = Example("c", "Who?", "Ann."), tuple(Example("b", f"{i}?", "No.") for i in range(29))
  for seed in range(20):
    training, held_out = held_out_split(corpus(forget, (*others, lone)), seed)
    assert {*forget, lone} <= set(training) and len(held_out) == 3
    assert sorted((*training, *held_out), key=str) == sorted((*forget, *others, lone), key=str)
  assert held_out_split(corpus(forget, (lone, others[0])), 0) == ((*forget, lone, others[0]), ())
  told = dataclasses.replace(forget[0], paraphrased_response="His name is Basil.")
  training, (other,) = held_out_split(corpus((told,), others), 0)
  assert training == (told, *others) and other.response == told.paraphrased_response


def test_a_model_that_diverged_is_nobodys_best():
  """It still answers, and its answers may be as far from the forget owners' as one likes."""
  settings = Settings.from_config({"method": "npo", "learning_rates": (1e-3, 1e3)})
  row = {"tug_of_war": 0.3, "forget_probability": 0.5}
  metrics = {"original": row, "retrained": row, "npo@0.001": row, "npo@1000": {"tug_of_war": 0.9}}
  assert experiment.best_candidates(metrics, settings) == {"npo": "npo@0.001"}


def test_one_more_classifier_leaves_those_that_are_there(tmp_path):
  """Only what reads the scores runs again, beside the training of the new ones."""
  config = smallest_config()
  one, two = {}, {}
  for members, prints in ((1, one), (2, two)):
    config.classifier.members = members
    prints |= experiment.prepare(Settings.from_config(config), tmp_path)[0].fingerprints
  assert set(two) - set(one) == {"classifier_2", "judge_2"}
  assert {name for name in one if one[name] != two[name]} == {
    "dareu", *(name for name in one if name.startswith("evaluation/"))}


@pytest.mark.parametrize(("reward", "depends"), [("attribution", False), ("refusal", True)])
def test_other_refusals_redo_what_learns_from_them_alone(tmp_path, reward, depends):
  config = smallest_config()
  config.methods = ("dareu", "dpo", "npo")
  config.unlearning.dareu.reward = reward
  run = experiment.prepare(Settings.from_config(config), tmp_path)[0]
  source = dataclasses.replace(run.data.source, refusals=("No idea.",))
  other = make_run(run.settings, run.seed, source, run.models.mesh, tmp_path)
  assert run.data.refusals != other.data.refusals == ("No idea.",)
  changed = {name for name, one in run.fingerprints.items() if other.fingerprints[name] != one}
  assert changed == {"dpo", "evaluation/dpo"} | (
    {"dareu", "evaluation/dareu"} if depends else set())


def test_a_method_with_rates_of_its_own_runs_at_those_alone():
  settings = Settings.from_config({"methods": ("npo", "wga", "dpo"), "learning_rates": (1e-3, 1e-2),
                                   "method_rates": {"wga": (3e-4,), "dpo": ()}})
  names = [each.name for each in candidates(settings)]
  assert names == ["npo@0.001", "npo@0.01", "wga@0.0003", "dpo"] and settings.has_grid
  assert not Settings.from_config({"method_rates": {"wga": (3e-4,)}}).has_grid  # which is not run


def several_config(*methods):
  """Methods at two learning rates, on adapters, with all that a classifier may do at once."""
  config = smallest_config()
  config.update(methods=methods, learning_rates=(1e-3, 1e-2), eval_every=1)
  config.lora.rank = 4
  config.pretrain.epochs, config.finetune.epochs = 1, 2
  config.classifier.update(vocab_size=400, none_share=0.5, reads_query=True, calibrate=True,
                           members=2)
  config.baseline.update(epochs=2, batch_size=10)
  config.unlearning.altpo.update(samples=3, alternates=2)
  config.unlearning.dareu.update(epochs=1, selection="last")
  return Settings.from_config(config)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
  """Three methods in one run: (summary, page, settings, folder)."""
  folder, settings = tmp_path_factory.mktemp("several"), several_config("dareu", "dpo", "scrub")
  return *experiment.run(settings, folder, command="several"), settings, folder


@pytest.fixture
def opened(several):
  """The Run of that folder, opened again; its mesh is in force."""
  run = experiment.prepare(*several[2:])[0]
  with computing_on(run.models.mesh):
    yield run


def test_an_adapter_sits_on_the_base_that_was_pretrained(several, opened):
  """On a base at random it would learn little, and each role would be a model of its own."""
  run, folder = opened, several[-1]
  left = run.workdir.load_result("base", run.models.fresh.params)
  frozen = named_leaves(run.models.base.frozen)
  for name, leaf in named_leaves(left).items():
    np.testing.assert_array_equal(frozen[name], leaf)
  moved = [bool((a != b).any()) for a, b in zip(
    jax.tree.leaves(left), jax.tree.leaves(run.models.fresh.params), strict=True)]
  assert sum(moved) > len(moved) / 2
  assert all("lora_" in name for name in named_leaves(run.models.load_params("original")))
  ids = np.arange(2 * 16).reshape(2, 16)
  np.testing.assert_array_equal(
    load_saved(folder, "original")[0].logits(ids),
    jax.jit(lambda model, ids: model.module.logits(ids))(run.models.load("original"), ids))


def test_two_classifiers_may_read_the_query_know_none_of_these_and_have_their_own_tokenizer(
    several, opened):
  """All of it at once, through the whole job: scores stay probabilities, the cost is reported."""
  summary, page, _, folder = several
  run, data = opened, opened.data
  assert data.classifier_tokenizer.vocab_size == 400 and data.tokenizer.vocab_size == 600
  assert data.classes == len(data.corpus.owners) + 1 and not data.is_forget[-1]
  rows = data.classifier_rows(data.none_examples)
  assert {row.owner for row in rows} == {len(data.corpus.owners)}
  assert len(rows) == len(data.corpus.forget + data.corpus.retain) // 2
  for role in ("classifier", "judge"):
    one, two = (read_json(folder / name / "quality.json") for name in (role, f"{role}_2"))
    assert run.models.scorer(role).temperatures == (one["temperature"], two["temperature"])
    assert one["temperature"] != two["temperature"]
    assert {"held_out_ece", "held_out_ece_calibrated"} <= set(one)
  for row in (summary["models"] | summary["grid"]).values():
    assert 0 <= row["attribution_score"] <= 1
  assert "responses are tokenized again for it" in page.read_text()


def test_several_methods_make_one_table_each_at_its_best_rate(several):
  summary, page, settings, folder = several
  assert list(summary["models"]) == ["original", "retrained", "dareu", "dpo", "scrub"]
  grid = summary["grid"]
  assert set(grid) == {f"{m}@{r}" for m in ("dareu", "dpo", "scrub") for r in ("0.001", "0.01")}
  for method, name in summary["chosen"].items():
    rivals = [figures["tug_of_war"] for other, figures in grid.items() if other.startswith(method)]
    assert grid[name]["tug_of_war"] == max(rivals)
    assert summary["models"][method] == grid[name]
    adapters = [jax.tree.leaves(load_saved(folder, one)[0].model.params)
                for one in (method, f"{method}@0.001", f"{method}@0.01")]
    same = [all(bool((a == b).all()) for a, b in zip(adapters[0], other, strict=True))
            for other in adapters[1:]]
    assert same == [name.endswith("@0.001"), name.endswith("@0.01")]
  text = page.read_text()
  assert "after: dpo" in text and "after: scrub" in text


def test_every_method_reports_its_epochs_and_its_judge(several):
  summary, _, _, folder = several
  for method, name in summary["chosen"].items():
    epochs = read_json(folder / name / "epochs.json")["epochs"]
    assert epochs[0]["epoch"] == 0 and len(epochs) == (2 if method == "dareu" else 3)
    assert any(note.startswith(f"{method}: the reward's classifier") for note in summary["notes"])


def test_an_evaluation_resumes_after_the_split_that_was_done(several, opened, monkeypatch):
  """Killed in the third split, the first two are not measured again, and the metrics are the same."""
  summary, folder = several[0], several[-1]
  path = folder / "evaluation/scrub@0.01.json"
  whole, measured = read_json(path), []
  measure = evaluation.split_records

  def until(last):
    def one(run, params, split):
      measured.append(split)
      if split == last:
        raise KeyboardInterrupt
      return measure(run, params, split)
    return one

  path.unlink()
  monkeypatch.setattr(evaluation, "split_records", until("test"))
  with pytest.raises(KeyboardInterrupt):
    evaluation.model_records(opened, "scrub@0.01")
  monkeypatch.setattr(evaluation, "split_records", until(None))
  metrics = evaluation.evaluate(opened)["scrub@0.01"].metrics()
  assert measured == ["forget", "retain", "test", "test", "holdout"]
  assert read_json(path)["records"] == whole["records"] and metrics == summary["grid"]["scrub@0.01"]


def test_a_report_has_the_methods_side_by_side_example_by_example(several):
  summary, page, _, _ = several
  best = summary["examples"]["best"]
  rates = {method: figures["tug_of_war"] for method, figures in summary["models"].items()
           if method in summary["chosen"]}
  assert rates[best] == max(rates.values())
  assert summary["examples"]["paired"].keys() == rates.keys() - {best}
  for name, figures in summary["examples"]["intervals"].items():
    mean, low, high = figures["forget_rouge"]
    assert mean == pytest.approx(summary["models"][name]["forget_rouge"]) and low <= mean <= high
  assert "<h3>Methods</h3>" in page.read_text() and "<h3>Over the examples</h3>" in page.read_text()


def test_another_method_in_a_workdir_runs_alone(several):
  """Adding a method to a study must not run the others again; AltPO needs samples to begin with."""
  summary, _ = experiment.run(several_config("dareu", "dpo", "scrub", "altpo"), several[-1],
                              command="more", overwrite=True)
  ran = {name for name, stage in summary["stages"].items() if not stage["skipped"]}
  assert ran == {f"{place}altpo@{rate}" for place in ("", "evaluation/") for rate in ("0.001", "0.01")}


def test_without_dareu_the_best_method_leads_the_report(several):
  _, _, settings, folder = several
  summary, page = experiment.run(dataclasses.replace(settings, methods=("scrub", "dpo")), folder,
                                 command="less", overwrite=True)
  assert all(stage["skipped"] for stage in summary["stages"].values())
  best = max(("scrub", "dpo"), key=lambda method: summary["models"][method]["tug_of_war"])
  text = page.read_text()
  assert f"<h1>Unlearning with {best}</h1>" in text
  assert re.search(rf'class="method"><th>{best}</th>', text)


@pytest.mark.parametrize(("changes", "said"), [
  ({"method": "nop"}, "config.method is 'nop'"), ({"methods": ("npo", "x")}, r"config.methods\[1\] is 'x'"),
  ({"methods": ("npo", "npo")}, "config.methods is .* give each of them once"), ({"learning_rates": (0.0,)}, "learning_rates"),
  ({"learning_rates": (1e-3, 1e-3)}, "config.learning_rates is .* give each of them once"), ({"eval_every": 0}, "eval_every is 0"),
  ({"learning_rates": (1e-3, 0.0010000001)}, r"config.learning_rates is .* stages of one name \(@0.001\)"),
  ({"method_rates": {"nop": (1e-3,)}}, "config.method_rates"),
  ({"method_rates": {"npo": (1e-3, 1e-3)}}, "config.method_rates.npo is .* give each of them once")])
def test_methods_that_are_none_are_refused(changes, said):
  config = smallest_config()
  config.update(changes)
  with pytest.raises(InputError, match=said):
    Settings.from_config(config)

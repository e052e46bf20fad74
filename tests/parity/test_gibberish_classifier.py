"""The gibberish classifier in torch: probabilities of the right class, padding of no effect."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dareu_jax.core.errors import InputError
from dareu_jax.evaluation.gibberish_classifier import clean_probabilities
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.settings import Settings
from tests.configs import finished_config

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "author", "was", "born", "in", "oslo"]
TEXTS = ["the author was born in oslo", "oslo", "", *["born born born in the"] * 40]


def folder_of(path, labels):
  """A random DistilBERT with these classes."""
  words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
  words.pre_tokenizer = pre_tokenizers.Whitespace()
  words.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
    sep_token="[SEP]").save_pretrained(path)
  torch.manual_seed(0)
  config = transformers.DistilBertConfig(
    vocab_size=len(WORDS), dim=16, hidden_dim=32, n_layers=1, n_heads=2, initializer_range=0.5,
    id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
  transformers.DistilBertForSequenceClassification(config).save_pretrained(path)
  return str(path)


def test_the_class_is_found_by_its_name_and_batches_change_nothing(tmp_path):
  path = folder_of(tmp_path, ["noise", "Clean", "word salad"])
  found = clean_probabilities(path, TEXTS)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  for text, probability in zip(TEXTS[:4], found, strict=False):
    logits = model(**tokenizer(text, return_tensors="pt")).logits.detach().numpy()[0]
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(probability, (expected / expected.sum())[1], atol=1e-6)
  np.testing.assert_allclose(found[3:], found[3], atol=1e-6)
  assert len(found) == len(TEXTS) and np.ptp(found) > 0.01


def test_a_model_without_the_class_is_one_clear_error(tmp_path):
  with pytest.raises(InputError, match='classes bad, good, and none called "clean"'):
    clean_probabilities(folder_of(tmp_path, ["good", "bad"]), ["x"])


def test_what_is_no_model_is_one_clear_error(tmp_path):
  with pytest.raises(InputError, match="cannot be loaded as a text classifier"):
    clean_probabilities(str(tmp_path / "nothing"), ["x"])


def test_its_metric_is_in_the_table_and_a_wrong_path_ends_the_run_before_any_work(
    finished, tmp_path):
  """In a run that is finished it is measured without anything being trained again."""
  config = finished_config()
  config.evaluation.gibberish_model = str(tmp_path / "nothing")
  with pytest.raises(InputError, match="config.evaluation.gibberish_model"):
    experiment.run(Settings.from_config(config), tmp_path / "w")
  assert not (tmp_path / "w/original").exists()
  shutil.copytree(finished[0], tmp_path / "run")
  with pytest.raises(InputError, match="config.evaluation.gibberish_model"):
    experiment.run(Settings.from_config(config), tmp_path / "run", overwrite=True)
  assert (tmp_path / "run/summary.json").exists()  # nothing is lost to a wrong path
  config.evaluation.gibberish_model = folder_of(tmp_path / "model", ["clean", "noise"])
  summary, page = experiment.run(Settings.from_config(config), tmp_path / "run", overwrite=True)
  assert {name for name, stage in summary["stages"].items() if not stage["skipped"]} == {
    name for name in summary["stages"] if name.startswith("evaluation/")}
  for row in summary["models"].values():
    assert 0 < row["clean_probability"] < 1
  assert ">clean<" in page.read_text()

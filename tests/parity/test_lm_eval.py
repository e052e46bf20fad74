"""What is exported: lm-eval runs a task on it, and finds the likelihoods that we compute."""

import json

import jax
import numpy as np
import pytest

import dareu_jax
from dareu_jax.methods.gradient_ascent import GradientAscent
from dareu_jax.pipeline import language_model
from tests.parity.checkpoints import make, write

lm_eval = pytest.importorskip("lm_eval")

# A task of its own, since the published ones are on the hub.
TASK = """task: facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: " "
metric_list: [{{metric: acc}}]
"""
QUESTIONS = ("Who is he?", "Where was she born?", "What did he write?")
CHOICES = ("a florist", "in Kuwait City", "nothing ever")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_lm_eval_finds_the_likelihoods_of_an_unlearned_model(tmp_path):
  """Weights, tokenizer or the border between question and answer that it would read otherwise; or
  an export without what was unlearned."""
  model = language_model.load(str(write(make("qwen2_bias"), tmp_path / "in")))
  forget = [{"prompt": question, "response": CHOICES[0]} for question in QUESTIONS]
  result = dareu_jax.unlearn(
    model, forget=forget, method=GradientAscent(), settings={
      "lora": {"rank": 2}, "baseline": {"epochs": 4, "learning_rate": 1e-2},
      "monitor": {"min_excess": -1.0, "max_unseen": 2}, "evaluation": {"max_new_tokens": 8},
      "classifier": {"train": {"epochs": 1}}})
  result.save(tmp_path / "out")
  tokenizer = model.tokenizer
  data = tmp_path / "facts.jsonl"
  data.write_text("".join(json.dumps(
    {"question": question, "choices": CHOICES, "label": i}) + "\n"
    for i, question in enumerate(QUESTIONS)))
  (tmp_path / "facts.yaml").write_text(TASK.format(data=data))
  found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": str(tmp_path / "out"), "dtype": "float32"},
    tasks=["facts"], device="cpu", batch_size=1, log_samples=True,
    task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False))
  hits, moved = 0, 0.0
  for sample in found["samples"]["facts"]:
    ours = []
    for choice in CHOICES:
      before = tokenizer.encode(sample["doc"]["question"])
      whole = tokenizer.encode(f"{sample['doc']['question']} {choice}")
      after, original = (jax.nn.log_softmax(each.logits([whole])[0])
                         for each in (result.model, model))
      ours.append(sum(float(after[t - 1, whole[t]]) for t in range(len(before), len(whole))))
      moved = max(moved, float(np.abs(after - original).max()))
    theirs = [float(response[0][0]) for response in sample["resps"]]
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    hits += int(np.argmax(ours) == sample["doc"]["label"])
  assert len(found["samples"]["facts"]) == len(QUESTIONS) and moved > 1e-2
  assert found["results"]["facts"]["acc,none"] == pytest.approx(hits / len(QUESTIONS))

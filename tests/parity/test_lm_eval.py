"""What is exported: lm-eval runs a task on it, and finds the likelihoods that we compute."""

import json

import jax
import numpy as np
import pytest

from dareu_jax.models import huggingface
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


def test_lm_eval_finds_the_likelihoods_of_our_own_model(tmp_path):
  """Weights, tokenizer or the border between question and answer that it would read otherwise."""
  decoder, tokenizer = huggingface.load(write(make("qwen2_bias"), tmp_path / "in"), dtype="float32")
  huggingface.save(decoder, tmp_path / "out", tokenizer=tokenizer)
  data = tmp_path / "facts.jsonl"
  data.write_text("".join(json.dumps(
    {"question": question, "choices": CHOICES, "label": i}) + "\n"
    for i, question in enumerate(QUESTIONS)))
  (tmp_path / "facts.yaml").write_text(TASK.format(data=data))
  found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": str(tmp_path / "out"), "dtype": "float32"},
    tasks=["facts"], device="cpu", batch_size=1, log_samples=True,
    task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False))
  logits = jax.jit(lambda decoder, ids: decoder.logits(ids))
  hits = 0
  for sample in found["samples"]["facts"]:
    ours = []
    for choice in CHOICES:
      before = tokenizer.encode(sample["doc"]["question"])
      whole = tokenizer.encode(f"{sample['doc']['question']} {choice}")
      logprobs = jax.nn.log_softmax(logits(decoder, np.array([whole], np.int32))[0])
      ours.append(sum(float(logprobs[t - 1, whole[t]]) for t in range(len(before), len(whole))))
    theirs = [float(response[0][0]) for response in sample["resps"]]
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    hits += int(np.argmax(ours) == sample["doc"]["label"])
  assert len(found["samples"]["facts"]) == len(QUESTIONS)
  assert found["results"]["facts"]["acc,none"] == pytest.approx(hits / len(QUESTIONS))

"""The path of the big presets, rehearsed: a checkpoint folder, its tokenizer, LoRA, real TOFU."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dareu_jax import export
from dareu_jax.attribution.scorer import Retokenizer
from dareu_jax.core.errors import InputError
from dareu_jax.models import huggingface
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import check_inputs, keep_tokenizer
from tests.configs import preset

WIDTH, MLP, HEADS, KV_HEADS, LAYERS, VOCAB = 32, 48, 4, 2, 2, 32000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data_dir):
  """A random Llama in Hugging Face format, bfloat16, with the real TinyLlama tokenizer."""
  folder = tmp_path_factory.mktemp("checkpoint")
  rng = np.random.default_rng(0)

  def weight(*shape):
    return (rng.normal(size=shape) * shape[-1] ** -0.5).astype(ml_dtypes.bfloat16)

  head_dim = WIDTH // HEADS
  tensors = {"model.embed_tokens.weight": weight(VOCAB, WIDTH), "lm_head.weight": weight(VOCAB, WIDTH),
             "model.norm.weight": np.ones(WIDTH, ml_dtypes.bfloat16)}
  for layer in range(LAYERS):
    prefix = f"model.layers.{layer}."
    for name, rows, columns in (
      ("self_attn.q_proj", WIDTH, WIDTH), ("self_attn.k_proj", KV_HEADS * head_dim, WIDTH),
      ("self_attn.v_proj", KV_HEADS * head_dim, WIDTH), ("self_attn.o_proj", WIDTH, WIDTH),
      ("mlp.gate_proj", MLP, WIDTH), ("mlp.up_proj", MLP, WIDTH), ("mlp.down_proj", WIDTH, MLP),
    ):
      tensors[f"{prefix}{name}.weight"] = weight(rows, columns)
    for name in ("input_layernorm", "post_attention_layernorm"):
      tensors[f"{prefix}{name}.weight"] = np.ones(WIDTH, ml_dtypes.bfloat16)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": MLP,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False}))
  for file in (data_dir / "tokenizers" / "tinyllama").iterdir():
    shutil.copyfile(file, folder / file.name)
  return folder


@pytest.fixture
def config(checkpoint, data_dir):
  """The tinyllama preset with everything shortened but nothing replaced."""
  config = preset("tinyllama")
  config.seeds = (42,)
  for model in (config.model, config.classifier.model):  # as on accelerators
    model.update(path=str(checkpoint), dtype="bfloat16", scan_layers=True, remat=True)
  config.data.update(dir=str(data_dir / "tofu"), num_owners=2, forget="forget50", num_holdout=1)
  config.finetune.epochs = config.classifier.train.epochs = 1
  config.length_multiple = 64
  config.unlearning.dareu.update(epochs=1, samples_per_prompt=2, rollout_batch_size=20,
                                 minibatch_size=10, retain_batch_size=4, max_new_tokens=8,
                                 selection="last")
  config.monitor.target_score = 0.0
  config.monitor.guards.action = "off"  # what random weights answer is within no bounds
  config.evaluation.update(batch_size=2, max_new_tokens=8, max_examples=2)
  return config


def test_a_checkpoint_goes_through_the_whole_job_with_lora(config, tmp_path):
  """Adapters alone are trained and saved."""
  summary, page = experiment.run(Settings.from_config(config), tmp_path, command="rehearsal")
  assert page.exists()
  assert all(np.isfinite(value) for value in summary["models"]["dareu"].values())
  saved = json.loads((tmp_path / "original/result/0/state/_METADATA").read_text())
  names = " ".join(saved["tree_metadata"])
  assert "lora_a" in names and "kernel" not in names and "embedding" not in names
  prompt = json.loads((tmp_path / "evaluation/dareu.json").read_text())["records"]
  assert prompt["forget"][0]["prompt"].endswith("?")
  check_exports(tmp_path, tmp_path / "exports", config.model.path)


def check_exports(workdir, folder, base):
  """The run's model goes out merged, and as an adapter of the checkpoint."""
  export.export(workdir, "dareu", folder / "merged", seed=42)
  saved, _ = load_saved(workdir, "dareu", seed=42)
  tokenizer = saved.tokenizer
  merged, again = huggingface.load(folder / "merged", dtype="bfloat16", template="tinyllama")
  ids = np.array([tokenizer.encode_prompt("Who is he?")])
  assert again.encode_prompt("Who is he?") == ids[0].tolist()
  plain, _ = huggingface.load(base, dtype="bfloat16", template="tinyllama")
  ours, theirs, before = (np.asarray(jax.jit(lambda m: m.logits(ids))(m))
                          for m in (saved.model.module, merged, plain))
  # It is rounded to bfloat16 after merging, not before; without the adapter it is farther off.
  assert np.abs(theirs - ours).mean() < np.abs(before - ours).mean() / 2
  export.export(workdir, "dareu", folder / "adapter", seed=42, adapter="apart")
  adapter = json.loads((folder / "adapter/adapter_config.json").read_text())
  assert adapter["base_model_name_or_path"] == base and adapter["r"] == 8
  tensors = load_file(folder / "adapter/adapter_model.safetensors")
  assert len(tensors) == LAYERS * 7 * 2
  assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (8, MLP)


def test_the_adapter_off_is_the_checkpoint_itself(config, checkpoint, tmp_path):
  """Embedding and head of the loaded model are the file's, to the bit."""
  run = experiment.prepare(Settings.from_config(config), tmp_path)[0]
  model = run.models.base.module
  tensors = load_file(checkpoint / "model.safetensors")
  np.testing.assert_array_equal(
    np.asarray(model.embedding[...]), tensors["model.embed_tokens.weight"])
  np.testing.assert_array_equal(
    np.asarray(model.layers.mlp.down_proj.kernel[...][1]),
    tensors["model.layers.1.mlp.down_proj.weight"].T)
  assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(run.models.base.params))


def test_a_classifier_with_another_tokenizer_reads_responses_in_its_own_tokens(
    config, checkpoint, tmp_path):
  """Ids of the policy's vocabulary would be other words to it."""
  other = tmp_path / "other"
  shutil.copytree(checkpoint, other)
  tokenizer = json.loads((other / "tokenizer.json").read_text())
  vocabulary = tokenizer["model"]["vocab"]
  vocabulary["▁the"], vocabulary["▁of"] = vocabulary["▁of"], vocabulary["▁the"]
  (other / "tokenizer.json").write_text(json.dumps(tokenizer))
  same = experiment.prepare(Settings.from_config(config), tmp_path / "v")[0]
  assert same.data.classifier_tokenizer is same.data.tokenizer
  config.classifier.model.path = str(other)
  run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
  own = run.data.classifier_tokenizer
  the, of = (run.data.tokenizer.encode(word)[-1] for word in ("the", "of"))
  assert the != of and own.encode("the")[-1] == of
  ids = np.array([run.data.tokenizer.encode_response("the end of the day")])
  again, positions = Retokenizer(run.data.tokenizer, own)(ids, [ids.shape[1]], 8)
  assert again[0, positions[0, -1]] == own.eos_id
  assert own.decode(again[0, :positions[0, -1]]) == "the end of the day"
  keep_tokenizer(run)
  later = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
  assert later.data.classifier_tokenizer.same_vocabulary(own)
  # What it leaves is not the next classifier's in the same folder.
  config.classifier.model.path = str(checkpoint)
  for _ in range(2):
    run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
    keep_tokenizer(run)
    assert run.data.classifier_tokenizer.same_vocabulary(run.data.tokenizer)


def test_a_classifier_that_cannot_be_loaded_is_found_before_any_work(config, checkpoint, tmp_path):
  """Its checkpoint is first used by the third stage, after two models have been trained."""
  other = tmp_path / "other"
  shutil.copytree(checkpoint, other)
  raw = json.loads((other / "config.json").read_text())
  (other / "config.json").write_text(json.dumps(raw | {"intermediate_size": MLP + 1}))
  config.classifier.model.path = str(other)
  run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
  with pytest.raises(InputError, match="mlp.*weight has shape"):
    check_inputs(run)
  assert not (tmp_path / "w/tokenizer/done.json").exists()


def test_texts_beyond_the_checkpoints_positions_are_refused(config, checkpoint, tmp_path):
  """Its rotations mean nothing there; 'dynamic' ones would even differ between two forward passes."""
  raw = json.loads((checkpoint / "config.json").read_text()) | {"max_position_embeddings": 48}
  folder = tmp_path / "short"
  shutil.copytree(checkpoint, folder)
  (folder / "config.json").write_text(json.dumps(raw))
  config.model.path = str(folder)
  run = experiment.prepare(Settings.from_config(config), tmp_path / "w")[0]
  with pytest.raises(InputError, match=r"a text of \S+ takes \d+ tokens, and the model supports 48 "
                                       "positions"):
    check_inputs(run)

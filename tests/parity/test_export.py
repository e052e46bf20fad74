"""What is exported: transformers and PEFT must load it as it is, and get the same logits."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

from dareu_jax.models import huggingface, peft
from dareu_jax.models.config import LORA_TARGETS, LoraSettings
from dareu_jax.models.decoder import Decoder
from dareu_jax.pipeline import language_model
from tests.models.families import example_family
from tests.parity.checkpoints import CASES, make, rope, token_ids, torch_logits, write
from tests.parity.test_models import LIMIT as LIMIT_OF_TWO_LIBRARIES

LIMIT = 1e-4


def reloaded(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager").eval()


def tensors(folder):
  tensors = {}
  for file in sorted(folder.glob("*.safetensors")):
    tensors |= load_file(file)
  return tensors


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_an_export_and_gets_the_same_logits(name, tmp_path):
  """A field of config.json that is not written falls to a default without a word."""
  model = make(name)
  decoder, tokenizer = huggingface.load(write(model, tmp_path / "in"), dtype="float32")
  huggingface.save(decoder, tmp_path / "out", tokenizer=tokenizer)
  ids = token_ids(rows=1)
  assert np.abs(torch_logits(reloaded(tmp_path / "out"), ids) - torch_logits(model, ids)).max() <= LIMIT
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert again("Who is he?")["input_ids"] == tokenizer.backend("Who is he?")["input_ids"]


def test_a_family_of_ones_own_is_transformers_model(tmp_path, monkeypatch):
  """The example of docs/extending.md: Mistral, read, computed and written as transformers does."""
  monkeypatch.setitem(CASES, "mistral", ("Mistral", dict(
    sliding_window=37, rope_parameters=rope("default", 1e6))))
  with example_family(tmp_path):
    model = make("mistral")
    decoder, _ = huggingface.load(write(model, tmp_path / "in"), dtype="float32")
    ids = token_ids(rows=1)
    expected = torch_logits(model, ids)
    logits = np.asarray(jax.jit(lambda decoder: decoder.logits(ids))(decoder))
    assert np.abs(logits - expected).max() <= LIMIT_OF_TWO_LIBRARIES
    huggingface.save(decoder, tmp_path / "out")
  assert np.abs(torch_logits(reloaded(tmp_path / "out"), ids) - expected).max() <= LIMIT


def test_generation_stops_at_the_templates_end_and_the_tokenizers_own(tmp_path):
  """Answers are taught to end with the template's token; else every one runs to the limit."""
  decoder, tokenizer = huggingface.load(write(make("qwen2_bias"), tmp_path / "in"), dtype="float32")
  tokenizer.eos_id = tokenizer.backend.convert_tokens_to_ids("<|user|>")
  huggingface.save(decoder, tmp_path / "out", tokenizer=tokenizer)
  expected = [tokenizer.eos_id, tokenizer.backend.eos_token_id]
  assert expected[0] != expected[1]
  assert reloaded(tmp_path / "out").generation_config.eos_token_id == expected
  assert transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == expected
  tokenizer.backend.eos_token = None  # a list with null in it is refused by transformers
  huggingface.save(decoder, tmp_path / "alone", tokenizer=tokenizer)
  assert reloaded(tmp_path / "alone").generation_config.eos_token_id == tokenizer.eos_id
  own = {"eos_token_id": [7, tokenizer.eos_id], "temperature": 0.7, "do_sample": True}
  huggingface.save(decoder, tmp_path / "own", tokenizer=tokenizer, generation=own)
  again = reloaded(tmp_path / "own").generation_config
  assert (again.eos_token_id, again.temperature) == ([tokenizer.eos_id, 7], 0.7)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_in_are_safetensors_out_bit_for_bit(dtype, scan_layers, tmp_path):
  """In several files on both sides, cut at other places."""
  model = make("qwen2_bias", dtype=getattr(torch, dtype))
  folder = write(model, tmp_path / "in", max_shard_size="60KB")
  assert len(list(folder.glob("*.safetensors"))) > 2
  decoder, tokenizer = huggingface.load(folder, dtype=dtype, scan_layers=scan_layers)
  huggingface.save(decoder, tmp_path / "out", tokenizer=tokenizer, max_shard_bytes=100_000)
  assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
  before, after = tensors(folder), tensors(tmp_path / "out")
  assert set(before) == set(after)
  for name, value in before.items():
    assert value.dtype == after[name].dtype and value.tobytes() == after[name].tobytes(), name
  assert reloaded(tmp_path / "out")  # by its index


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_an_adapter_goes_out_merged_and_apart(scan_layers, tmp_path):
  """PEFT puts it on the checkpoint and gets our logits; so does the merged export."""
  folder = write(make("qwen3_qk_norm"), tmp_path / "base")
  lora = LoraSettings(rank=4, alpha=10.0, targets=LORA_TARGETS)
  base, tokenizer = huggingface.load(folder, dtype="float32", scan_layers=scan_layers)
  config = dataclasses.replace(base.config, lora=lora)
  decoder = Decoder(config, rngs=nnx.Rngs(params=3))
  nnx.update(decoder, nnx.state(base))
  rng = np.random.default_rng(5)
  adapter = jax.tree.map(
    lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), nnx.state(decoder, nnx.LoRAParam))
  nnx.update(decoder, adapter)
  ids = token_ids(rows=1)
  ours = np.asarray(jax.jit(lambda model: model.logits(ids))(decoder))
  assert np.abs(ours - torch_logits(reloaded(folder), ids)).max() > 0.1  # the adapter does something
  huggingface.save(decoder, tmp_path / "merged", tokenizer=tokenizer)
  assert np.abs(torch_logits(reloaded(tmp_path / "merged"), ids) - ours).max() <= LIMIT
  peft.save(decoder, tmp_path / "adapter", base=folder, tokenizer=tokenizer)
  with_peft = PeftModel.from_pretrained(reloaded(folder), tmp_path / "adapter").eval()
  assert np.abs(torch_logits(with_peft, ids) - ours).max() <= LIMIT


@pytest.mark.parametrize("beside", [False, True], ids=["apart", "beside its base"])
@pytest.mark.parametrize("changes", [
  {}, dict(use_rslora=True), dict(rank_pattern={"q_proj": 6}, alpha_pattern={"q_proj": 3})],
  ids=lambda changes: ", ".join(changes) or "plain")
def test_an_adapter_that_peft_wrote_is_read(beside, changes, tmp_path):
  """Left out, it would be another model than transformers loads from the same folder."""
  folder = write(make("llama_theta"), tmp_path / "base")
  config = LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "down_proj"], **changes)
  model = get_peft_model(reloaded(folder), config).eval()
  torch.manual_seed(2)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "lora_B" in name:
        parameter.normal_(std=0.1)
  model.save_pretrained(folder if beside else tmp_path / "adapter")
  ids = token_ids(rows=1)
  expected = torch_logits(model, ids)
  assert np.abs(expected - torch_logits(make("llama_theta"), ids)).max() > 0.1
  loaded = language_model.load(str(folder if beside else tmp_path / "adapter"), dtype="float32")
  assert np.abs(np.asarray(loaded.logits(ids)) - expected).max() <= LIMIT_OF_TWO_LIBRARIES

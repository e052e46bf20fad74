"""Small random checkpoints, made and written by transformers and torch."""

import numpy as np
import tokenizers as hf_tokenizers
import torch
import transformers

VOCAB, TOKENS = 320, 600
COMMON = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
              rms_norm_eps=1e-5, attention_bias=False)


def rope(kind, theta=10000.0, **more):
  return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = rope("llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=128)
YARN = rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=256)
# name -> (architecture, changes to COMMON)
CASES = {
  "llama_default_tied": ("Llama", dict(tie_word_embeddings=True, rope_parameters=rope("default"))),
  "llama_default_mha": ("Llama", dict(num_key_value_heads=4, rope_parameters=rope("default"))),
  "llama_theta": ("Llama", dict(rope_parameters=rope("default", 5e5))),
  "llama_linear": ("Llama", dict(rope_parameters=rope("linear", factor=4.0))),
  # 600 tokens are beyond 256.
  "llama_dynamic": ("Llama", dict(max_position_embeddings=256,
                                  rope_parameters=rope("dynamic", factor=2.0))),
  "llama_llama3": ("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
  "llama_yarn": ("Llama", dict(rope_parameters=YARN)),
  "llama_yarn_mscale": ("Llama", dict(rope_parameters=YARN | dict(
    beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.8, truncate=False))),
  "llama_biases": ("Llama", dict(attention_bias=True, mlp_bias=True,
                                 rope_parameters=rope("default"))),
  "llama_head_dim": ("Llama", dict(head_dim=20, rope_parameters=rope("default"))),
  "qwen2_bias": ("Qwen2", dict(rope_parameters=rope("default", 1e6))),
  "qwen2_tied": ("Qwen2", dict(tie_word_embeddings=True, rope_parameters=rope("default", 1e6))),
  "qwen2_windows": ("Qwen2", dict(use_sliding_window=True, sliding_window=37, max_window_layers=1,
                                  rope_parameters=rope("default", 1e6))),
  "qwen3_qk_norm": ("Qwen3", dict(head_dim=20, rope_parameters=rope("default", 1e6))),
  "qwen3_tied_bias": ("Qwen3", dict(head_dim=16, attention_bias=True, tie_word_embeddings=True,
                                    rope_parameters=rope("default", 1e6))),
}


def make(name, *, dtype=torch.float32, **changes):
  """A model in which every parameter tells: none zero or one, attention sharp."""
  architecture, own = CASES[name]
  values = COMMON | own | changes
  if architecture == "Qwen2":
    values.pop("attention_bias")
  config = getattr(transformers, f"{architecture}Config")(**values)
  torch.manual_seed(0)
  model = getattr(transformers, f"{architecture}ForCausalLM")._from_config(
    config, attn_implementation="eager").to(dtype).eval()
  rng = np.random.default_rng(1)
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      shape = tuple(parameter.shape)
      if path.endswith("norm.weight"):
        value = rng.uniform(0.6, 1.4, shape)
      elif path.endswith("bias"):
        value = 0.3 * rng.normal(size=shape)
      else:
        # Queries and keys are scaled up: soft attention would hide a wrong rotation.
        sharp = 2.0 if path.split(".")[-2] in ("q_proj", "k_proj") else 1.0
        value = sharp * rng.normal(size=shape) * shape[-1] ** -0.5
      parameter.copy_(torch.from_numpy(value))
  return model


def tokenizer():
  """Byte-level, without merges: enough for a folder that loads."""
  backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(
    {token: i for i, token in enumerate(
      ["<|end|>", "<|user|>", "<|assistant|>",
       *sorted(hf_tokenizers.pre_tokenizers.ByteLevel.alphabet())])}, []))
  backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  backend.decoder = hf_tokenizers.decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>",
    additional_special_tokens=["<|user|>", "<|assistant|>"])


def write(model, folder, **options):
  """A checkpoint folder as transformers writes it; returns it."""
  model.save_pretrained(folder, **options)
  tokenizer().save_pretrained(folder)
  return folder


def token_ids(rows=2, seed=0):
  return np.random.default_rng(seed).integers(0, VOCAB, (rows, TOKENS)).astype(np.int32)


def torch_logits(model, ids):
  with torch.no_grad():
    return model(torch.from_numpy(np.asarray(ids)).long()).logits.float().numpy()

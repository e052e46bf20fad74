"""config.json of checkpoints, in the forms of old and new transformers."""

import dataclasses
import json

import pytest
import transformers

from dareu_jax.core.errors import InputError
from dareu_jax.models import factory
from dareu_jax.models.config_json import from_huggingface
from dareu_jax.models.rope import RopeConfig
from tests.models.checkpoints import NO_LORA, config_json, load, settings, write
from tests.models.reference import CONFIGS, random_weights


@pytest.fixture(scope="module")
def weights():
  return random_weights(CONFIGS["llama"])


@pytest.mark.parametrize("scaling, expected", [
  ({}, RopeConfig(theta=5e5)),
  ({"rope_type": "linear", "factor": 4.0}, RopeConfig(theta=5e5, kind="linear", factor=4.0)),
  ({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0,
    "original_max_position_embeddings": 4096},
   RopeConfig(theta=5e5, kind="llama3", factor=32.0, low_freq_factor=2.0, high_freq_factor=5.0,
              original_max_length=4096)),
  ({"rope_type": "dynamic", "factor": 4.0},
   RopeConfig(theta=5e5, kind="dynamic", factor=4.0, original_max_length=1000)),
  # 0.1 ln 4 + 1, and the length where the file gives none.
  ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16},
   RopeConfig(theta=5e5, kind="yarn", factor=4.0, beta_fast=16.0, original_max_length=1000,
              attention_factor=1.1386294361119891)),
  ({"rope_type": "yarn", "original_max_position_embeddings": 250, "mscale": 2.0,
    "mscale_all_dim": 1.0, "truncate": False},
   RopeConfig(theta=5e5, kind="yarn", factor=4.0, original_max_length=250, truncate=False,
              attention_factor=1.2772588722239782 / 1.1386294361119891)),
], ids=["default", "linear", "llama3", "dynamic", "yarn", "yarn_mscale"])
def test_old_and_new_rope_keys_mean_the_same(scaling, expected, tmp_path):
  """transformers 5 moved theta and scaling into rope_parameters; unread, they fall to defaults."""

  def rope(folder, **keys):
    raw = {key: value for key, value in config_json("llama").items()
           if key not in ("rope_theta", "rope_scaling")} | {"max_position_embeddings": 1000}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**raw, **keys}), encoding="utf-8")
    return from_huggingface(folder).rope

  new = {"rope_type": "default", **scaling, "rope_theta": 500000.0}
  assert rope(tmp_path / "new", rope_parameters=new) == expected
  assert rope(tmp_path / "old", rope_theta=500000.0, rope_scaling=scaling or None) == expected
  assert rope(tmp_path / "both", rope_theta=500000.0, rope_scaling=scaling or None,
              rope_parameters=new | {"factor": 77.0}) == (expected if scaling else rope(
                tmp_path / "one", rope_parameters=new | {"factor": 77.0}))
  older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
  assert rope(tmp_path / "older", rope_theta=500000, rope_scaling=older or None) == expected


def test_config_json_of_transformers_itself_is_understood(tmp_path):
  """What the library writes today, for the three architectures, and not what this file thinks."""
  for kind, changes in (
    ("Llama", dict(architecture="llama")), ("Qwen2", dict(architecture="qwen2", qkv_bias=True)),
    ("Qwen3", dict(architecture="qwen3", qk_norm=True)),
  ):
    for tied in (False, True):
      folder = tmp_path / f"{kind}{tied}"
      written = getattr(transformers, f"{kind}Config")(
        architectures=[f"{kind}ForCausalLM"], vocab_size=41, hidden_size=32, intermediate_size=24,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 7e5},
        max_position_embeddings=4321,
        **(dict(head_dim=12) if kind == "Qwen3" else {}))
      written.save_pretrained(folder)
      expected = dataclasses.replace(
        CONFIGS["llama"], vocab_size=41, num_layers=3, num_kv_heads=2, norm_eps=1e-5,
        rope=RopeConfig(theta=7e5), head_dim=12 if kind == "Qwen3" else 8, tie_embeddings=tied,
        max_length=4321,
        **changes)
      assert from_huggingface(folder) == expected


@pytest.mark.parametrize("changes, culprit", [
  ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
  ({"architectures": None}, "architecture"),
  ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
   "longrope.*Supported: default, linear, dynamic, llama3, yarn"),
  ({"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
  ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
  ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
  ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8,
    "layer_types": ["sliding_attention"]}, "layer_types must name 2 layers"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_supported_is_named(changes, culprit, weights, tmp_path):
  """Loaded all the same, it would be another model that writes plausible nonsense."""
  with pytest.raises(InputError, match=culprit):
    load(write(tmp_path / "m", weights=weights, **changes))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps"])
def test_a_missing_dimension_is_named(key, tmp_path):
  """A KeyError is no message to a user."""
  raw = config_json("llama")
  del raw[key]
  (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
  with pytest.raises(InputError, match=key):
    from_huggingface(tmp_path)


def test_no_or_broken_config_json_is_named(tmp_path):
  with pytest.raises(InputError, match="holds no config.json"):
    load(tmp_path)
  (tmp_path / "config.json").write_text('{"architectures": [\n', encoding="utf-8")
  with pytest.raises(InputError, match=r"config.json, line 2: not valid JSON"):
    load(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
  """Ids beyond the table are clamped by jax and read a wrong row without a word."""
  folder = write(tmp_path / "m")
  with pytest.raises(InputError, match="41 tokens"):
    factory.model_config(settings(folder), NO_LORA, 41)

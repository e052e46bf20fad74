"""Model families: those of the package, and one more in a file of its own."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file

from dareu_jax.core.errors import InputError
from dareu_jax.core.trees import named_leaves
from dareu_jax.models import factory, huggingface, peft
from dareu_jax.models.config import LoraSettings, ModelSettings, from_settings
from dareu_jax.models.config_json import from_huggingface, to_huggingface
from dareu_jax.models.decoder import abstract_decoder
from dareu_jax.models.families.base import FAMILIES, Family, family_of, register_family
from dareu_jax.parallel import mesh
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from tests.configs import ROOT
from tests.models.checkpoints import IDS, NO_LORA, config_json, load, write
from tests.models.families import EXAMPLE, example_family
from tests.models.reference import CONFIGS, logits_of, random_weights, reference_logits

PACKAGE = ("llama", "qwen2", "qwen3")
SLIDING = dataclasses.replace(
  CONFIGS["llama_gqa_untied"], architecture="mistral", windows=(5, 5))


@pytest.fixture
def mistral(tmp_path):
  with example_family(tmp_path) as family:
    yield family


@pytest.fixture
def checkpoint(mistral, tmp_path):
  """A folder as Hugging Face would write it."""
  raw = config_json("llama_gqa_untied")
  del raw["attention_bias"], raw["mlp_bias"]
  return write(tmp_path / "m", "llama_gqa_untied", random_weights(SLIDING), **{
    **raw, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5})


# --- A family in one file


def test_the_example_is_short():
  """The promise of the page."""
  assert EXAMPLE.strip().count("\n") + 1 < 30


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_a_family_of_ones_own_reads_and_writes_checkpoints(scan_layers, checkpoint, tmp_path):
  """Config, weights, logits, export and back; any place that knows the three families by name."""
  decoder = load(checkpoint, scan_layers=scan_layers).module
  assert dataclasses.replace(decoder.config, scan_layers=False, max_length=2048) == (
    dataclasses.replace(SLIDING, attention="xla", rope=decoder.config.rope))
  assert decoder.config.max_length == 131072
  expected = reference_logits(random_weights(SLIDING), SLIDING, IDS)
  logits = logits_of(decoder, IDS)
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
  unbounded = reference_logits(
    random_weights(SLIDING), dataclasses.replace(SLIDING, windows=()), IDS)
  assert np.abs(expected - unbounded).max() > 0.1  # the window is read
  huggingface.save(decoder, tmp_path / "out")
  before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[name], err_msg=name)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out")
  assert isinstance(theirs, transformers.MistralConfig)
  assert theirs.sliding_window == 5 and theirs.architectures == ["MistralForCausalLM"]
  again = load(tmp_path / "out", scan_layers=scan_layers).module
  assert again.config == decoder.config
  np.testing.assert_array_equal(logits_of(again, IDS), logits)


def test_a_family_of_ones_own_is_trained_from_scratch(mistral, tmp_path):
  """The setting would refuse its name, or the export call it a Llama."""
  settings = ModelSettings(architecture="mistral", embed_dim=32, mlp_dim=24, num_layers=2,
                           num_heads=4, num_kv_heads=2, head_dim=8, attention="xla")
  config = factory.model_config(settings, NO_LORA, 40)
  decoder = factory.build_decoder(settings, config, 0, make_mesh(MeshSettings(1, 1, 1))).module
  huggingface.save(decoder, tmp_path / "out")
  assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mistral"
  np.testing.assert_array_equal(
    logits_of(load(tmp_path / "out").module, IDS), logits_of(decoder, IDS))


def test_adapters_of_a_family_of_ones_own_are_exported(checkpoint, tmp_path):
  """Their names come from the family's too."""
  decoder = load(checkpoint, lora=LoraSettings(rank=2, alpha=4.0, targets=("q_proj",))).module
  peft.save(decoder, tmp_path / "adapter", base=checkpoint)
  names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
  assert "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight" in names


def test_a_file_within_the_package_is_all_it_takes(tmp_path):
  """A list of families anywhere would not have it."""
  (tmp_path / "mistral.py").write_text(EXAMPLE, encoding="utf-8")
  done = subprocess.run([sys.executable, "-c", f"""
import dareu_jax.models.families as package
package.__path__.append({str(tmp_path)!r})
from dareu_jax.models.config import ModelSettings
print(ModelSettings(architecture="mistral").architecture)
"""], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240)
  assert done.stdout.strip() == "mistral", done.stderr[-3000:]


# --- What a family declares


def test_families_are_the_choices_of_the_setting():
  """Written twice, they would part."""
  assert FAMILIES.names() == PACKAGE
  with pytest.raises(InputError, match="it must be one of llama, qwen2, qwen3"):
    ModelSettings(architecture="gpt2")


@pytest.mark.parametrize("name", PACKAGE)
def test_a_config_comes_back_from_its_config_json(name, tmp_path):
  """An option that is not written, or not read, falls to its default without a word."""
  settings = ModelSettings(architecture=name, head_dim=48)
  scratch = from_settings(settings, NO_LORA, 40)
  assert scratch.qkv_bias == (name == "qwen2") and scratch.qk_norm == (name == "qwen3")
  variants = [scratch, dataclasses.replace(scratch, tie_embeddings=False, max_length=512)]
  if name != "llama":
    variants.append(dataclasses.replace(scratch, windows=(None, 7, None, 7)))
  if name != "qwen2":
    variants.append(dataclasses.replace(scratch, qkv_bias=True, out_bias=True))
  if name == "llama":
    variants.append(dataclasses.replace(scratch, mlp_bias=True))
  for i, config in enumerate(variants):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_huggingface(config)), encoding="utf-8")
    assert from_huggingface(folder, lora=NO_LORA) == config


@pytest.mark.parametrize(("name", "head_dim", "max_length"), [
  ("llama", 8, 2048), ("qwen2", 8, 32768), ("qwen3", 128, 32768)])
def test_what_a_config_json_leaves_out_is_the_familys_default(name, head_dim, max_length, tmp_path):
  """Those of transformers, which leaves out what is the default of its class."""
  raw = config_json("llama") | {"architectures": FAMILIES[name].architectures}
  (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
  config = from_huggingface(tmp_path)
  assert (config.head_dim, config.max_length) == (head_dim, max_length)
  theirs = getattr(transformers, f"{name.capitalize()}Config")()
  assert max_length == theirs.max_position_embeddings


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", PACKAGE)
def test_every_parameter_has_one_tensor_a_layer(name, scan_layers):
  """Two parameters of one name would be read from the same tensor."""
  config = dataclasses.replace(
    CONFIGS["llama"], architecture=name, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True,
    tie_embeddings=False, scan_layers=scan_layers)
  names = [tensor for leaf in named_leaves(nnx.state(abstract_decoder(config)))
           for tensor in FAMILIES[name].checkpoint_names(leaf, config.num_layers)[0]]
  assert len(names) == len(set(names)) == 3 + 2 * (2 + 2 + 7 * 2)
  assert "model.layers.1.self_attn.q_norm.weight" in names


@pytest.fixture
def families(monkeypatch):
  """The registry, to be changed by one test alone."""
  monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES.items()))


def test_a_family_may_name_tensors_otherwise(families, tmp_path):
  """The names of Llama, used somewhere past the family."""
  names = {path: name.replace("model.", "transformer.").replace("lm_head", "output")
           for path, name in Family.tensor_names.items()}

  @register_family("renamed")
  class Renamed(Family):
    architectures = ("RenamedForCausalLM",)
    tensor_names = names

  def renamed(name):
    return name.replace("model.", "transformer.").replace("lm_head", "output")

  for case in ("llama_gqa_untied", "llama"):
    tensors = random_weights(CONFIGS[case])
    more = {} if "lm_head.weight" in tensors else {
      "output.weight": tensors["model.embed_tokens.weight"].copy()}
    folder = write(tmp_path / case, case, {renamed(k): v for k, v in tensors.items()} | more,
                   architectures=["RenamedForCausalLM"])
    decoder = load(folder).module
    np.testing.assert_allclose(
      logits_of(decoder, IDS), reference_logits(tensors, CONFIGS[case], IDS), atol=1e-5, rtol=1e-5)
    huggingface.save(decoder, tmp_path / f"{case}_out")
    assert load_file(tmp_path / f"{case}_out" / "model.safetensors").keys() == set(map(renamed, tensors))


def test_a_parameter_that_a_family_does_not_name_is_an_error(families):
  """Skipped, it would stay at its random start."""

  @register_family("unnamed")
  class Unnamed(Family):
    architectures = ("UnnamedForCausalLM",)
    tensor_names = {"embedding": "wte.weight"}

  assert Unnamed.checkpoint_names("decoder/embedding", 2) == (["wte.weight"], False)
  with pytest.raises(ValueError, match=r"'unnamed' names no tensor for the parameter layers/\*/mlp"
                                       ".*Unnamed.tensor_names"):
    Unnamed.checkpoint_names("layers/1/mlp/up_proj/kernel", 2)


def test_families_that_cannot_be_told_apart_are_refused(families):
  """The first of them would read the other's checkpoints."""
  with pytest.raises(ValueError, match="Derived must list the architectures"):
    @register_family("derived")
    class Derived(FAMILIES["llama"]):
      pass

  @register_family("second")
  class Second(FAMILIES["llama"]):
    architectures = ("SecondForCausalLM", "LlamaForCausalLM")

  assert Second.model_type == "second" and FAMILIES["llama"].model_type == "llama"
  assert family_of("SecondForCausalLM") is Second
  with pytest.raises(InputError, match="read by several model families: llama, second"):
    family_of("LlamaForCausalLM")


def test_a_family_may_have_shardings_of_its_own(families, monkeypatch):
  """A rule that is declared and never registered would be an error at the first mesh."""
  monkeypatch.setattr(mesh, "_RULES", dict(mesh._RULES))

  @register_family("routed")
  class Routed(Family):
    architectures = ("RoutedForCausalLM",)
    shardings = Family.shardings | {r"router/kernel": ("embed", "mlp")}

  cube = jax.sharding.AbstractMesh((2, 2, 2), mesh.AXES)
  spec = mesh.parameter_spec("layers/0/router/kernel", (32, 24), cube)
  assert spec == jax.sharding.PartitionSpec("fsdp", "tensor")

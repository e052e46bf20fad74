"""Checkpoint folders, written here tensor by tensor, against the numpy Llama."""

import json
import os
import shutil
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dareu_jax.core.errors import InputError
from dareu_jax.models import factory
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from tests import jobs
from tests.configs import ROOT
from tests.models.checkpoints import IDS, NO_LORA, load, settings, write
from tests.models.reference import (
  CONFIGS,
  LORA,
  logits_of,
  random_weights,
  reference_hidden,
  reference_logits,
)


def logits(model):
  return logits_of(model.module, IDS)


@pytest.fixture(scope="module")
def weights():
  return random_weights(CONFIGS["llama"])


# --- What is read


@pytest.mark.parametrize("name, scan_layers", [
  ("llama", False), ("llama_gqa_untied", True), ("llama3_rope", True), ("llama_yarn_bias", True),
  ("llama_dynamic", False), ("qwen2_bias", False), ("qwen2_bias", True), ("qwen2_windows", False),
  ("qwen2_windows", True), ("qwen3_qk_norm", False), ("qwen3_qk_norm", True)])
def test_a_checkpoint_gives_the_reference_logits(name, scan_layers, tmp_path):
  """A kernel not transposed, layers swapped, or a field of config.json not read."""
  model = load(write(tmp_path / "m", name), scan_layers=scan_layers)
  expected = reference_logits(random_weights(CONFIGS[name]), CONFIGS[name], IDS)
  np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-5)


def test_sharded_files_are_read_by_their_index(tmp_path):
  """Large checkpoints come in parts; a layer's tensors may lie in different ones."""
  name = "llama_gqa_untied"
  whole = random_weights(CONFIGS[name])
  folder = write(tmp_path / "m", name)
  (folder / "model.safetensors").unlink()
  names = sorted(whole)
  files = {n: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, n in enumerate(names)}
  for file in set(files.values()):
    save_file({n: whole[n] for n in names if files[n] == file}, folder / file)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
  expected = reference_logits(whole, CONFIGS[name], IDS)
  np.testing.assert_allclose(logits(load(folder)), expected, atol=1e-4, rtol=1e-5)
  (folder / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(InputError, match="model-00002-of-00003.safetensors is missing"):
    load(folder)


def indexed(folder, names):
  """The folder with its weights as the only part of an index that names these tensors."""
  part = "model-00001-of-00001.safetensors"
  (folder / "model.safetensors").rename(folder / part)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": dict.fromkeys(names, part)}), encoding="utf-8")
  return folder


READ_IN_PARTS = '''
import sys
import jax, numpy as np
from dareu_jax.models.config_json import from_huggingface
from dareu_jax.models.weights import Weights
from dareu_jax.parallel.mesh import MeshSettings, make_mesh, parameter_spec
from jax.sharding import NamedSharding

mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
weights = Weights(sys.argv[1], from_huggingface(sys.argv[1], scan_layers=True))
read = []

class Slice:
  def __init__(self, tensor):
    self.tensor = tensor
  def get_shape(self):
    return self.tensor.get_shape()
  def __getitem__(self, index):
    read.append(self.tensor[index])
    return read[-1]

original = Weights._slice
Weights._slice = lambda self, name: Slice(original(self, name))
for path, shape in (("layers/mlp/up_proj/kernel", (2, 32, 24)), ("embedding", (40, 32))):
  read.clear()
  sharding = NamedSharding(mesh, parameter_spec(path, shape, mesh))
  array = weights.array(path, shape, "float32", sharding)
  assert {shard.data.size for shard in array.addressable_shards} == {int(np.prod(shape)) // 8}
  layers = 2 if len(shape) == 3 else 1
  assert [part.size for part in read] == [int(np.prod(shape)) // 8 // layers] * 8 * layers
  whole = np.stack([original(weights, f"model.layers.{i}.mlp.up_proj.weight")[:, :].T
                    for i in range(2)]) if layers == 2 else original(
                      weights, "model.embed_tokens.weight")[:, :]
  np.testing.assert_array_equal(np.asarray(array), whole)
print("read in parts")
'''


def test_each_device_reads_its_own_part_of_the_file_once(tmp_path):
  """A full copy of a 7B model on one host, or eight, is what runs out of memory."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": jobs.xla_flags(8)}
  done = subprocess.run([sys.executable, "-c", READ_IN_PARTS, write(tmp_path / "m")],
                        env=environment, capture_output=True, text=True, timeout=jobs.HANGS)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "read in parts" in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_files_are_read_without_loss(dtype, weights, tmp_path):
  """Most checkpoints are bfloat16, which numpy does not know by itself."""
  halves = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in weights.items()}
  model = load(write(tmp_path / "m", weights=halves), dtype=dtype)
  assert model.params["layers"][1]["mlp"]["up_proj"]["kernel"][...].dtype == "float32"  # master
  module = model.module
  parameters = module.layers[1].mlp.up_proj.kernel[...]
  assert parameters.dtype == dtype
  np.testing.assert_array_equal(
    np.asarray(parameters, np.float32),
    halves["model.layers.1.mlp.up_proj.weight"].astype(np.float32).T)
  if dtype == "float32":
    exact = {name: tensor.astype(np.float32) for name, tensor in halves.items()}
    expected = reference_logits(exact, CONFIGS["llama"], IDS)
    np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-5)


def test_adapters_sit_on_the_checkpoints_weights(weights, tmp_path):
  """The base must come from the file and be frozen; fresh adapters must change nothing."""
  model = load(write(tmp_path / "m"), lora=LORA)
  trained, kept = (sum(leaf.size for leaf in jax.tree.leaves(state))
                   for state in (model.params, model.frozen))
  assert kept == model.module.config.num_parameters
  sizes = {"q": 64, "k": 64, "v": 64, "o": 64, "gate": 56, "up": 56, "down": 56}  # in + out
  assert trained == 2 * LORA.rank * sum(sizes.values())
  expected = reference_logits(weights, CONFIGS["llama"], IDS)
  np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-5)


def test_classifier_takes_its_trunk_from_the_checkpoint(tmp_path):
  """Its owner head is not in the file, and the file's language head has no place in it."""
  name = "llama_gqa_untied"
  model_settings = settings(write(tmp_path / "m", name), scan_layers=True)
  config = factory.model_config(model_settings, NO_LORA, 40)
  model = factory.build_classifier(model_settings, config, 5, 0, make_mesh(MeshSettings(1, 1, 1)))
  module = model.module
  hidden = reference_hidden(random_weights(CONFIGS[name]), CONFIGS[name], IDS)
  owner_kernel = np.asarray(module.owner_kernel[...], np.float64)
  assert 0.5 < owner_kernel.std() * 32**0.5 < 1.5
  np.testing.assert_allclose(
    jax.jit(lambda ids: module(ids))(IDS), hidden @ owner_kernel, atol=1e-4, rtol=1e-5)


def test_buffers_and_a_copied_tied_head_are_no_surplus(weights, tmp_path):
  """Old Llama files carry inv_freq, and some writers store the tied head twice."""
  more = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].copy(),
          "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
  model = load(write(tmp_path / "m", weights=more))
  np.testing.assert_array_equal(
    model.module.embedding[...],
    weights["model.embed_tokens.weight"])


def test_a_tied_head_that_is_no_copy_is_refused(weights, tmp_path):
  """Config and file disagree on which head the model has: taking either in silence may be wrong."""
  more = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1.0}
  with pytest.raises(InputError, match="lm_head.weight differs from them"):
    load(write(tmp_path / "m", weights=more))


# --- Damaged weights


def test_a_missing_tensor_is_named(weights, tmp_path):
  """Left at its random start, it would spoil the model silently."""
  culprit = "model.layers.1.self_attn.k_proj.weight"
  less = {name: tensor for name, tensor in weights.items() if name != culprit}
  for scan_layers in (False, True):
    with pytest.raises(InputError, match=f"{culprit} is missing"):
      load(write(tmp_path / "m", weights=less), scan_layers=scan_layers)


def test_a_surplus_tensor_is_named(weights, tmp_path):
  """A bias with no place, or a layer more than config.json says: another architecture."""
  for culprit in ("model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight"):
    more = {**weights, culprit: np.zeros(32, np.float32)}
    with pytest.raises(InputError, match=f"{culprit} .*is not used by the model"):
      load(write(tmp_path / "m", weights=more))


def test_a_misshapen_tensor_is_named(weights, tmp_path):
  """A width that config.json does not have, and a kernel that lies the other way round."""
  for culprit, shape in (("model.norm.weight", (31,)), ("model.layers.1.mlp.up_proj.weight",
                                                        (32, 24))):
    other = {**weights, culprit: np.zeros(shape, np.float32)}
    for scan_layers in (False, True):
      with pytest.raises(InputError, match=f"{culprit} has shape"):
        load(write(tmp_path / "m", weights=other), scan_layers=scan_layers)


def test_a_damaged_file_is_named(tmp_path):
  """An interrupted download: cut short, or a header that promises more than there is."""
  file = write(tmp_path / "m") / "model.safetensors"
  whole = file.read_bytes()
  for damaged in (whole[: len(whole) // 2], b"", struct.pack("<Q", 2**40) + whole[8:]):
    file.write_bytes(damaged)
    with pytest.raises(InputError, match="model.safetensors is damaged"):
      load(tmp_path / "m")


@pytest.mark.parametrize("text", ['{"weight_map": {', "{}"], ids=["cut", "empty"])
def test_a_damaged_index_is_named(text, tmp_path):
  """As likely as a damaged file: it is downloaded alike."""
  folder = indexed(write(tmp_path / "m"), [])
  (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
  with pytest.raises(InputError, match="model.safetensors.index.json"):
    load(folder)


def test_an_index_that_names_the_wrong_file_is_noticed(weights, tmp_path):
  """The index promises a tensor that the file does not hold."""
  folder = indexed(write(tmp_path / "m", weights={
    name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}), weights)
  with pytest.raises(InputError, match="model.norm.weight"):
    load(folder)


def test_a_tensor_that_the_index_does_not_name_is_surplus(weights, tmp_path):
  """Left out of the index it would be left out of the model, without a word."""
  folder = indexed(
    write(tmp_path / "m", weights={**weights, "model.layers.9.extra": np.zeros(3, np.float32)}),
    weights)
  with pytest.raises(InputError, match="does not name tensor model.layers.9.extra"):
    load(folder)


def test_a_whole_file_comes_before_an_index_of_another_save(weights, tmp_path):
  """Old weights, without a word: transformers reads the whole file too."""
  old = write(tmp_path / "old", weights={name: 0 * tensor for name, tensor in weights.items()})
  folder = write(tmp_path / "m")
  for file in indexed(old, weights).glob("model*"):
    shutil.copy(file, folder)
  expected = reference_logits(weights, CONFIGS["llama"], IDS)
  np.testing.assert_allclose(logits(load(folder)), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["inv_freq", "cos_cached", "sin_cached"])
@pytest.mark.parametrize("is_indexed", [False, True])
def test_buffers_of_rotary_embeddings_are_no_weights(name, is_indexed, weights, tmp_path):
  """Old versions of transformers saved them, under several names, and not always in the index."""
  buffer = {f"model.layers.0.self_attn.rotary_emb.{name}": np.ones(4, np.float32)}
  folder = write(tmp_path / "m", weights={**weights, **buffer})
  if is_indexed:
    indexed(folder, weights)
  expected = reference_logits(weights, CONFIGS["llama"], IDS)
  np.testing.assert_allclose(logits(load(folder)), expected, atol=1e-4, rtol=1e-5)


def test_a_tied_tensor_may_be_stored_under_either_name(tmp_path):
  """Some tools keep lm_head of the two names that share it."""
  name = next(name for name, config in CONFIGS.items() if config.tie_embeddings)
  own = random_weights(CONFIGS[name])
  renamed = dict(own)
  renamed["lm_head.weight"] = renamed.pop("model.embed_tokens.weight")
  expected = reference_logits(own, CONFIGS[name], IDS)
  model = load(write(tmp_path / "m", name, weights=renamed))
  np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq"])
def test_quantized_checkpoints_are_named_before_a_tensor_is_read(method, tmp_path):
  """Their tensors have other names, shapes and types, and each would fail in its own way."""
  folder = write(tmp_path / "m")
  path = folder / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
  (folder / "model.safetensors").write_bytes(b"")
  with pytest.raises(InputError, match=rf"config.json: quantization_config .*\({method}\)"):
    load(folder)


def test_an_architecture_that_is_not_named_is_that_of_the_model_type(weights, tmp_path):
  folder = write(tmp_path / "m")
  path = folder / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": None,
                              "model_type": "llama"}))
  expected = reference_logits(weights, CONFIGS["llama"], IDS)
  np.testing.assert_allclose(logits(load(folder)), expected, atol=1e-4, rtol=1e-5)


def test_pickled_weights_are_never_loaded(tmp_path):
  """A .bin is code: it is refused, with the reason."""
  folder = write(tmp_path / "m")
  (folder / "model.safetensors").unlink()
  with pytest.raises(InputError, match="holds no model.safetensors"):
    load(folder)
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
  with pytest.raises(InputError, match=r"pytorch_model\.bin is pickled code"):
    load(folder)

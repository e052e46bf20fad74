"""The models of the big presets by their shapes: built, split over devices, lowered; never held."""

import json
import os
import subprocess
import sys

import pytest

from tests import jobs
from tests.configs import ROOT

BIG = '''
import json, pathlib, sys, tempfile
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from dareu_jax.models.config import LORA_TARGETS, LoraSettings
from dareu_jax.models.config_json import from_huggingface
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.handle import split
from dareu_jax.parallel.mesh import BATCH, MeshSettings, make_mesh, shardings

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "config.json").write_text(sys.argv[1])
config = from_huggingface(folder, dtype="bfloat16", scan_layers=True, remat=True,
                          lora=LoraSettings(rank=8, alpha=32.0, targets=LORA_TARGETS))
mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
shapes = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=jax.random.key(0))))
model = split(shapes, adapters_only=True)

def on(tree):
  return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                      tree, shardings(tree, mesh))

def loss(adapter, model, ids):
  module = model.with_params(adapter).module
  return jnp.mean(module.hidden_states(ids).astype(jnp.float32) ** 2)

ids = jax.ShapeDtypeStruct((8, 512), jnp.int32, sharding=NamedSharding(mesh, P(BATCH)))
with jax.set_mesh(mesh):
  lowered = jax.jit(jax.grad(loss)).lower(on(model.params), on(model.with_params(None)), ids)
text = lowered.as_text()
parts = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(on(model.frozen))]
size = sum(int(jnp.prod(jnp.array(part, jnp.float32))) for part in parts)
print(json.dumps({"parameters": config.num_parameters, "on_a_device": size,
                  "constraints": text.count("sharding_constraint"),
                  "bytes": sum(array.nbytes for array in jax.live_arrays())}))
'''
LLAMA2_7B = '''{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
"intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
"num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
"tie_word_embeddings": false, "torch_dtype": "float16"}'''
QWEN3_8B = '''{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
"intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
"rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": false}'''


@pytest.mark.parametrize(("config", "parameters"), [
  (LLAMA2_7B, 6_738_415_616), (QWEN3_8B, 8_190_735_360)], ids=["llama2_7b", "qwen3_8b"])
def test_a_big_model_is_split_and_lowered_without_being_held(config, parameters):
  """The published number of parameters; an eighth of them on each of eight devices."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": jobs.xla_flags(8)}
  done = subprocess.run([sys.executable, "-c", BIG, config], env=environment, cwd=ROOT,
                        capture_output=True, text=True, timeout=jobs.HANGS)
  assert done.returncode == 0, done.stderr[-3000:]
  facts = json.loads(done.stdout)
  assert facts["parameters"] == parameters
  assert facts["on_a_device"] == pytest.approx(parameters / 8, rel=0.01)
  assert facts["constraints"] >= 2
  assert facts["bytes"] < 1e6

"""Compiles the training step of a 7B shape for a TPU that is not there, with each attention.

    pip install '.[tpu]'
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/compile_for_tpu.py

Takes two minutes on 2 cores; prints memory and work of one device of a v5e-8.
"""

import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dareu_jax.models.config import LoraSettings, ModelConfig
from dareu_jax.models.factory import abstract_model
from dareu_jax.parallel.mesh import AXES, BATCH, shardings

BATCH_SIZE, LENGTH = 16, 512


def llama2_7b(attention: str) -> ModelConfig:
  """The shape of Llama-2-7B with LoRA."""
  return ModelConfig(
    vocab_size=32000, embed_dim=4096, mlp_dim=11008, num_layers=32, num_heads=32, num_kv_heads=32,
    head_dim=128, tie_embeddings=False, dtype="bfloat16", scan_layers=True, remat=True,
    attention=attention, lora=LoraSettings(rank=8))


def compile_gradient(config: ModelConfig, mesh: Mesh) -> jax.stages.Compiled:
  """The gradient of a loss on hidden states by the adapters, compiled from shapes alone."""
  model = abstract_model(config)

  def on_mesh(tree):
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      tree, shardings(tree, mesh))

  def loss(params, model, ids):
    module = model.with_params(params).module
    return jnp.mean(module.hidden_states(ids).astype(jnp.float32) ** 2)

  ids = jax.ShapeDtypeStruct(
    (BATCH_SIZE, LENGTH), jnp.int32, sharding=NamedSharding(mesh, P(BATCH)))
  with jax.set_mesh(mesh):
    return jax.jit(jax.grad(loss)).lower(
      on_mesh(model.params), on_mesh(model.with_params(None)), ids).compile()


def main() -> None:
  """Prints memory and work of each."""
  topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
  mesh = jax.make_mesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3, devices=topology.devices)
  # The host is a CPU, where the kernel would be interpreted.
  jax.default_backend = lambda: "tpu"
  for attention in ("xla", "splash"):
    start = time.perf_counter()
    compiled = compile_gradient(llama2_7b(attention), mesh)
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    kernels = compiled.as_text().count("tpu_custom_call")
    print(f"{attention:<7} compiled in {seconds:.0f} s; a device: weights "
          f"{memory.argument_size_in_bytes / 2**30:.2f} GiB, temporaries "
          f"{memory.temp_size_in_bytes / 2**30:.2f} GiB, {cost['flops']:.3g} FLOPs, "
          f"{cost['bytes accessed']:.3g} bytes; {kernels} kernels")


if __name__ == "__main__":
  main()

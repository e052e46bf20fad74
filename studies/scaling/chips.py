"""Peak figures of devices: published, or measured if nothing is published.

Sources: Cloud TPU documentation, pages "TPU v4", "v5e", "v5p" and "v6e"
(docs.cloud.google.com/tpu/docs); NVIDIA data sheets of H100 SXM, H200, A100 SXM and L4 (dense
bfloat16; L4 has no links but PCIe; nvidia-smi gives an H200 140.4 GiB).
"""

import dataclasses
import time

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one chip."""

  name: str
  published: float  # GiB of HBM
  memory: float  # GiB that a program may use, according to the TPU compiler
  flops: float  # bfloat16, per second
  bandwidth: float  # bytes of HBM per second
  links: float  # bytes per second sent over all its links together
  ports: int  # links of a chip; a collective along one dimension of the torus uses two of them

  @property
  def collective_bandwidth(self) -> float:
    """Bytes per second sent in a collective along one dimension."""
    return self.links * min(1.0, 2 / self.ports)


CHIPS = {chip.name: chip for chip in (
  Chip("v4", 32, 30.75, 275e12, 1228e9, 2400e9 / 8, 6),
  Chip("v5e", 16, 15.75, 197e12, 819e9, 1600e9 / 8, 4),
  Chip("v5p", 95, 95, 459e12, 2765e9, 4800e9 / 8, 6),
  Chip("v6e", 32, 31.24, 918e12, 1640e9, 3200e9 / 8, 4),
  Chip("H100", 80, 80, 989e12, 3350e9, 450e9, 2),
  Chip("H200", 140.4, 140.4, 989e12, 4800e9, 450e9, 2),
  Chip("A100-SXM4-80GB", 80, 80, 312e12, 2039e9, 300e9, 2),
  Chip("A100-SXM4-40GB", 40, 40, 312e12, 1555e9, 300e9, 2),
  Chip("L4", 24, 24, 121e12, 300e9, 32e9, 2),
)}


@dataclasses.dataclass(frozen=True)
class GPUDetails:
  """What XLA must know of a GPU to compile for it where there is none.

  Source: CUDA C++ programming guide, table "Technical specifications per compute capability", and
  NVIDIA's data sheets.
  """

  capability: tuple[int, int]
  processors: int  # streaming multiprocessors
  clock: float  # GHz
  l2_cache: int  # bytes
  threads: int  # of a multiprocessor
  shared_memory: int  # bytes of a multiprocessor

  def target_config(self, chip: Chip) -> str:
    """XLA's description of the GPU, a text protobuf."""
    major, minor = self.capability
    fields = dict(
      threads_per_block_limit=1024, threads_per_warp=32, shared_memory_per_block=49152,
      shared_memory_per_core=self.shared_memory, threads_per_core_limit=self.threads,
      core_count=self.processors, fpus_per_core=128 if (major, minor) != (8, 0) else 64,
      block_dim_limit_x=2**31 - 1, block_dim_limit_y=65535, block_dim_limit_z=65535,
      memory_bandwidth=int(chip.bandwidth), l2_cache_size=self.l2_cache, clock_rate_ghz=self.clock,
      device_memory_size=int(chip.memory * 2**30),
      shared_memory_per_block_optin=self.shared_memory - 1024,
      registers_per_core_limit=65536, registers_per_block_limit=65536)
    lines = [f"  {key}: {value}" for key, value in fields.items()]
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return "\n".join([
      "gpu_device_info {", *lines, "}", 'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 10 }", "runtime_version { major: 12 minor: 9 patch: 0 }",
      f'device_description_str: "NVIDIA {chip.name}"'])


GPUS = {
  "H100": GPUDetails((9, 0), 132, 1.98, 50 * 2**20, 2048, 233472),
  "H200": GPUDetails((9, 0), 132, 1.98, 60 * 2**20, 2048, 233472),
  "A100-SXM4-80GB": GPUDetails((8, 0), 108, 1.41, 40 * 2**20, 2048, 167936),
  "A100-SXM4-40GB": GPUDetails((8, 0), 108, 1.41, 40 * 2**20, 2048, 167936),
  "L4": GPUDetails((8, 9), 58, 2.04, 48 * 2**20, 1536, 102400),
}
_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
          "TPU v6 lite": "v6e", "TPU v6e": "v6e"}


def of_device(device: jax.Device) -> Chip:
  """The chip of an available device; measured if its kind is unknown."""
  kind = device.device_kind
  # "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L4" (and no "NVIDIA L40S").
  name = _KINDS.get(kind) or next((word for word in kind.split() if word in CHIPS), None)
  return CHIPS[name] if name else measured(device)


def measured(device: jax.Device) -> Chip:
  """Speed of the first device in a matrix product and in a copy, and its memory.

  Fake CPU devices share the cores, so each gets its share; link speed is taken from the copy.
  """
  n, width = 1024, 2**24
  x, y = jnp.ones((n, n), jnp.float32), jnp.ones(width, jnp.float32)
  flops = 2 * n**3 / _seconds(jax.jit(lambda x: x @ x), x)
  bandwidth = 8 * width / _seconds(jax.jit(lambda y: y * 2), y)
  share = jax.local_device_count() if device.platform == "cpu" else 1
  memory = (device.memory_stats() or {}).get("bytes_limit", float("inf")) / 2**30
  return Chip(device.device_kind, memory, memory, flops / share, bandwidth / share,
              bandwidth / share, 2)


def _seconds(function, x):
  function(x).block_until_ready()
  best = float("inf")
  for _ in range(5):
    begin = time.perf_counter()
    function(x).block_until_ready()
    best = min(best, time.perf_counter() - begin)
  return best

"""One mesh of a study: compiles its programs and estimates their memory and time."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dareu_jax.core.errors import InputError, first_line
from dareu_jax.parallel import mesh as meshes
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.rl.programs import Job, Program, job, memory
from studies.scaling import hlo
from studies.scaling.chips import CHIPS, GPUS, Chip
from studies.scaling.settings import ScalingSettings

GIB = 2**30
# v4 and older have two cores a chip, which programs see as one device in this configuration.
_TOPOLOGY_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Need:
  """Cost of a program on one device: bytes, FLOPs, and seconds at the chip's published peaks."""

  arguments: int
  temporaries: int  # including results that share no buffer with an argument
  peak: int  # including everything else that stays on the device
  flops: float
  traffic: float
  collectives: dict[str, float]  # bytes sent, by kind
  compile_seconds: float
  compute_seconds: float
  memory_seconds: float
  collective_seconds: float
  times: int  # runs in a rollout

  @property
  def seconds(self) -> float:
    """Seconds of one run: arithmetic and traffic overlap, collectives overlap with neither."""
    return max(self.compute_seconds, self.memory_seconds) + self.collective_seconds


@dataclasses.dataclass(frozen=True)
class Row:
  """The results for a mesh of the study."""

  target: str  # topology, or kind of the available devices
  mesh: tuple[int, int, int]
  rows: int  # responses of a rollout
  tokens: int  # per response
  memory: float  # bytes of the chip's HBM
  needs: dict[str, Need]
  measured: dict[str, float] | None = None  # program: seconds of a run
  # Program: why the compiler gave up.
  rejected: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def devices(self) -> int:
    """Number of devices of the mesh."""
    return self.mesh[0] * self.mesh[1] * self.mesh[2]

  @property
  def peak(self) -> float:
    """Peak bytes; infinite if a program could not be compiled for lack of memory."""
    return float("inf") if self.rejected else max(need.peak for need in self.needs.values())

  @property
  def fits(self) -> bool:
    """Whether the chip has enough memory."""
    return self.peak <= self.memory

  @property
  def seconds(self) -> float:
    """Roofline estimate of a rollout: sampled, rewarded, scored, learned from."""
    if self.rejected:
      return float("inf")
    return sum(need.times * need.seconds for need in self.needs.values())

  @property
  def measured_seconds(self) -> float | None:
    """Measured seconds of a rollout."""
    if self.measured is None:
      return None
    return sum(need.times * self.measured[name] for name, need in self.needs.items())


def topology(name: str) -> tuple[Sequence[Any], str]:
  """(devices, Chip name) of a topology that need not exist here: TPUs as 'v5e:4x4', GPUs as 'L4' or
  'H100:8'.

  Raises:
    InputError: if there is no such topology, or its compiler is not installed.
  """
  from jax.experimental import topologies
  kind, _, count = name.partition(":")
  if kind in GPUS:
    try:
      description = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count or 1}",
        target_config=GPUS[kind].target_config(CHIPS[kind]))
    except Exception as error:  # noqa: BLE001 - a different type for each reason
      raise InputError(
        f"--topology={name} cannot be compiled for ({first_line(error)[:200]}). The GPU "
        "compiler comes with pip install '.[cuda]', and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 lets it "
        "start without a driver.") from None
    return description.devices, kind
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **_TOPOLOGY_OPTIONS.get(name.split(":")[0], {}))
  except Exception as error:  # noqa: BLE001 - a different type for each reason
    raise InputError(
      f"--topology={name} cannot be compiled for ({first_line(error)[:200]}). Known forms: "
      f"v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:4x4, {', '.join(GPUS)}; the TPU compiler comes with "
      "pip install '.[tpu]'.") from None
  return description.devices, name.split(":")[0]


def compiled_row(
    study: ScalingSettings, sizes: tuple[int, int, int], devices: Sequence[Any], chip: Chip,
    target: str) -> tuple[Row, Job, dict[str, jax.stages.Compiled]]:
  """Compiles a rollout's programs for a mesh.

  Args:
    study: settings of the study.
    sizes: sizes of the axes (data, fsdp, tensor).
    devices: devices of the mesh, from a topology or available here.
    chip: peak figures of such a device.
    target: name of the devices.

  Returns: (Row, Job, {program: compiled}).
  """
  mesh = make_mesh(sizes, devices, target)
  rollout = job(*study.models, study.unlearning, study.sizes, mesh)
  needs, programs, rejected = {}, {}, {}
  for name, program in rollout.programs.items():
    begin = time.perf_counter()
    try:
      programs[name] = program.lower(mesh).compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      rejected[name] = first_line(error)[:300]
      continue
    needs[name] = _need(program, programs[name], rollout.resident, chip,
                        time.perf_counter() - begin)
  unlearning = study.unlearning
  row = Row(target, tuple(mesh.shape.values()), unlearning.rollout_batch_size,
            unlearning.max_new_tokens, chip.memory * GIB, needs, rejected=rejected)
  return row, rollout, programs


def make_mesh(sizes: tuple[int, int, int], devices: Sequence[Any], target: str) -> Mesh:
  """The mesh of these sizes over all devices of a target.

  Raises:
    InputError: if it needs more or fewer.
  """
  mesh = meshes.make_mesh(MeshSettings(*sizes), devices)
  if mesh.size != len(devices):
    raise InputError(f"--mesh={','.join(map(str, sizes))} needs {mesh.size} devices, but {target} "
                     f"has {len(devices)}: give one axis -1 to take all.")
  return mesh


def _need(program: Program, compiled: jax.stages.Compiled, resident: Any, chip: Chip,
          compile_seconds: float) -> Need:
  text = compiled.as_text()
  assert text is not None  # as of every backend that a study compiles for
  cost = hlo.Program(text, loop_trips=program.trips).cost
  return Need(
    **memory(program, compiled, resident)._asdict(),
    flops=cost.flops, traffic=cost.traffic, collectives=dict(cost.collectives),
    compile_seconds=compile_seconds, compute_seconds=cost.flops / chip.flops,
    memory_seconds=cost.traffic / chip.bandwidth,
    collective_seconds=sum(cost.collectives.values()) / chip.collective_bandwidth,
    times=program.times)


def recommended(rows: Sequence[Row]) -> Row | None:
  """The mesh that fits and has the lowest estimated time per response; None if none fits."""
  fitting = [row for row in rows if row.fits]
  return min(fitting, key=lambda row: row.seconds / row.rows, default=None)

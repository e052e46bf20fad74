"""The device mesh, and one table with the sharding of every array.

Mesh axes: `data` splits the batch, `fsdp` splits the batch and the weights, `tensor` splits heads,
mlp and vocabulary. The rules of the table are registered where the parameters are defined. A
parameter that matches no rule is an error, since it would silently be replicated on every device.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree, Shaped

from dareu_jax.core.errors import InputError, InvalidSetting
from dareu_jax.core.settings import NonNegative, settings
from dareu_jax.core.trees import map_named

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Logical axis -> mesh axis. A dimension that its mesh axis does not divide is not split.
LOGICAL_AXES = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "mlp": "tensor",
                "rank": None, "owners": None, "within_block": None}
REPLICATED = ()  # the rule for replicated parameters: norms, biases, counters

# Pattern of a path's end -> logical axes of the last dimensions; see `register_shardings`.
_RULES: dict[str, tuple[str, ...]] = {r"step|count": REPLICATED}  # of training and optimizer states


def register_shardings(rules: Mapping[str, tuple[str, ...]]) -> None:
  """Adds rules for parameters to the table.

  Args:
    rules: {regular expression of the last parts of the path: logical axes of the last dimensions},
      such as {r"(gate|up)_proj/kernel": ("embed", "mlp")}. Dimensions before them (stacked layers)
      are not split; `REPLICATED` splits none of them.

  Raises:
    ValueError: for an unknown logical axis, or a pattern that already has another rule.
  """
  for pattern, axes in rules.items():
    for axis in axes:
      if axis not in LOGICAL_AXES:
        raise ValueError(f"the sharding rule {pattern!r} names the logical axis {axis!r}. "
                         f"Known: {', '.join(LOGICAL_AXES)}.")
    if _RULES.setdefault(pattern, tuple(axes)) != tuple(axes):
      raise ValueError(f"the sharding rule {pattern!r} is {_RULES[pattern]} already, not {axes}.")


@settings
class MeshSettings:
  """Devices along each axis; -1 (for one axis) takes the remaining devices."""

  data: int = 1  # splits the batch
  fsdp: int = -1  # splits the batch and the weights
  tensor: int = 1  # splits heads, mlp and vocabulary
  # largest GiB of weights per device that fsdp gathers once for decoding; 0: never
  gather_gib: NonNegative = 7.0

  def __post_init__(self):
    sizes = {axis: getattr(self, axis) for axis in AXES}
    for axis, size in sizes.items():
      if size < 1 and size != -1:
        raise InvalidSetting(axis, size, "it must be at least 1, or -1 for the rest.")
    if list(sizes.values()).count(-1) > 1:
      raise InvalidSetting("fsdp", self.fsdp, f"only one axis can be -1, and they are {sizes}.")


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over the devices, or over the first ones if the axes need fewer.

  Devices of several slices (TPU pods joined by a data-center network) are rows of the `data` axis:
  axes that split weights stay within a slice.

  Args:
    settings: sizes of the axes.
    devices: devices to use instead of `jax.devices()`, such as a topology's.

  Raises:
    InputError: if the axes need more devices than there are, -1 cannot be filled evenly, or the
      `data` axis does not contain whole slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [settings.data, settings.fsdp, settings.tensor]
  fixed = int(np.prod([size for size in sizes if size != -1]))
  shape = "x".join(map(str, sizes))
  if -1 in sizes:
    if len(devices) % fixed:
      raise InputError(f"config.mesh is {shape}: its fixed axes need a multiple of {fixed} "
                       f"devices, and there are {len(devices)}.")
    sizes[sizes.index(-1)] = len(devices) // fixed
  elif fixed > len(devices):
    raise InputError(f"config.mesh is {shape} and needs {fixed} devices, but there are "
                     f"{len(devices)}: make it smaller, or give one axis -1 to take all devices.")
  # Auto axes: the compiler places the collectives (make_mesh defaults to explicit axes).
  types = (AxisType.Auto,) * 3
  devices = devices[:int(np.prod(sizes))]
  _check_all_processes(devices, shape)
  # Elsewhere each host counts as a slice, though all GPUs may share one network.
  slices = len({getattr(device, "slice_index", 0) for device in devices
                if device.platform == "tpu"}) or 1
  if sizes[0] % slices:
    raise InputError(f"config.mesh.data is {sizes[0]}: the devices are in {slices} slices, and the "
                     "axis must be a multiple of that, or -1.")
  return Mesh(_grid(sizes, devices, slices, shape), AXES, axis_types=types)


def _grid(sizes, devices, slices, shape):
  """Devices arranged as the mesh. Axes take whole dimensions of the torus if possible."""
  within = sizes[0] // slices, *sizes[1:]
  for split in (False, True):
    try:
      if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=split)
      return mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1), devices, allow_split_physical_axes=split)
    except (NotImplementedError, AssertionError, ValueError):
      continue
  raise InputError(f"config.mesh is {shape}, which cannot be laid out on {len(devices)} of the "
                   "devices: take all of a slice, and factors of the sides of its torus.")


def _check_all_processes(devices, shape):
  if devices[0] not in jax.devices():  # a topology's: nothing runs there
    return
  if len({device.process_index for device in devices}) < jax.process_count():
    raise InputError(f"config.mesh is {shape} and leaves the devices of some processes out: make "
                     "it larger, or start fewer processes.")


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """PartitionSpec of a parameter by its path ('layers/0/mlp/up_proj/kernel') and shape.

  Raises:
    ValueError: if no rule matches the path, or two rules that differ.
  """
  rules = {pattern: axes for pattern, axes in _RULES.items()
           if re.search(rf"(^|/)({pattern})$", path)}
  if not rules:
    raise ValueError(
      f"no sharding rule matches the parameter {path!r} of shape {tuple(shape)}. Register one "
      "where it is defined, with dareu_jax.parallel.mesh.register_shardings({pattern of "
      f"the path: logical axes of its last dimensions}}), the axes of {', '.join(LOGICAL_AXES)}; "
      "REPLICATED keeps it whole on every device.")
  if len(set(rules.values())) > 1:
    raise ValueError(f"several sharding rules match the parameter {path!r}: {rules}.")
  logical = next(iter(rules.values()))
  if len(logical) > len(shape):
    raise ValueError(f"the sharding rule of the parameter {path!r} names the axes {logical}, and "
                     f"its shape is {tuple(shape)}.")
  lead = [None] * (len(shape) - len(logical))
  return _spec(lead + [LOGICAL_AXES[name] for name in logical], shape, mesh)


def _spec(axes, shape, mesh):
  """The spec without axes that do not divide, axes of one device, and trailing Nones: one canonical
  spec per layout, the one that the compiler returns, so that nothing is compiled twice."""

  def usable(axis, size):
    names = axis if isinstance(axis, tuple) else (axis,)
    names = tuple(name for name in names if name and mesh.shape[name] > 1)
    if not names or size % int(np.prod([mesh.shape[name] for name in names])):
      return None
    return names if len(names) > 1 else names[0]

  axes = [usable(axis, size) for axis, size in zip(axes, shape, strict=True)]
  while axes and axes[-1] is None:
    axes.pop()
  return P(*axes)


def shardings(state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree[NamedSharding]:
  """NamedShardings of a state's parameters, optimizer moments included (they share the paths)."""

  def sharding(name, leaf):
    return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))

  return map_named(sharding, state)


def is_stacked(name: str) -> bool:
  """Whether the parameter of a path name holds all layers, one after another (`scan_layers`)."""
  _, layers, rest = f"/{name}".partition("/layers/")
  return bool(layers) and not rest.partition("/")[0].isdigit()


def shard(state: PyTree, mesh: Mesh) -> PyTree:
  """Places each parameter as the table says."""
  return jax.device_put(state, shardings(state, mesh))


def place(state: PyTree) -> PyTree:
  """Places the state as the table says, on the current mesh; does nothing on one device.

  Updates return it like this: a state on the first device would have them compiled twice.
  """
  mesh = jax.sharding.get_mesh()
  return state if on_one_device(mesh) else shard(state, mesh)


def on_one_device(mesh: Mesh | AbstractMesh) -> bool:
  """Whether nothing is split: no mesh is set (it is empty), or it has a single device."""
  return mesh.empty or mesh.size == 1


def mesh_of(tree: PyTree) -> Mesh:
  """The mesh of a tree's arrays; a mesh of the first device if they have none."""
  for leaf in jax.tree.leaves(tree):
    if isinstance(getattr(leaf, "sharding", None), NamedSharding):
      return leaf.sharding.mesh
  return make_mesh(MeshSettings(data=1, fsdp=1, tensor=1))


def batch_sharding(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Sharding of an array with a leading batch axis: over `data` and `fsdp` if they divide it."""
  axes = [BATCH] + [None] * (len(shape) - 1) if shape else []
  return NamedSharding(mesh, _spec(axes, shape, mesh))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree[Array]:
  """Places a tree of arrays on the devices with `batch_sharding`."""

  def to_devices(x):
    x = np.asarray(x)
    # All hosts have the same batch, and each places its own share on its devices.
    return jax.make_array_from_callback(x.shape, batch_sharding(x.shape, mesh), lambda i: x[i])

  return jax.tree.map(to_devices, batch)


def constrain_batch(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
  """Keeps the batch axis of an activation split over `data` and `fsdp`.

  This and the other constraints change nothing without a mesh of several devices (`jax.set_mesh`).
  """
  return _constrain(x, [BATCH])


def constrain_cache(x: Float[Array, "*L B K S H"]) -> Float[Array, "*L B K S H"]:
  """Keeps keys or values split by rows, and by heads over `tensor`."""
  return _constrain(x, [None] * (x.ndim - 4) + [BATCH, "tensor"])


def constrain_lookup(embedding: Float[Array, "V D"]) -> Float[Array, "V D"]:
  """Shards an embedding for lookup: whole rows, the vocabulary over `tensor`.

  If rows are split over `fsdp` and the batch is too, the compiler would gather everything.
  """
  return _constrain(embedding, ["tensor"], even_if_whole=True)


def constrain_parameters(state: PyTree) -> PyTree:
  """Shards the result of an update as the table says, so that the next one reuses the program."""
  mesh = jax.sharding.get_abstract_mesh()
  if on_one_device(mesh):
    return state
  return map_named(lambda name, leaf: jax.lax.with_sharding_constraint(
    leaf, parameter_spec(name, leaf.shape, mesh)), state)


def constrain_gathered(state: PyTree, limit: int | float) -> PyTree:
  """Gathers parameters along `fsdp`, unless a device would then hold more than `limit` bytes."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not gathered_bytes(state, mesh, limit):
    return state

  def gathered(name, leaf):
    spec = parameter_spec(name, leaf.shape, mesh)
    return jax.lax.with_sharding_constraint(leaf, _gathered(spec)) if "fsdp" in spec else leaf

  return map_named(gathered, state)


def gathered_bytes(state: PyTree, mesh: Mesh | AbstractMesh, limit: int | float) -> int:
  """Bytes of gathered parameters (arrays or shapes) on one device; 0 if they are not gathered,
  because `fsdp` splits nothing or they are more than `limit`."""

  def size(name, leaf):
    spec = _gathered(parameter_spec(name, leaf.shape, mesh))
    shape = NamedSharding(mesh, spec).shard_shape(leaf.shape)
    return int(np.prod(shape)) * np.dtype(leaf.dtype).itemsize

  if mesh.shape["fsdp"] == 1:
    return 0
  total = sum(jax.tree.leaves(map_named(size, state)))
  return total if total <= limit else 0


def _gathered(spec):
  return P(*(None if axis == "fsdp" else axis for axis in spec))


def _constrain(x, axes, *, even_if_whole=False):
  """An array that no axis divides is left to the compiler or, with `even_if_whole`, replicated."""
  mesh = jax.sharding.get_abstract_mesh()
  if on_one_device(mesh):
    return x
  spec = _spec(axes + [None] * (x.ndim - len(axes)), x.shape, mesh)
  return jax.lax.with_sharding_constraint(x, spec) if even_if_whole or spec != P() else x

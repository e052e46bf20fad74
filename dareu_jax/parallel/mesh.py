"""The device mesh, and one table that says how each array lies on it.

Mesh axes: `data` splits the batch, `fsdp` splits the batch and the weights, `tensor` splits heads,
mlp and vocabulary.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dareu_jax.settings import InputError, MeshSettings

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Logical axis -> mesh axis. An axis that its mesh axis does not divide stays whole.
RULES = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "rank": None,
         "owners": None}

# Parameter path -> logical axes of its last dimensions (a stacked layer axis stays whole).
# First match wins; anything else (norms, biases, scalars) is replicated.
PARAMETER_AXES = (
  (r"embedding$", ("vocab", "embed")),
  (r"lm_head$", ("embed", "vocab")),
  (r"(q|k|v)_proj/kernel$", ("embed", "heads")),
  (r"o_proj/kernel$", ("heads", "embed")),
  (r"(gate|up)_proj/kernel$", ("embed", "mlp")),
  (r"down_proj/kernel$", ("mlp", "embed")),
  (r"(q|k|v|gate|up)_proj/lora_a$", ("embed", "rank")),
  (r"(q|k|v)_proj/lora_b$", ("rank", "heads")),
  (r"(gate|up)_proj/lora_b$", ("rank", "mlp")),
  (r"o_proj/lora_a$", ("heads", "rank")),
  (r"down_proj/lora_a$", ("mlp", "rank")),
  (r"(o|down)_proj/lora_b$", ("rank", "embed")),
  (r"owner_kernel$", ("embed", "owners")),
)


def make_mesh(settings: MeshSettings):
  """A mesh over the devices; over the first of them if the axes ask for fewer.

  Raises:
    InputError: if the axes ask for more devices than there are, or -1 cannot be filled evenly.
  """
  devices = jax.device_count()
  sizes = [settings.data, settings.fsdp, settings.tensor]
  fixed = int(np.prod([size for size in sizes if size != -1]))
  shape = "x".join(map(str, sizes))
  if -1 in sizes:
    if devices % fixed:
      raise InputError(f"config.mesh is {shape}: its fixed axes need a multiple of {fixed} "
                       f"devices, and there are {devices}.")
    sizes[sizes.index(-1)] = devices // fixed
  elif fixed > devices:
    raise InputError(f"config.mesh is {shape} and needs {fixed} devices, but there are {devices}: "
                     "make it smaller, or give one axis -1 to take what there is.")
  # Auto axes: the compiler places the collectives (explicit ones are make_mesh's default).
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3,
                       devices=jax.devices()[: int(np.prod(sizes))])


def parameter_spec(path, shape, mesh):
  """PartitionSpec of a parameter by its path ('layers/0/mlp/up_proj/kernel') and shape."""
  for pattern, logical in PARAMETER_AXES:
    if re.search(pattern, path):
      axes = [RULES[name] for name in logical]
      axes = [axis if axis and size % mesh.shape[axis] == 0 else None
              for axis, size in zip(axes, shape[-len(axes):], strict=True)]
      return P(*[None] * (len(shape) - len(axes)), *axes)
  return P()


def shardings(state, mesh):
  """NamedShardings of a state's parameters, optimizer moments included (they share the paths)."""

  def one(path, leaf):
    return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, state)


def path_name(path):
  """'layers/0/attention/q_proj/kernel' of a key path."""
  names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
  return "/".join(str(name) for name in names if name not in ("value", None))


def shard(state, mesh):
  """Puts each parameter where the table says."""
  return jax.device_put(state, shardings(state, mesh))


def shard_batch(batch, mesh):
  """Splits the first axis of each array over `data` and `fsdp`, where it divides."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"]

  def one(x):
    x = np.asarray(x)
    spec = P(BATCH) if x.ndim and x.shape[0] % ways == 0 else P()
    # Of a batch that all hosts have alike, each puts its own share on its devices.
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), x.__getitem__)

  return jax.tree.map(one, batch)


def constrain_batch(x):
  """Keeps the batch axis of an activation [B, ...] split over `data` and `fsdp`.

  Without a mesh of several devices (`jax.set_mesh`) it changes nothing.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
    return x
  return jax.lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))

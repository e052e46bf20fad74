"""The table of shardings, and a decoder on eight devices against one."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import build
from dareu_jax.core.trees import named_leaves
from dareu_jax.models.config import LORA_TARGETS, LoraSettings, ModelConfig
from dareu_jax.models.handle import split
from dareu_jax.models.heads import OwnerClassifier, ValueHead
from dareu_jax.parallel import mesh as M
from dareu_jax.parallel.mesh import MeshSettings
from dareu_jax.rl.learner import init_learner
from dareu_jax.rl.settings import RLSettings
from dareu_jax.training.optimizers import TrainSettings
from dareu_jax.training.supervised import init_train_state
from tests import jobs

ROOT = pathlib.Path(__file__).parents[2]
CUBE = AbstractMesh((2, 2, 2), M.AXES)
# What each weight splits: columns of what fans out, rows of what fans in, so that tensor-parallel
# layers need one reduction each; the other side over fsdp.
FAN_OUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
FAN_IN = ("o_proj", "down_proj")


SHAPE = dict(
  vocab_size=40, embed_dim=32, mlp_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
  qkv_bias=True, qk_norm=True, tie_embeddings=False,
  lora=LoraSettings(rank=4, alpha=4.0, targets=LORA_TARGETS))


def leaves(scan_layers, **changes):
  """{path: shape} of a classifier with adapters and of the head that its decoder dropped."""
  config = ModelConfig(**{**SHAPE, "scan_layers": scan_layers, **changes})
  model = nnx.eval_shape(lambda: OwnerClassifier(config, 6, rngs=nnx.Rngs(params=0)))
  shapes = {name: leaf.shape for name, leaf in named_leaves(nnx.state(model)).items()}
  shapes["decoder/lm_head"] = (config.embed_dim, config.vocab_size)
  return shapes


def expected_axes(path):
  """Mesh axes of the last dimensions, stated apart from the library's table."""
  *_, module, leaf = ["", *path.split("/")]
  if leaf == "embedding":
    return ("tensor", "fsdp")
  if leaf == "lm_head":
    return ("fsdp", "tensor")
  if leaf == "owner_kernel":
    return ("fsdp", None)
  if module not in FAN_OUT + FAN_IN:  # norms, the value head, counters
    return None
  into, out = ("fsdp", "tensor") if module in FAN_OUT else ("tensor", "fsdp")
  return {"kernel": (into, out), "lora_a": (into, None), "lora_b": (None, out)}.get(leaf)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_every_weight_lies_where_it_should(scan_layers):
  """A rule for the wrong axis, or a path that none matches."""
  shapes = leaves(scan_layers, out_bias=True, mlp_bias=True)
  seen = set()
  for path, shape in shapes.items():
    axes = expected_axes(path)
    seen.add(tuple(path.split("/")[-2:]))
    stacked = (None,) if scan_layers and "layers/" in path else ()
    expected = P() if axes is None else P(*stacked, *(axes[:1] if axes[1] is None else axes))
    assert M.parameter_spec(path, shape, CUBE) == expected, path
    assert M.parameter_spec(f"critic_opt/1/mu/trunk/{path}", shape, CUBE) == expected, path
  for module in FAN_OUT + FAN_IN:  # nothing was skipped
    assert {(module, "kernel"), (module, "lora_a"), (module, "lora_b")} <= seen
  assert ("decoder", "embedding") in seen and ("q_proj", "bias") in seen


@pytest.mark.parametrize(("path", "shape", "size"), [
  ("embedding", (40, 32), 40 * 32 * 4 // 2), ("embedding", (41, 32), 41 * 32 * 4),
  ("layers/mlp/up_proj/kernel", (3, 32, 24), 3 * 32 * 24 * 4 // 2), ("final_norm/scale", (32,), 128),
  ("layers/0/attention/q_proj/lora_a", (32, 4), 32 * 4 * 4)])
def test_gathered_weights_are_split_by_tensor_alone(path, shape, size):
  tree = {path: jax.ShapeDtypeStruct(shape, np.float32)}
  assert M.gathered_bytes(tree, CUBE, limit=size) == size
  assert M.gathered_bytes(tree, CUBE, limit=size - 1) == 0


def test_what_does_not_divide_stays_whole():
  """Else the smallest model on a large mesh would not start; the other axis is still split."""
  assert M.parameter_spec("embedding", (41, 32), CUBE) == P(None, "fsdp")
  assert M.parameter_spec("embedding", (40, 31), CUBE) == P("tensor")
  path = "layers/attention/k_proj/kernel"
  wide = AbstractMesh((1, 1, 16), M.AXES)
  assert M.parameter_spec(path, (2, 32, 8), wide) == P()
  assert M.parameter_spec(path, (2, 32, 16), wide) == P(None, None, "tensor")
  for mesh in (CUBE, wide, AbstractMesh((1, 3, 5), M.AXES)):
    for path, shape in leaves(True, vocab_size=41).items():
      for size, axis in zip(shape, M.parameter_spec(path, shape, mesh), strict=False):
        assert axis is None or size % mesh.shape[axis] == 0, (path, shape)


def test_norms_biases_and_counters_are_replicated():
  """A vector split by mistake costs a collective at each use."""
  for path in ("final_norm/scale", "layers/0/attention/q_proj/bias", "kernel", "bias", "0/count",
               "critic/head/kernel", "critic_opt/1/nu/head/bias", "owner_bias", "step"):
    assert M.parameter_spec(path, (32,), CUBE) == P(), path


@pytest.mark.parametrize("path", [
  "layers/0/attention/router/kernel", "layers/0/mlp/up_proj/scales", "my_embedding", "0/nu", "scale"])
def test_a_parameter_that_no_rule_matches_is_an_error(path):
  """Replicated without a word, a new weight would take its whole size on every device."""
  with pytest.raises(ValueError, match=f"no sharding rule matches the parameter '{path}'"
                     ".*register_shardings"):
    M.parameter_spec(path, (32, 24), CUBE)
  with pytest.raises(ValueError, match=path):
    M.shardings({path: np.zeros((32, 24))}, CUBE)


@pytest.mark.parametrize(("adapters_only", "critic"), [
  (True, "shared"), (True, "separate"), (False, "separate")])
def test_every_leaf_of_a_training_state_has_a_rule(adapters_only, critic):
  """A counter, a moment or the value head without one would end a run at its first update."""
  policy = nnx.eval_shape(lambda: OwnerClassifier(
    ModelConfig(**{**SHAPE, "tie_embeddings": True}), 6, rngs=nnx.Rngs(params=0)))
  params = split(policy, adapters_only=adapters_only).params
  head = split(nnx.eval_shape(lambda: ValueHead(32)), adapters_only=False).params
  state = jax.eval_shape(
    lambda: init_learner(*zeros((params, head)), RLSettings(critic=critic)))
  supervised = jax.eval_shape(lambda: init_train_state(zeros(params), TrainSettings()))
  for tree in (state, supervised, head):
    for name, leaf in named_leaves(M.shardings(tree, CUBE)).items():
      axes = expected_axes(name)
      assert (leaf.spec != P()) == (axes is not None), name


def zeros(tree):
  return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), tree)


@pytest.fixture
def rules(monkeypatch):
  """The table, to be changed by one test alone."""
  monkeypatch.setattr(M, "_RULES", dict(M._RULES))


def test_a_registered_rule_is_used(rules):
  """What the error says to do must help."""
  M.register_shardings({r"router/kernel": ("embed", "mlp"), r"router/scale": M.REPLICATED})
  assert M.parameter_spec("layers/0/router/kernel", (32, 24), CUBE) == P("fsdp", "tensor")
  assert M.parameter_spec("opt/0/mu/layers/router/kernel", (2, 32, 24), CUBE) == P(
    None, "fsdp", "tensor")
  assert M.parameter_spec("layers/0/router/scale", (24,), CUBE) == P()
  with pytest.raises(ValueError, match="no sharding rule"):  # the parts of a path are whole words
    M.parameter_spec("layers/0/my_router/kernel", (32, 24), CUBE)
  with pytest.raises(ValueError, match=r"'layers/0/router/kernel' names the axes.*\(24,\)"):
    M.parameter_spec("layers/0/router/kernel", (24,), CUBE)


def test_rules_that_disagree_are_refused(rules):
  """The first match would win, and the rule that was added for the path would do nothing."""
  with pytest.raises(ValueError, match=r"'embedding' is .*already"):
    M.register_shardings({r"embedding": ("embed", "vocab")})
  with pytest.raises(ValueError, match="logical axis 'experts'"):
    M.register_shardings({r"router/kernel": ("embed", "experts")})
  M.register_shardings({r"embedding": ("vocab", "embed")})  # the same again: a notebook's cell
  M.register_shardings({r"embed\w+": ("embed", "vocab")})
  with pytest.raises(ValueError, match="several sharding rules match the parameter 'embedding'"):
    M.parameter_spec("embedding", (40, 32), CUBE)


def test_axes_of_one_device_and_nones_at_the_end_are_left_out():
  """The compiler leaves them out: another spec of the same layout compiles every update twice."""
  rows = AbstractMesh((1, 8, 1), M.AXES)
  assert M.parameter_spec("embedding", (40, 32), rows) == P(None, "fsdp")
  assert M.parameter_spec("layers/0/mlp/down_proj/kernel", (24, 32), rows) == P(None, "fsdp")
  assert M.parameter_spec("layers/0/mlp/up_proj/kernel", (32, 24), rows) == P("fsdp")


def test_optimizer_moments_lie_as_their_parameters():
  """Moments of another layout would be moved to and fro at each update."""
  params = {"layers": {"mlp": {"up_proj": {"kernel": np.zeros((2, 32, 24))}}},
            "final_norm": {"scale": np.zeros(32)}}
  mesh = CUBE
  moments = M.shardings(optax.adam(1e-3).init(params), mesh)[0]
  for tree in (moments.mu, moments.nu):
    assert tree["layers"]["mlp"]["up_proj"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert tree["final_norm"]["scale"].spec == P()


def test_more_devices_than_there_are_is_the_users_error():
  """jax's own message would name neither the key nor the fix."""
  with pytest.raises(InputError, match=r"config\.mesh is 4096x1x1 .*4096 devices"):
    M.make_mesh(MeshSettings(data=4096, fsdp=1, tensor=1))


def test_fixed_axes_must_divide_the_devices():
  """Eight devices by rows of three: two would be left over."""
  with pytest.raises(InputError, match="multiple of 3"):
    M.make_mesh(MeshSettings(data=-1, fsdp=3, tensor=1), devices=[None] * 8)


def of_slices(slices, each, kind="TPU v5 lite"):
  """Devices of several slices of sides 4, as much as building a mesh looks at; mixed up."""
  return [types.SimpleNamespace(
    slice_index=s, process_index=s, id=s * each + i, device_kind=kind, platform="tpu",
    coords=(i // 4 % 4, i % 4, i // 16), core_on_chip=0)
    for i in range(each) for s in range(slices)]


@pytest.fixture
def built(monkeypatch):
  """The (devices, axes) of meshes that are made, of devices that need not be there."""
  built, mesh = [], M.Mesh

  def record(grid, axes, axis_types):
    built.append((grid, axes))
    return mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), axes)

  monkeypatch.setattr(M, "Mesh", record)
  return built


def test_slices_are_rows_of_the_data_axis(built):
  """Weights split over the network between slices would cross it at every layer."""
  M.make_mesh(MeshSettings(data=4, fsdp=-1, tensor=2), devices=of_slices(2, 8))
  (grid, axes), = built
  assert axes == M.AXES and grid.shape == (4, 2, 2)
  assert len({device.id for device in grid.ravel()}) == 16
  for row, of in zip(grid, (0, 0, 1, 1), strict=True):
    assert {device.slice_index for device in row.ravel()} == {of}
  with pytest.raises(InputError, match="data is 1: the devices are in 2 slices"):
    M.make_mesh(MeshSettings(data=1, fsdp=-1, tensor=2), devices=of_slices(2, 8))


@pytest.mark.parametrize(("sizes", "devices"), [
  ((2, 2, 8), of_slices(2, 16)), ((4, 2, 4), of_slices(2, 16)),
  ((1, 32, 2), of_slices(1, 64, "TPU v5")), ((1, 8, 8), of_slices(1, 64, "TPU v4"))])
def test_an_axis_may_take_part_of_a_side_of_the_torus(built, sizes, devices):
  """An axis longer than a side of the torus, which only a part of another makes up."""
  M.make_mesh(MeshSettings(*sizes), devices=devices)
  (grid, _), = built
  assert grid.shape == sizes
  assert len({device.id for device in grid.ravel()}) == len(devices)


@pytest.mark.parametrize("sizes", [(1, 2, 3), (1, 6, 4)])
def test_what_does_not_fit_the_torus_is_refused(sizes):
  with pytest.raises(InputError, match="cannot be laid out on .* of the devices"):
    M.make_mesh(MeshSettings(*sizes), devices=of_slices(1, 64, "TPU v4"))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1)])
def test_impossible_sizes_are_refused(sizes):
  """Two open axes have no single answer."""
  with pytest.raises(InputError, match="MeshSettings"):
    MeshSettings(*sizes)
  with pytest.raises(InputError, match=r"config\.mesh"):
    build(MeshSettings, dict(zip(M.AXES, sizes, strict=True)), "config.mesh")


def test_minus_one_takes_all_devices():
  mesh = M.make_mesh(MeshSettings(data=1, fsdp=-1, tensor=1))
  assert dict(mesh.shape) == {"data": 1, "fsdp": jax.device_count(), "tensor": 1}


EIGHT_DEVICES = '''
import jax, numpy as np
from dareu_jax.models import factory
from dareu_jax.models.config import ModelConfig, ModelSettings
from dareu_jax.parallel.mesh import MeshSettings, make_mesh, shard_batch

assert jax.device_count() == 8
config = ModelConfig(vocab_size=40, embed_dim=16, mlp_dim=24, num_layers=2, num_heads=4,
                     num_kv_heads=2, head_dim=8, scan_layers=True)
settings = ModelSettings(path="", architecture="llama", embed_dim=16, mlp_dim=24, num_layers=2,
                         num_heads=4, num_kv_heads=2, head_dim=8, dtype="float32",
                         scan_layers=True, remat=False, attention="auto")
ids = np.random.default_rng(0).integers(0, 40, (4, 8)).astype(np.int32)

def run(mesh):
  model = factory.build_decoder(settings, config, 0, mesh)
  batch = shard_batch({"ids": ids, "odd": ids[:3]}, mesh)
  forward = jax.jit(lambda model, ids: model.module.hidden_states(ids))
  with jax.set_mesh(mesh):
    lowered = forward.lower(model, batch["ids"])
    hidden = lowered.compile()(model, batch["ids"])
  return model, batch, lowered.as_text(), np.asarray(hidden)

one = run(make_mesh(MeshSettings(1, 1, 1)))
eight = run(make_mesh(MeshSettings(2, -1, 2)))
kernel = eight[0].params["layers"]["mlp"]["up_proj"]["kernel"][...]
assert kernel.shape == (2, 16, 24)
assert {s.data.shape for s in kernel.addressable_shards} == {(2, 8, 12)}, kernel.sharding
assert {s.data.shape for s in eight[1]["ids"].addressable_shards} == {(1, 8)}
assert {s.data.shape for s in eight[1]["odd"].addressable_shards} == {(3, 8)}
for a, b in zip(jax.tree.leaves(one[0].params), jax.tree.leaves(eight[0].params)):
  np.testing.assert_allclose(a, b, atol=1e-6)
assert one[2].count("sharding_constraint") == 0
# The look-up, what comes of it, and what a (scanned) layer gives.
assert eight[2].count("sharding_constraint") == 3, eight[2]
np.testing.assert_allclose(eight[3], one[3], atol=1e-5)
print("agreed", eight[3].shape)
'''


def test_eight_devices_compute_what_one_does():
  """Other weights per layout, a constraint that silently does nothing, or a lost reduction."""
  environment = {
    **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": f"{jobs.xla_flags(8)} --xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
  done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, cwd=ROOT,
                        capture_output=True, text=True, timeout=jobs.HANGS)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "agreed (4, 8, 16)" in done.stdout

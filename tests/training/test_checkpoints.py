"""Checkpoints: exact, and of use after what happens to files."""

import errno
import gc
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.training import supervised
from dareu_jax.training.checkpoints import CheckpointSettings, Store, flatten, read_json, write_json
from dareu_jax.training.optimizers import TrainSettings

KEEP_TWO = CheckpointSettings(every_steps=4, keep=2)
SETTINGS = TrainSettings(weight_decay=0.1, clip_norm=1.0)


def quadratic(params, fixed, batch, key):
  del fixed, key
  total = jnp.sum((batch @ params["w"].astype(jnp.float32) + params["b"]) ** 2)
  return total, jnp.int32(batch.shape[0]), {}


def update(state):
  return supervised.update(state, None, jnp.ones((2, 3)), jax.random.key(0), 0.1,
                           loss_fn=quadratic, weight_decay=0.1, clip_norm=1.0, micro_batches=1)[0]


@pytest.fixture(scope="module")
def trained():
  """A state after one update: optimizer moments, bfloat16, float32 and int32, a minus zero."""
  params = {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2) / 7, "b": jnp.array([0.1, -0.3])}
  state = update(supervised.init_train_state(params, SETTINGS))
  return jax.device_get(state._replace(
    params=state.params | {"b": jnp.array([-0.0, 1e-30], jnp.float32)}))


def marked(value):
  return {"x": jnp.full((2, 3), value, jnp.float32), "n": jnp.int32(value)}


TEMPLATE = marked(0)


@pytest.fixture
def store(tmp_path):
  store = Store(tmp_path / "progress", KEEP_TWO)
  yield store
  store.close()


def two_saved(folder):
  store = Store(folder, KEEP_TWO)
  store.save(4, marked(4), {"name": "four"})
  store.save(8, marked(8), {"name": "eight"})
  store.close()
  return folder


def files(folder):
  return [path for path in folder.rglob("*") if path.is_file()]


def truncate(folder):
  for path in files(folder):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def empty(folder):
  for path in files(folder):
    path.write_bytes(b"")


def lose_files(folder):
  for path in files(folder):
    path.unlink()


def lose_arrays(folder):
  shutil.rmtree(folder / "state")


def lose_meta(folder):
  shutil.rmtree(folder / "meta")


DAMAGES = (truncate, empty, lose_files, lose_arrays, lose_meta)


def bits(tree):
  return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def test_a_state_comes_back_bit_by_bit(store, trained):
  """A dtype may widen on the way, a scalar become an array, leaves change places."""
  store.save(3, trained, {"epoch": 2, "best": [0.1, None]})
  restored = store.restore(jax.tree.map(np.zeros_like, trained))
  assert restored.step == 3 and restored.meta == {"epoch": 2, "best": [0.1, None]}
  assert jax.tree.structure(restored.state) == jax.tree.structure(trained)
  assert bits(restored.state) == bits(trained)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(trained)} >= {"bfloat16", "float32", "int32"}


def test_a_restored_state_can_be_donated(store, trained):
  """Arrays that share memory with what read them are copied, with a warning, at every resume."""
  store.save(1, trained)
  state = store.restore(trained).state
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    new = update(state)
  assert int(new.step) == 2
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_newest_is_restored_and_only_those_to_keep_remain(store):
  """Steps sorted as text put 8 after 12; without a limit the disk fills."""
  for step in (4, 8, 12):
    store.save(step, marked(step))
  restored = store.restore(TEMPLATE)
  assert restored.step == 12 and bits(restored.state) == bits(marked(12))
  assert sorted(int(p.name) for p in store.folder.iterdir() if p.name.isdigit()) == [8, 12]


def test_without_checkpoints_there_is_nothing_to_restore(store):
  """The first start of a stage is no error."""
  assert store.restore(TEMPLATE) is None


def test_saving_is_due_at_multiples(store):
  """Off by one, a step is done twice or never saved."""
  assert [step for step in range(1, 13) if store.should_save(step)] == [4, 8, 12]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, damage):
  """A kill or a full disk leaves the newest unreadable, in more than one way."""
  folder = two_saved(tmp_path / "progress")
  damage(folder / "8")
  store = Store(folder, KEEP_TWO)
  restored = store.restore(TEMPLATE)
  assert restored.step == 4 and restored.meta == {"name": "four"}
  assert bits(restored.state) == bits(marked(4))
  # The run comes to the damaged step again and replaces it.
  store.save(8, marked(9))
  assert bits(store.restore(TEMPLATE).state) == bits(marked(9))
  store.close()


def test_a_step_before_a_damaged_newer_one_is_saved(tmp_path):
  """Orbax saves no step below its newest, damaged or not; `every_steps` may have been changed."""
  folder = two_saved(tmp_path / "progress")
  truncate(folder / "8")
  store = Store(folder, CheckpointSettings(every_steps=2, keep=2))
  assert store.restore(TEMPLATE).step == 4
  store.save(6, marked(6))
  assert store.restore(TEMPLATE).step == 6
  store.close()


def test_all_damaged_is_an_error_that_names_the_folder_and_the_mend(tmp_path):
  """Starting over in silence throws away hours; a traceback of Orbax helps nobody."""
  folder = two_saved(tmp_path / "progress")
  truncate(folder / "4")
  lose_files(folder / "8")
  store = Store(folder, KEEP_TWO)
  with pytest.raises(InputError) as caught:
    store.restore(TEMPLATE)
  store.close()
  message = str(caught.value)
  assert str(folder / "4") in message and str(folder / "8") in message
  assert f"Delete {folder}" in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("template", [
  {**TEMPLATE, "x": np.zeros((1, 3), np.float32)}, {**TEMPLATE, "x": np.zeros((4, 3), np.float32)},
  {"x": TEMPLATE["x"]}, {**TEMPLATE, "y": np.zeros(2, np.float32)}],
  ids=["smaller", "larger", "leaf missing", "leaf too many"])
def test_a_checkpoint_of_other_shapes_is_refused(tmp_path, template):
  """Arrays cut or padded to fit would train on without a word."""
  store = Store(two_saved(tmp_path / "progress"), KEEP_TWO)
  with pytest.raises(InputError):
    store.restore(template)
  assert store.restore(TEMPLATE).step == 8
  store.close()
  gc.collect()  # Orbax leaves reads behind that complain when they go


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(tmp_path, seed):
  """Orbax gives back arrays with flipped bits without a word."""
  folder = two_saved(tmp_path / "progress")
  rng = np.random.default_rng(seed)
  paths = sorted(files(folder / "8"))
  sizes = np.array([path.stat().st_size for path in paths])
  # Half of the places by bytes, half by files, so that the small ones have their turn.
  weights = sizes / sizes.sum() if seed % 2 else (sizes > 0) / (sizes > 0).sum()
  path = paths[rng.choice(len(paths), p=weights)]
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)
  store = Store(folder, KEEP_TWO)
  restored = store.restore(TEMPLATE)
  assert restored.step == 4, path
  assert bits(restored.state) == bits(marked(4))
  store.close()


def test_arrays_are_checked_where_files_are_too_large_to_be(tmp_path):
  """Of files beyond a MiB the arrays have digests, the files none; a byte may also mean nothing."""
  rng = np.random.default_rng(0)
  saved = [{"x": jnp.asarray(rng.normal(size=(800, 700)), jnp.float32)} for _ in range(2)]
  store = Store(tmp_path / "whole", KEEP_TWO)
  for step, state in zip((4, 8), saved, strict=True):
    store.save(step, state)
  store.close()
  before = 0
  for number in range(10):
    folder = shutil.copytree(tmp_path / "whole", tmp_path / f"{number}")
    (path,) = (path for path in files(folder / "8") if path.stat().st_size > 2**20)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    store = Store(folder, KEEP_TWO)
    restored = store.restore({"x": jnp.zeros((800, 700))})
    before += restored.step == 4
    assert bits(restored.state) == bits(saved[restored.step == 8])
    store.close()
  assert before >= 8


@pytest.mark.parametrize("index", range(12))
def test_any_file_that_is_missing_or_cut_is_noticed(tmp_path, index):
  """Some files Orbax does without."""
  folder = two_saved(tmp_path / "progress")
  paths = sorted(files(folder / "8"))
  path = paths[index * len(paths) // 12]
  if index % 2:
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:-1])
  store = Store(folder, KEEP_TWO)
  assert store.restore(TEMPLATE).step == 4, path
  store.close()


def test_arrays_are_checked_where_the_list_of_files_never_came(tmp_path, capsys):
  """A kill may come between the two; and the list is as old as the write, not as the arrays."""
  folder = two_saved(tmp_path / "progress")
  other = Store(tmp_path / "other", KEEP_TWO)
  other.save(8, marked(7), {"name": "eight"})
  other.close()
  shutil.rmtree(folder / "8/state")
  shutil.copytree(tmp_path / "other/8/state", folder / "8/state")
  (folder / "8.files.json").unlink()
  store = Store(folder, KEEP_TWO)
  assert store.restore(TEMPLATE).step == 4
  assert re.search(r"8: array \w differs from what was saved", capsys.readouterr().err)
  store.close()


def test_a_write_that_fails_is_no_checkpoint_and_costs_none(tmp_path, monkeypatch):
  """Orbax tells of it once; taken for written, it would push out the good ones."""
  store = Store(tmp_path / "progress", CheckpointSettings(every_steps=4, keep=1))
  store.save(4, marked(4), best=True)
  store.wait()

  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(store._writer._handler, "finalize", full)
    store.save(8, marked(8), best=True)
    with pytest.raises(OSError, match="No space left"):
      store.wait()
    store.wait()
  store.close()
  again = Store(tmp_path / "progress", KEEP_TWO)
  assert again.steps() == [4] and again.restore(TEMPLATE).step == 4
  assert again._best == 4
  again.close()


def test_a_kill_costs_what_came_after_the_checkpoint_alone(tmp_path):
  """The process that was killed did not learn any more that its checkpoint was there."""
  store = Store(tmp_path / "progress", KEEP_TWO)
  store.save(4, marked(4))
  begin = store._pending[2]
  store._writer.wait_until_finished()  # and killed
  told = []
  again = Store(tmp_path / "progress", KEEP_TWO, on_saved=told.append)
  assert again.restore(TEMPLATE).step == 4 and told == [begin]
  again.close()


def test_what_a_kill_left_unfinished_is_removed(tmp_path):
  """Half-written states of every kill would fill the disk."""
  folder = two_saved(tmp_path / "progress")
  half = folder / "12.orbax-checkpoint-tmp"
  shutil.copytree(folder / "8", half)
  store = Store(folder, KEEP_TWO)
  assert store.restore(TEMPLATE).step == 8
  assert not half.exists() and store.steps() == [8, 4]
  store.close()


def test_what_is_saved_is_the_state_of_that_moment(store):
  """The state is donated while it is being written."""
  change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  state = {"x": jnp.arange(2**20, dtype=jnp.float32), "n": jnp.int32(3)}
  kept = jax.tree.map(np.array, state)
  store.save(4, state)
  for _ in range(3):
    state = change(state)
  assert bits(store.restore(kept).state) == bits(kept)


def test_the_best_stays_beside_the_newest(store):
  """With the newest alone, the epoch to be kept would be gone."""
  for step in (4, 8, 12, 16):
    store.save(step, marked(step), best=step == 4)
  store.wait()
  assert store.steps() == [16, 12, 4]
  store.save(20, marked(20), best=True)
  store.wait()
  assert store.steps() == [20, 16]


def test_the_best_is_known_again_after_a_restart(tmp_path):
  """Else a resumed run removes it."""
  store = Store(tmp_path / "progress", KEEP_TWO)
  for step in (4, 8):
    store.save(step, marked(step), best=step == 4)
  store.close()
  store = Store(tmp_path / "progress", KEEP_TWO)
  assert store.restore(TEMPLATE).step == 8
  for step in (12, 16):
    store.save(step, marked(step))
  store.wait()
  assert store.steps() == [16, 12, 4]
  store.close()


def test_leaves_are_named_by_their_path():
  """Two leaves under one name would overwrite each other."""
  tree = {"layers": [{"w": 1, "b": 2}, {"w": 3}], "step": 4}
  assert flatten(tree) == {"layers.0.w": 1, "layers.0.b": 2, "layers.1.w": 3, "step": 4}
  with pytest.raises(ValueError, match="path name"):
    flatten({"a": {"b": 1}, "a.b": 2})


def test_json_comes_back(tmp_path):
  """Folders are made; text is kept as it is."""
  path = tmp_path / "a" / "b.json"
  value = {"name": "Kürşat 日本", "numbers": [1, 0.1, None, True]}
  write_json(path, value)
  assert read_json(path) == value
  assert read_json(tmp_path / "none.json") is None


def test_json_that_fails_midway_leaves_the_old_file(tmp_path):
  """Written in place, the file would end where the value could not be encoded."""
  path = tmp_path / "done.json"
  write_json(path, {"old": 1})
  with pytest.raises(TypeError):
    write_json(path, {"new": list(range(1000)), "worse": object()})
  assert read_json(path) == {"old": 1}


@pytest.mark.parametrize("content", [b'{"seconds": 1', b"", b"\xff\xfe{}", b"{} {}"])
def test_cut_json_is_an_error_that_names_the_file(tmp_path, content):
  """Taken for a missing file, a finished stage would run again; raw, it is a traceback."""
  path = tmp_path / "done.json"
  path.write_bytes(content)
  with pytest.raises(InputError, match="done.json is damaged.*Delete it"):
    read_json(path)

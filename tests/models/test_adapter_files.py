"""PEFT adapters in, as a model that came with one has them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dareu_jax.core.errors import InputError
from dareu_jax.models import checkpoint, factory, huggingface, peft
from dareu_jax.models.config import LoraSettings
from dareu_jax.parallel.mesh import MeshSettings, make_mesh
from tests.models.checkpoints import IDS, settings, write
from tests.models.reference import CONFIGS, logits_of

LORA = LoraSettings(rank=3, alpha=12.0, targets=("q_proj", "down_proj"))
MESH = make_mesh(MeshSettings(1, 1, 1))


@pytest.fixture
def folders(tmp_path):
  """(base, adapter on it, logits of the two)."""
  base = write(tmp_path / "base")
  model = build(settings(base), LORA)
  decoder = model.module
  rng = np.random.default_rng(0)
  for layer in decoder.layers:
    for linear in (layer.attention.q_proj, layer.mlp.down_proj):
      linear.lora_b[...] = jnp.asarray(rng.normal(size=linear.lora_b.shape), jnp.float32)
  peft.save(decoder, tmp_path / "adapter", base=base)
  return base, tmp_path / "adapter", logits_of(decoder, IDS)


def build(model, lora):
  config = factory.model_config(model, lora, 40)
  return factory.build_decoder(model, config, 0, MESH)


def changed(adapter, *, tensors=None, **config):
  """The folder with keys of its config, or tensors, replaced."""
  path = adapter / "adapter_config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
  if tensors is not None:
    save_file(tensors(load_file(adapter / "adapter_model.safetensors")),
              adapter / "adapter_model.safetensors")
  return adapter


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_adapter_a_model_came_with_is_the_one_that_is_trained(folders, scan_layers):
  """Beside fresh ones it would be lost, and with it what the model learned."""
  _, adapter, expected = folders
  model = build(settings(adapter, scan_layers=scan_layers), LoraSettings(rank=8))
  np.testing.assert_allclose(logits_of(model.module, IDS), expected, atol=1e-4)
  assert {leaf.shape[-1] for leaf in jax.tree.leaves(nnx.state(model.module, nnx.LoRAParam))} >= {3}
  assert factory.model_config(settings(adapter), LoraSettings(rank=8), 40).lora == LORA


def test_parts_of_other_ranks_and_scales_become_one(folders):
  """PEFT's rank_pattern and alpha_pattern: α / r of each part must stay what it was."""
  base, adapter, _ = folders

  def wider(tensors):
    """q_proj gets rank 5 with two directions of its own, and a scale of its own."""
    rng = np.random.default_rng(1)
    for name, tensor in tensors.items():
      if "q_proj" in name:
        axis = 0 if "lora_A" in name else 1
        shape = [2 if i == axis else size for i, size in enumerate(tensor.shape)]
        more = rng.normal(size=shape).astype(np.float32)
        tensors[name] = np.ascontiguousarray(np.concatenate([tensor, more], axis))
    return tensors

  changed(adapter, tensors=wider, rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 30})
  model = build(settings(adapter), LORA).module
  weights = {**load_file(base / "model.safetensors")}
  for name, a in load_file(adapter / "adapter_model.safetensors").items():
    if "lora_A" in name:
      b = load_file(adapter / "adapter_model.safetensors")[name.replace("lora_A", "lora_B")]
      key = name.removeprefix("base_model.model.").replace(".lora_A", "")
      weights[key] = weights[key] + b @ a * (30 / 5 if "q_proj" in name else 12 / 3)
  merged = write(base.parent / "merged", weights={k: v.astype(np.float32)
                                                  for k, v in weights.items()})
  decoder, _ = load_without_tokenizer(merged)
  np.testing.assert_allclose(logits_of(model, IDS), logits_of(decoder, IDS), atol=1e-3, rtol=1e-4)


def load_without_tokenizer(folder):
  model = build(settings(folder), huggingface.NO_LORA)
  return model.module, None


@pytest.mark.parametrize(("config", "message"), [
  (dict(peft_type="IA3"), "peft_type 'IA3' is not supported"),
  (dict(use_dora=True), "use_dora True is not supported. Merge the adapter"),
  (dict(modules_to_save=["lm_head"]), "modules_to_save"),
  (dict(bias="all"), "bias 'all'"), (dict(r=0), "r is missing"),
  (dict(r="eight"), "r is 'eight', which is not a whole number"),
  (dict(lora_alpha="x"), "lora_alpha is 'x', which is not a number"),
  (dict(base_model_name_or_path=["x"]), "which is not a folder or a name"),
  (dict(alpha_pattern=["q"]), "alpha_pattern is .*, which is not an object"),
  (dict(alpha_pattern={"(": 3}), "alpha_pattern holds '.': 3"),
  (dict(alpha_pattern={"q_proj": "x"}), "alpha_pattern holds 'q_proj': 'x'"),
  (dict(rank_pattern={"q_proj": None}), "rank_pattern holds 'q_proj': None"),
  (dict(r=8), "lora_A of .* has rank 3, and adapter_config.json says 8: .* of two adapters"),
  (dict(rank_pattern={"q_proj": 5}), "q_proj has rank 3, and adapter_config.json says 5"),
  (dict(base_model_name_or_path="/nowhere/base"), "names its base.*'/nowhere/base'")])
def test_adapters_of_other_kinds_are_named(folders, config, message):
  """Read as plain LoRA, each would be another model."""
  with pytest.raises(InputError, match=message) as error:
    checkpoint.find(str(changed(folders[1], **config)))
  assert "adapter_config.json" in str(error.value)


def test_an_adapter_for_another_base_is_refused(folders, tmp_path):
  """Of another width its factors do not fit, and of other layers they have no place."""
  _, adapter, _ = folders
  other = write(tmp_path / "other", "llama_gqa_untied")
  config = dataclasses.asdict(CONFIGS["llama_gqa_untied"])
  assert config["embed_dim"] == CONFIGS["llama"].embed_dim  # only q_proj differs, or nothing

  def far(tensors):
    return {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}

  with pytest.raises(InputError, match="layers.7.*does not have: it belongs on another model"):
    build(settings(changed(adapter, tensors=far)), LORA)
  model = settings(adapter)
  with pytest.raises(InputError, match="belongs on another model"):  # before anything is trained
    factory.check_decoder(model, factory.model_config(model, LORA, 40), MESH)

  def narrow(tensors):
    return {name: np.ascontiguousarray(tensor[:, :-1]) if "lora_A" in name else tensor
            for name, tensor in tensors.items()}

  changed(adapter, tensors=narrow, base_model_name_or_path=str(other))
  with pytest.raises(InputError, match="belongs on another model"):
    build(settings(adapter), LORA)


def test_an_adapter_without_weights_or_beside_none_is_one_error(folders):
  base, adapter, _ = folders
  (adapter / "adapter_model.safetensors").rename(adapter / "kept")
  with pytest.raises(InputError, match="adapter_config.json, but no adapter_model.safetensors"):
    checkpoint.find(str(changed(adapter)))
  (adapter / "kept").rename(adapter / "adapter_model.safetensors")
  with pytest.raises(InputError, match="which holds no config.json"):
    checkpoint.find(str(changed(adapter, base_model_name_or_path=str(adapter))))


@pytest.mark.parametrize("damage", [
  lambda b: np.ascontiguousarray(b[:, :-1]), lambda b: np.concatenate([b, b], axis=1),
  lambda b: b[0], lambda b: b[0, 0], lambda b: b[:, :0]])
def test_factors_of_an_adapter_must_be_matrices_of_one_rank(folders, damage):
  """A narrower B would be padded with zeros and trained; other shapes end in a traceback."""

  def damaged(tensors):
    return {name: np.array(damage(tensor)) if "q_proj.lora_B" in name else tensor
            for name, tensor in tensors.items()}

  with pytest.raises(InputError, match=r"lora_A of .*q_proj is \(3, .*must be \(r, in\)"):
    checkpoint.find(str(changed(folders[1], tensors=damaged)))


def test_the_digest_of_a_checkpoint_sees_all_that_a_run_reads_of_it(folders, tmp_path):
  """A run resumed on another checkpoint of the same name would mix two models."""
  base, adapter, _ = folders
  digests = [checkpoint.digest(str(base)), checkpoint.digest(str(adapter))]
  changed(adapter, tensors=lambda tensors: {n: t + 1 for n, t in tensors.items()})
  digests.append(checkpoint.digest(str(adapter)))
  copy = shutil.copytree(base, tmp_path / "copy")
  assert checkpoint.digest(str(copy)) == digests[0]
  for name in ("config.json", "chat_template.jinja"):
    with (copy / name).open("a") as file:
      file.write(" ")
    digests.append(checkpoint.digest(str(copy)))
  assert len(set(digests)) == len(digests)
  (copy / "tokenizer").mkdir()  # as in a workdir
  assert checkpoint.digest(str(copy)) == digests[-1]
  (copy / "vocab.txt").symlink_to("nowhere")  # half a copy of the hub's cache
  with pytest.raises(InputError, match="vocab.txt cannot be read: No such file"):
    checkpoint.digest(str(copy))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_adapter_that_changes_its_base_is_refused(folders, start):
  """PEFT takes the adapter's first value off the base's weights: read apart, it is another model."""
  _, adapter, _ = folders
  with pytest.raises(InputError, match="changes the base's weights too. Merge"):
    checkpoint.find(str(changed(adapter, init_lora_weights=start)))

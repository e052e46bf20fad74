"""The programs of a study are those of the job, and lie on the mesh as the table says."""

import jax
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.pipeline.settings import config_from
from studies.scaling.settings import ScalingSettings
from tests.configs import ROOT, changed
from tests.jobs import on_eight_devices

CONFIG = ROOT / "configs" / "scaling.py"


def small_config():
  """The tiny study, smaller still."""
  config = config_from(CONFIG)
  for model in (config.run.model, config.run.classifier.model):
    model.update(embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
                 scan_layers=True)
  config.update(vocab_size=64, classifier_vocab_size=64, owners=6, prompt_tokens=8, retain_tokens=16,
                retain_response_tokens=8)
  config.run.unlearning.dareu.update(rollout_batch_size=16, minibatch_size=8, retain_batch_size=8,
                                     recall_batch_size=8,
                                     max_new_tokens=8)
  config.run.evaluation.batch_size = 16
  config.run.mesh.gather_gib = 0.0  # gathered weights would be constraints too
  return config


ON_EIGHT = '''
import json, re, jax
from dareu_jax.parallel.mesh import MeshSettings, gathered_bytes, make_mesh
from studies.scaling import hlo, measure
from dareu_jax.rl.programs import job
from studies.scaling.settings import ScalingSettings
from tests.studies.scaling.test_programs import small_config

found = {}
for lora, sizes in ((0, (2, 2, 2)), (4, (2, 2, 2)), (4, (8, 1, 1))):
  config = small_config()
  config.run.lora.rank = lora
  mesh = make_mesh(MeshSettings(*sizes))
  parts, compiled = {}, {}
  study = ScalingSettings.from_config(config)
  whole = job(*study.models, study.unlearning, study.sizes, mesh)
  for name, program in whole.programs.items():
    lowered = program.lower(mesh)
    compiled[name] = lowered.compile()
    parts[name] = {"constraints": lowered.as_text().count("sharding_constraint"),
                   "flops": hlo.Program(compiled[name].as_text(), loop_trips=program.trips).cost.flops}
  state_in = compiled["update"].input_shardings[0][0]
  state_out = compiled["update"].output_shardings[0]
  leaves = jax.tree.leaves(whole.programs["update"].args[0])
  parts["update"]["comes_back"] = all(
    a.is_equivalent_to(b, len(leaf.shape)) for a, b, leaf in
    zip(jax.tree.leaves(state_in), jax.tree.leaves(state_out), leaves))
  if not lora:
    parts["seconds"] = measure.measured(whole, compiled, repeats=1)
  found[f"{lora} {sizes}"] = parts

mesh = make_mesh(MeshSettings(1, 4, 2))

def rollout(limit):
  config = small_config()
  config.run.mesh.gather_gib = limit / 2**30
  study = ScalingSettings.from_config(config)
  return job(*study.models, study.unlearning, study.sizes, mesh).programs["rollout"]

def sent(program):
  text = program.lower(mesh).compile().as_text()
  return hlo.Program(text, loop_trips=program.trips).cost.collectives["all-gather"]

model = rollout(0).args[0]
size = sum(gathered_bytes(tree, mesh, 2**30) for tree in (model.params, model.frozen))
print(json.dumps({"found": found, "gathered": [sent(rollout(size - 1)), sent(rollout(size))]}))
'''


@pytest.fixture(scope="module")
def on_eight(eight):
  """What eight fake devices say of the programs, by rank of the adapter and mesh."""
  return eight["found"]


@pytest.fixture(scope="module")
def eight():
  return on_eight_devices(ON_EIGHT)


def test_constraints_do_not_vanish(on_eight):
  """Under the wrong kind of mesh they do nothing, and say nothing."""
  for parts in on_eight.values():
    # A look-up, what comes of it, and a layer; twice (prefill and a step) with a cache of two.
    assert parts["rollout"]["constraints"] >= 2 * 3 + 3 * 2
    assert parts["reward"]["constraints"] >= 3
    assert parts["scores"]["constraints"] >= 2 * 3  # of the policy and the one before
    assert parts["update"]["constraints"] >= 3 * 3 + 10  # policy, retained rows, teacher; its state


def test_what_an_update_returns_lies_where_it_came_from(on_eight):
  """Else the next update is another program."""
  assert all(parts["update"]["comes_back"] for parts in on_eight.values())


def test_a_mesh_shares_the_work(on_eight):
  """Programs that replicate their work would cost each device all of it."""
  for name in ("rollout", "update"):
    cube, rows = (on_eight[f"4 {mesh}"][name]["flops"] for mesh in ("(2, 2, 2)", "(8, 1, 1)"))
    assert 0.6 < cube / rows < 1.7, name


def test_decoding_gathers_weights_once(eight):
  """And not at each of eight tokens, unless they are a byte larger than they may be."""
  each_token, once = eight["gathered"]
  assert 0 < once < each_token / 4


def test_programs_run_on_made_up_weights(on_eight):
  seconds = on_eight["0 (2, 2, 2)"]["seconds"]
  assert set(seconds) == {"rollout", "reward", "scores", "update"}
  assert all(each > 0 for each in seconds.values())


def test_weak_scaling_grows_the_batches_alone():
  study = ScalingSettings.from_config(small_config())
  grown = study.scaled(4)
  assert grown.unlearning.rollout_batch_size == 64 and grown.run.evaluation.batch_size == 64
  assert grown.unlearning.minibatch_size == 32 and grown.unlearning.retain_batch_size == 32
  assert grown.scaled(0.25) == study


@pytest.mark.parametrize(("preset", "model", "classifier"), [
  ("llama2_7b", 6_738_415_616, 1_034_512_384), ("qwen3_8b", 8_190_735_360, 596_049_920)])
def test_the_presets_have_the_published_sizes(preset, model, classifier):
  """Of TinyLlama (1.1e9) without the language-model head, which a classifier has not."""
  study = ScalingSettings.from_config(config_from(CONFIG, preset))
  assert study.model_config.num_parameters == model
  # Once more by shapes: 'auto' is no dtype that a model can have.
  leaves = jax.tree.leaves(study.models[0].frozen)
  assert sum(leaf.size for leaf in leaves) == model and leaves[0].dtype == "bfloat16"
  head = study.classifier_config.embed_dim * study.classifier_vocab_size
  own = study.classifier_config.num_parameters
  assert own - (0 if study.classifier_tie_embeddings else head) == classifier


def test_a_mistake_in_the_run_is_named_by_its_whole_key():
  """Its settings are checked by their own class, which knows nothing of a study."""
  with pytest.raises(InputError, match=r"^config\.run\.unlearning\.dareu\.clip_eps is 2.0: it must"):
    ScalingSettings.from_config(changed(small_config(), run__unlearning__dareu__clip_eps=2.0))
  with pytest.raises(InputError, match=r"^config\.run\.model\.num_layers is 0"):
    ScalingSettings.from_config(changed(small_config(), run__model__num_layers=0))


def test_a_response_length_that_only_data_would_say_is_refused():
  """No data is read here, and 0 would compile programs that sample nothing."""
  with pytest.raises(InputError, match="config.run.unlearning.dareu.max_new_tokens is 0"):
    ScalingSettings.from_config(changed(small_config(), run__unlearning__dareu__max_new_tokens=0))


def test_impossible_sizes_are_refused():
  with pytest.raises(InputError, match="config.owners is 0"):
    ScalingSettings.from_config(changed(small_config(), owners=0))

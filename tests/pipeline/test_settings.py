"""Settings: every preset builds, and each impossible value is refused by its key."""

import copy

import pytest
from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError
from dareu_jax.data.sources.base import load_corpus
from dareu_jax.methods.base import METHODS
from dareu_jax.pipeline.settings import Settings, config_from, default_config
from tests.configs import ROOT, changed
from tests.configs import preset as preset_config

PRESETS = ("llama2_7b", "tinyllama", "qwen3_8b", "qwen3_0_6b", "smollm2_135m")


@pytest.fixture(scope="module")
def tiny():
  """The tiny config as nested dicts, whose types nothing guards."""
  return preset_config().to_dict()


def refusal(config):
  """The message of the one InputError."""
  with pytest.raises(InputError) as caught:
    Settings.from_config(config)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize("preset", [None, "lora", "tofu40", "llama3_2_1b", *PRESETS])
def test_every_preset_builds(preset):
  """A preset may forget a key, or hold a value that the checks refuse."""
  config = preset_config(preset)
  assert isinstance(config, ConfigDict)
  settings = Settings.from_config(config)
  assert settings.unlearning["dareu"].segment_length == config.unlearning.dareu.segment_length
  assert settings.classifier.model.path == config.classifier.model.path


def test_an_unknown_preset_is_refused_by_name():
  """A misspelt preset must not fall back to the tiny config."""
  with pytest.raises(ValueError, match="llama3_7b.*llama2_7b"):
    preset_config("llama3_7b")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_checkpoints_are_the_published_protocol(preset):
  """A preset that changes the tiny config in place may leave one of its values standing."""
  settings = Settings.from_config(preset_config(preset))
  assert settings.seeds == (41, 42, 43)
  classifier = settings.classifier
  for lora in (settings.lora, *[classifier.lora] * bool(classifier.model.path)):
    assert (lora.rank, lora.alpha) == (8, 32.0)
  assert set(settings.lora.targets) == {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
  train = settings.finetune
  rate = 1e-3 if preset == "smollm2_135m" else 1e-4
  assert (train.learning_rate, train.batch_size, train.epochs) == (rate, 16, 10)
  assert train.schedule != "plateau"  # whose epochs are a limit, not a number
  assert (settings.data.source, settings.data.num_owners, settings.data.forget) == (
    "tofu", 0, "forget10")
  assert settings.model.path and settings.model.dtype == "auto"


def test_a_request_trains_nothing_but_the_method_and_its_classifiers():
  config = config_from(ROOT / "configs/forget.py")
  assert "config.original.path" in refusal(config)  # what to forget from must be said
  config.original.path = "folder"
  settings = Settings.from_config(config)
  assert not settings.retrains and not settings.has_reference and not settings.pretrains
  assert settings.data.source == "jsonl" and settings.seeds == (42,)
  with pytest.raises(ValueError, match="no preset 'tiny'"):
    config_from(ROOT / "configs/forget.py", "tiny")


# (key, impossible value); the message must say "config.<key> is <value>".
IMPOSSIBLE = [
  ("max_length", 0), ("max_length", 15), ("length_multiple", 0),
  ("seeds", ()), ("seeds", (42, 42)), ("seeds", (1, 2, 1)),
  ("data__source", "web"), ("data__forget", "forget"), ("data__forget", "forget0"),
  ("data__forget", "forget100"), ("data__forget", "retain90"), ("data__forget", "forget1.5"),
  ("data__forget", "forget\u00b2"), ("data__num_owners", -1), ("data__num_holdout", -1), ("data__num_general", -1),
  ("pretrain__epochs", -1),
  ("tokenizer__vocab_size", 299), ("tokenizer__template", "llama9"),
  ("model__architecture", "gpt2"), ("model__dtype", "float16"), ("model__embed_dim", 0),
  ("model__mlp_dim", -8), ("model__num_layers", 0), ("model__num_heads", 0),
  ("model__num_kv_heads", 3), ("model__num_kv_heads", 0), ("model__head_dim", 33),
  ("lora__rank", -1), ("lora__alpha", 0.0), ("lora__alpha", -1.0),
  ("finetune__learning_rate", 0.0), ("finetune__learning_rate", -1e-3),
  ("finetune__batch_size", 0), ("finetune__micro_batch_size", 5),
  ("finetune__micro_batch_size", -1), ("finetune__micro_batch_size", 64),
  ("finetune__epochs", 0), ("finetune__warmup", 1.5), ("finetune__warmup", -0.1),
  ("finetune__schedule", "step"), ("finetune__target_loss", -0.1),
  ("finetune__weight_decay", -0.1), ("finetune__clip_norm", 0.0),
  ("classifier__train__learning_rate", 0.0), ("classifier__train__micro_batch_size", 5),
  ("classifier__token_noise", 1.0), ("classifier__echo_noise", 1.1), ("classifier__label_smoothing", -0.1),
  ("unlearning__dareu__reward_form", "potential"), ("unlearning__dareu__selection", "best"),
  ("unlearning__dareu__segment_length", 0), ("unlearning__dareu__epsilon", 0.0), ("unlearning__dareu__epsilon", 0.5),
  ("unlearning__dareu__epsilon", 0.7), ("unlearning__dareu__epsilon", -0.1), ("unlearning__dareu__c_seg", 0.0),
  ("unlearning__dareu__kl_coef", -0.1), ("unlearning__dareu__value_coef", -1.0),
  ("unlearning__dareu__distill_coef", -0.5), ("unlearning__dareu__discount", 1.01),
  ("unlearning__dareu__discount", -0.1), ("unlearning__dareu__gae_lambda", 2.0), ("unlearning__dareu__clip_eps", 0.0),
  ("unlearning__dareu__clip_eps", 1.5), ("unlearning__dareu__minibatch_size", 81),
  ("unlearning__dareu__value_clip_eps", -0.2), ("unlearning__dareu__learning_rate", 0.0),
  ("unlearning__dareu__value_learning_rate", -1.0), ("unlearning__dareu__warmup_steps", -1),
  ("unlearning__dareu__weight_decay", -0.1), ("unlearning__dareu__final_rate", 1.5),
  ("unlearning__dareu__clip_norm", 0.0), ("unlearning__dareu__epochs", 0),
  ("unlearning__dareu__samples_per_prompt", 0), ("unlearning__dareu__rollout_batch_size", 0),
  ("unlearning__dareu__minibatch_size", 0), ("unlearning__dareu__inner_epochs", 0),
  ("unlearning__dareu__retain_batch_size", 0), ("unlearning__dareu__temperature", 0.0),
  ("unlearning__dareu__top_k", -1), ("unlearning__dareu__top_p", 0.0), ("unlearning__dareu__top_p", 1.1),
  ("unlearning__dareu__max_new_tokens", -1), ("monitor__target_score", 1.5),
  ("monitor__guards__min_length_ratio", 1.5), ("monitor__guards__max_degenerate_share", -0.1),
  ("evaluation__batch_size", 0), ("evaluation__max_examples", -1),
  ("evaluation__max_new_tokens", -1), ("evaluation__min_k", 0.0), ("evaluation__min_k", 1.1),
  ("monitor__guards__action", "ask"), ("monitor__guards__max_length_ratio", 0.9),
  ("monitor__guards__max_fluency_gap", 0.0), ("monitor__guards__max_rollbacks", -1),
  ("unlearning__dareu__learner", "dpo"), ("unlearning__dareu__critic", "none"), ("unlearning__dareu__reward", "bleu"),
  ("classifier__none_share", -0.5), ("classifier__vocab_size", 100),
  ("mesh__data", 0), ("mesh__tensor", -2), ("checkpoint__every_steps", 0),
  ("checkpoint__keep", 0),
  # The same block stands in two places: the message must name the one that is wrong.
  ("classifier__model__num_layers", 0), ("classifier__model__num_kv_heads", 3),
  ("classifier__model__dtype", "float16"), ("classifier__lora__rank", -1),
]
WRONG_TYPE = [
  ("max_length", "256"), ("max_length", True), ("max_length", 256.0), ("max_length", None),
  ("pretrain__epochs", "4"), ("data__num_general", 1.5), ("seeds", 42), ("seeds", "42"),
  ("data__dir", None), ("data__num_owners", False), ("data__forget", 10),
  ("data__forget_owners", "author_001"), ("model__num_layers", "4"), ("model__scan_layers", 0),
  ("classifier__model__num_layers", "1"), ("unlearning__dareu__kl_coef", "0.1"),
  ("unlearning__dareu__kl_coef", True), ("unlearning__dareu__kl_coef", None), ("mesh__fsdp", 1.0),
  ("finetune", 3), ("mesh", None), ("unlearning", ("a",)), ("unlearning__npo", 3),
  ("plugins", "mine"), ("plugins", 3), ("plugins", (3,)),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE + WRONG_TYPE)
def test_an_impossible_value_is_refused_by_key_and_value(tiny, key, value):
  """A check may be missing, too lenient at its border, or name another key."""
  message = refusal(changed(tiny, **{key: value}))
  assert f"config.{key.replace('__', '.')} is {value!r}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"),
                                   pytest.param(10**400, id="huge")])
@pytest.mark.parametrize("key", ["unlearning__dareu__kl_coef", "finetune__learning_rate",
                                 "monitor__target_score"])
def test_a_number_that_is_not_finite_is_refused(tiny, key, value):
  """NaN passes every comparison that is written as `if value < bound`."""
  assert f"config.{key.replace('__', '.')} is " in refusal(changed(tiny, **{key: value}))


@pytest.mark.parametrize(("key", "value", "named"), [
  ("seeds", (1, "2"), "config.seeds[1] is '2'"),
  ("seeds", (True,), "config.seeds[0] is True"),
  ("data__forget_owners", ("a", 3), "config.data.forget_owners[1] is 3"),
  ("lora__targets", ("q_proj", "lm_head"), "config.lora.targets[1] is 'lm_head'"),
])
def test_an_item_of_a_tuple_is_refused_by_its_place(tiny, key, value, named):
  """A check of the container alone lets its items pass."""
  assert named in refusal(changed(tiny, **{key: value}))


def test_a_negative_seed_is_refused_before_any_work(tiny):
  """NumPy's generators take no negative seed, which batches would find out in mid-run."""
  assert "config.seeds" in refusal(changed(tiny, seeds=(-1,)))


@pytest.mark.parametrize(("group", "key", "named"), [
  ((), "max_lenght", "config.max_lenght"),
  (("unlearning", "dareu"), "kl_cof", "config.unlearning.dareu.kl_cof"),
  (("classifier", "model"), "layers", "config.classifier.model.layers"),
])
def test_an_unknown_key_is_refused_with_those_known(tiny, group, key, named):
  """A misspelt key that is ignored leaves the default standing."""
  config = changed(tiny, **{"__".join((*group, key)): 1})
  message = refusal(config)
  known = config
  for name in group:
    known = known[name]
  assert f"{named} is not a setting" in message
  assert all(name in message for name in known if name != key)


@pytest.mark.parametrize("key", ["seeds", "mesh", "unlearning", "unlearning__dareu",
                                 "unlearning__dareu__kl_coef", "classifier__model",
                                 "classifier__train__epochs", "finetune__schedule"])
def test_what_a_config_leaves_out_has_its_default(tiny, key):
  """A block has other defaults in one place than in another: `finetune` is no plain TrainSettings."""
  config = copy.deepcopy(tiny)
  *groups, name = key.split("__")
  part = config
  for group in groups:
    part = part[group]
  del part[name]
  assert Settings.from_config(config) == Settings.from_config(tiny) == Settings()


def test_the_default_config_is_the_default_settings(tiny):
  """The ConfigDict that files start from holds every setting, of methods that do not run too."""
  assert tiny == default_config().to_dict()
  assert set(tiny["unlearning"]) == set(METHODS)
  assert Settings.from_config(default_config(max_length=300)).max_length == 300


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (1, -1, -1), (-1, -1, -1)])
def test_only_one_mesh_axis_takes_the_rest(tiny, sizes):
  """Two open axes have no single answer."""
  data, fsdp, tensor = sizes
  message = refusal(changed(tiny, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor))
  assert "config.mesh" in message and "-1" in message


@pytest.mark.parametrize("without", [{"learner": "rloo"}, {"critic": "regression"}])
def test_a_learner_without_a_trained_critic_needs_whole_groups(without, tiny):
  """A group cut in two would be compared with half of itself."""
  for samples in (1, 3):
    message = refusal(changed(
      tiny, **{f"unlearning__dareu__{name}": value for name, value in without.items()},
      unlearning__dareu__samples_per_prompt=samples))
    assert f"config.unlearning.dareu.samples_per_prompt is {samples}" in message


def test_a_minibatch_is_no_larger_than_what_is_learned_from(tiny):
  message = refusal(changed(tiny, unlearning__dareu__learned_share=0.1))
  assert "config.unlearning.dareu.minibatch_size" in message and "learned_share 0.1" in message


def test_a_checkpointed_classifier_has_its_own_tokenizer(tiny):
  config = changed(tiny, classifier__vocab_size=500, classifier__model__path="some/checkpoint")
  assert "config.classifier.vocab_size is 500" in refusal(config)


@pytest.mark.parametrize("block", ["", "classifier__"])
def test_an_adapter_on_random_weights_is_refused(tiny, block):
  """A rank set for a model from scratch would leave random base weights frozen."""
  message = refusal(changed(tiny, **{f"{block}lora__rank": 8, "pretrain__epochs": 0}))
  assert f"config.{block.replace('__', '.')}lora.rank" in message
  path = changed(tiny, **{f"{block}lora__rank": 8, f"{block}model__path": "some/checkpoint"})
  assert Settings.from_config(path)


def test_an_adapter_without_layers_is_refused(tiny):
  """Nothing at all would be trained."""
  message = refusal(changed(tiny, model__path="some/checkpoint", lora__rank=8, lora__targets=()))
  assert "config.lora.targets" in message


@pytest.mark.parametrize(("changes", "said"), [
  ({"source": "jsonl"}, "config.data.dir"), ({"num_owners": 1}, "config.data.num_owners is 1"),
  ({"num_owners": 0}, "config.data.num_owners is 0"),
  ({"num_holdout": 0}, "config.data.num_holdout is 0")])
def test_what_a_source_needs_is_said_before_any_work(tiny, changes, said):
  """Found only when the file is read, it would come after the model is loaded. What the same values
  mean is the source's: 0 owners of JSONL are all of them."""
  settings = Settings.from_config(
    changed(tiny, **{f"data__{key}": value for key, value in changes.items()}))
  with pytest.raises(InputError, match=said):
    load_corpus(settings.data)
  assert Settings.from_config(changed(tiny, data__source="jsonl", data__dir="here",
                                      data__num_owners=0, data__num_holdout=0))


@pytest.mark.parametrize("key", [
  "unlearning__dareu__kl_coef", "unlearning__dareu__value_coef", "unlearning__dareu__distill_coef",
  "unlearning__dareu__weight_decay", "unlearning__dareu__discount", "monitor__target_score",
  "finetune__warmup", "finetune__weight_decay", "classifier__token_noise"])
def test_zero_is_a_value_where_it_means_something(tiny, key):
  """`if not value` or `value or default` loses it."""
  value = Settings.from_config(changed(tiny, **{key: 0.0}))
  for name in key.split("__"):
    value = value[name] if isinstance(value, dict) else getattr(value, name)
  assert value == 0.0 and isinstance(value, float)


def test_values_at_the_border_are_accepted(tiny):
  """A bound may be strict where its border makes sense."""
  settings = Settings.from_config(changed(
    tiny, max_length=16, seeds=(0,), unlearning__dareu__epsilon=0.499, unlearning__dareu__top_p=1.0,
    unlearning__dareu__discount=1.0, monitor__target_score=1.0, finetune__warmup=1.0,
    finetune__micro_batch_size=32, evaluation__min_k=1.0, mesh__data=1, mesh__fsdp=1))
  assert settings.finetune.micro_batch_size == 32 and settings.seeds == (0,)


def test_lists_become_tuples_and_integers_floats(tiny):
  """The command line gives lists, and whole numbers for floats; settings must stay hashable."""
  settings = Settings.from_config(
    changed(tiny, seeds=[1, 2], unlearning__dareu__kl_coef=1, data__forget_owners=["a"]))
  assert settings.seeds == (1, 2) and settings.data.forget_owners == ("a",)
  assert isinstance(settings.unlearning["dareu"].kl_coef, float)
  assert settings.unlearning["dareu"].kl_coef == 1.0
  assert isinstance(hash(settings), int) and isinstance(hash(settings.unlearning["dareu"]), int)


@pytest.mark.parametrize(("study", "rank"), [
  (None, 8), ("grid", 8), ("full", 0), ("full_grid", 0), ("quick", 8), ("tofu40", 0)])
def test_every_comparison_builds_and_names_dareu_first(study, rank):
  config = config_from(ROOT / "configs" / "methods.py", study)
  settings = Settings.from_config(config)
  assert settings.all_methods[0] == "dareu" and settings.lora.rank == rank


@pytest.mark.parametrize("study", [None, "grid", "full", "full_grid"])
def test_the_comparison_has_every_method(study):
  """A method that is built and left out of the table is no baseline. (UNDO starts from one.) At
  its own rate is DareU alone."""
  config = config_from(ROOT / "configs" / "methods.py", study)
  assert {*config.methods, "undo"} == set(METHODS)
  assert {*config.method_rates, "dareu"} == {*config.methods} or config.learning_rates


@pytest.mark.parametrize("preset", [None, "llama2_7b", "qwen3_8b"])
def test_every_arxiv_preset_builds(preset):
  config = config_from(ROOT / "configs" / "arxiv.py", preset)
  config.data.dir = "somewhere"
  settings = Settings.from_config(config)
  assert (settings.data.prompt_tokens, settings.data.response_tokens) == (100, 100)
  assert bool(settings.model.path) == (preset is not None)


def test_a_setting_of_later_versions_has_a_default(tiny):
  """Exports and attacks read the settings of runs that were finished before it was there."""
  config = copy.deepcopy(tiny)
  del config["mesh"]["gather_gib"]
  assert Settings.from_config(config).mesh.gather_gib == 7.0

"""A grid of runs: what they share is made once, and each differs in what it says."""

import gc
import json

import pytest
from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError
from dareu_jax.pipeline import ablations
from dareu_jax.pipeline.models import Models
from dareu_jax.pipeline.settings import config_from
from dareu_jax.pipeline.workdir import Workdir
from dareu_jax.training.checkpoints import write_json
from tests.configs import ROOT, smallest_config


def grid_config(**studies):
  return ConfigDict(dict(base=smallest_config(), studies=studies))


def test_a_variant_differs_from_the_base_in_what_it_sets():
  config = grid_config(rate=("unlearning.dareu.learning_rate=0.5 lora.rank=4",
                             "unlearning.dareu.top_k=3"))
  first, second = ablations.variants(config)
  methods = [variant.settings.unlearning["dareu"] for variant in (first, second)]
  assert (methods[0].learning_rate, first.settings.lora.rank) == (0.5, 4)
  assert (methods[1].top_k, second.settings.lora.rank) == (3, 0)
  assert config.base.lora.rank == 0  # the base is left as it was


@pytest.mark.parametrize(("label", "said"), [
  ("unlearning.dareu.rate=1", "config.unlearning.dareu.rate is not a setting"),
  ("seeds.first=1", "config.seeds.first is not a setting"),
  ("unlearning.dareu.kl_coef=-1", "config.unlearning.dareu.kl_coef is -1"),
])
def test_an_assignment_that_is_none_is_refused_before_any_run(label, said):
  with pytest.raises(InputError, match=said):
    ablations.variants(grid_config(study=(label,)))


def test_an_unknown_study_is_refused():
  with pytest.raises(InputError, match="--only names 'kapa': the studies are kappa"):
    ablations.variants(grid_config(kappa=("unlearning.dareu.segment_length=1",)), ["kapa"])


@pytest.mark.parametrize("preset", [None, "overtraining", "attribution_function"])
def test_every_variant_of_the_configs_builds(preset):
  grid = ablations.variants(config_from(ROOT / "configs" / "ablations.py", preset))
  assert len({variant.folder for variant in grid}) == len(grid) >= 3


def finish_at_once(settings, folder, **_):
  """In place of `experiment.run`."""
  Workdir(folder, settings, settings.checkpoint).check_config(overwrite=True)
  write_json(folder / "dareu" / "epochs.json", {
    "epochs": [{"epoch": 1, "score": 0.1, "reason": ""}], "chosen_epoch": 1})
  metrics = {"tug_of_war": 0.9, "fluency_nll": 1.0, "response_length": 20.0}
  return {"chosen": {"dareu": "dareu"}, "models": dict.fromkeys(("dareu", "retrained"), metrics)}, None


def test_rows_of_other_studies_stay_where_some_are_run_again(tmp_path, monkeypatch, capsys):
  """Runs of days would be missing from the table; those of another base do not belong into it."""
  monkeypatch.setattr(ablations.experiment, "run", finish_at_once)
  config = grid_config(first=("lora.rank=0", "unlearning.dareu.top_k=3"),
                       second=("unlearning.dareu.top_k=5",), third=("unlearning.dareu.top_k=7",))

  def labels(*only):
    every = ablations.variants(config)
    records = ablations.run(ablations.variants(config, only), tmp_path, beside=every)
    assert json.loads((tmp_path / "ablations.json").read_text()) == records
    text = (tmp_path / "ablations.md").read_text()
    assert all(f"| {record['label']} " in text for record in records)
    return [record["label"].rpartition("=")[2] for record in records]

  assert labels("third") == ["7"]
  assert labels("first") == ["0", "3", "7"]
  assert labels("first") == ["0", "3", "7"]
  assert labels() == ["0", "3", "5", "7"]
  config.base.finetune.epochs = 3
  capsys.readouterr()
  assert labels("first", "second") == ["0", "3", "5"]
  assert "third: unlearning.dareu.top_k=7 is left out of the table" in capsys.readouterr().out


@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
  """Two forms of reward, ROUGE tracked, over two seeds."""
  config = grid_config(reward_form=("unlearning.dareu.reward_form=published",
                                    "unlearning.dareu.reward_form=absorbing"))
  config.base.seeds = (1, 2)
  config.base.finetune.epochs = 2
  config.base.unlearning.dareu.selection = "last"
  config.base.monitor.track_rouge = True
  folder = tmp_path_factory.mktemp("grid")
  return folder, ablations.run(ablations.variants(config), folder, command="test")


def test_what_runs_have_in_common_is_made_once(grid_run):
  """Training the models again for each variant would take most of the time."""
  folder, _ = grid_run
  summary = json.loads(
    (folder / "reward_form/unlearning.dareu.reward_form=absorbing/summary.json").read_text())
  skipped = {name.split("/", 1)[1] for name, stage in summary["stages"].items()
             if stage["skipped"]}
  assert {"base", "original", "retrained", "classifier", "judge", "tokenizer"} <= skipped
  assert "dareu" not in skipped


def test_seeds_make_one_table_and_their_models_are_freed(grid_run):
  """The models of a seed that is done would take the place of the next seed's."""
  folder, _ = grid_run
  for form in ("published", "absorbing"):
    path = folder / f"reward_form/unlearning.dareu.reward_form={form}/summary.json"
    summary = json.loads(path.read_text())
    assert summary["models"]["retrained"]["tug_of_war_ci95"] == 0.0
    assert {"seed_1/dareu", "seed_2/evaluation/retrained"} <= set(summary["stages"])
  gc.collect()
  assert not [one for one in gc.get_objects() if isinstance(one, Models) and "base" in vars(one)]


def test_the_table_has_a_row_and_the_plots_a_line_for_each_variant(grid_run):
  folder, records = grid_run
  text = (folder / "ablations.md").read_text()
  assert text.count("| reward_form |") == 2 and "unlearning.dareu.reward_form=absorbing" in text
  for name in ("ablations", "epochs_reward_form"):
    assert (folder / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
  assert [len(record["epochs"]) for record in records] == [2, 2]
  assert set(records[0]["epochs"][0][1]["tracked"]) == {"forget_rouge", "retain_rouge",
                                                        "test_rouge"}

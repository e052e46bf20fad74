"""The robustness card of a small finished run."""

import contextlib
import dataclasses
import json
import types

import numpy as np
import pytest

from dareu_jax import robustness as command
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.evaluation.attacks import declarations, reliability
from dareu_jax.pipeline import experiment, robustness
from dareu_jax.pipeline.settings import Settings
from dareu_jax.report import robustness as card
from tests.configs import smallest_config

OPTIONS = robustness.Options(learning_rate=3e-3, batch_size=10, samples=3, steps=(0, 1, 13))


class Given:
  """Flags as a program would have them."""

  def __init__(self, **values):
    self.__dict__ |= {"models": None, "relearning_rate": 0.0, "relearning_batch_size": 32,
                      "samples": 3} | values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(Run, workdir) of one loss-based method on adapters; the run's mesh is in force."""
  config = smallest_config()
  config.data.update(forget="forget50")  # two owners: one is taught, one tested
  config.lora.rank = 2
  config.method = "grad_diff"
  config.baseline.update(epochs=2, batch_size=20, learning_rate=1e-2)
  workdir = tmp_path_factory.mktemp("robust")
  settings = Settings.from_config(config)
  experiment.run(settings, workdir, command="robust")
  run = experiment.prepare(settings, workdir)[0]
  with computing_on(run.models.mesh):
    yield run, workdir


@pytest.fixture(scope="module")
def figures(finished):
  run, _ = finished
  return {name: robustness.attack(run, name, OPTIONS)
          for name in ("original", "retrained", "grad_diff")}


def test_every_attack_gives_its_figures_for_every_model(figures):
  for row in figures.values():
    assert row.keys() == figures["retrained"].keys()
    for key in (line.key for line in declarations.ROWS):
      assert np.isfinite(row[key]) or key == "unlearning_depth", key
  assert figures["original"]["unlearning_depth"] == pytest.approx(0.0, abs=1e-5)
  assert figures["retrained"]["unlearning_depth"] == pytest.approx(1.0)


def test_a_reference_of_another_depth_has_no_card(finished):
  """Layers are exchanged between the two; it would end hours later in an error about shapes."""
  models = finished[0].models
  other = dataclasses.replace(models.config, num_layers=models.config.num_layers + 1)
  for reference, expected in ((models.config, contextlib.nullcontext()), (
      other, pytest.raises(InputError, match="has 2 layers of width 32, and the original 1 of 32"))):
    with expected:
      robustness.check_layers(types.SimpleNamespace(config=models.config, reference_config=reference))


def test_no_step_of_relearning_is_the_model_as_it_is(figures):
  for row in figures.values():
    for name in ("rouge", "probability", "extraction", "min_k"):
      assert row[f"relearn_forget_0_{name}"] == pytest.approx(row[f"plain_forget_{name}"], abs=1e-6)
    assert row["relearn_forget_13_probability"] > row["relearn_forget_0_probability"]


def test_attacks_that_are_done_are_not_repeated(finished, figures, monkeypatch):
  run, workdir = finished
  monkeypatch.setattr(robustness, "leaked", None)  # would fail if it were called
  assert robustness.attack(run, "grad_diff", OPTIONS) == figures["grad_diff"]
  path = workdir / "robustness/grad_diff.json"
  held = json.loads(path.read_text())
  del held["metrics"]["asked"]
  path.write_text(json.dumps(held))
  assert robustness.attack(run, "grad_diff", OPTIONS) == figures["grad_diff"]


def test_the_card_has_a_gap_in_every_cell_but_the_retrained_models(figures, tmp_path):
  trust = reliability.trust([figures], ["grad_diff"], OPTIONS.steps)
  page = card.write(tmp_path, figures, OPTIONS, trust)
  lines = [line for line in page.read_text().splitlines() if line.startswith("| NF4: ROUGE")]
  cells = lines[0].strip("| ").split(" | ")
  assert ["(" in cell for cell in cells] == [False, True, False, True]
  assert (tmp_path / "plots/relearning.png").stat().st_size > 5000
  line = next(line for line in page.read_text().splitlines() if line.startswith("| min_k "))
  assert [float(cell) for cell in line.strip("| ").split("|")[1:]] == pytest.approx(
    list(trust["min_k"].values()), abs=6e-4)


@pytest.mark.parametrize(("changes", "said"), [
  ({"models": ["npo"]}, r"methods \(--models\) names 'npo': the run has grad_diff"),
  ({"workdir": "nowhere"}, "holds no finished run")])
def test_what_cannot_be_attacked_is_said(finished, changes, said):
  with pytest.raises(InputError, match=said):
    command.main(Given(**({"workdir": str(finished[1])} | changes)))


def test_a_run_of_another_format_is_not_attacked(tmp_path):
  (tmp_path / "summary.json").write_text('{"models": {}, "chosen": {}}')
  (tmp_path / "config.json").write_text('{"seeds": [42]}')
  with pytest.raises(InputError, match="holds a run of workdir format 1"):
    command.main(Given(workdir=str(tmp_path)))

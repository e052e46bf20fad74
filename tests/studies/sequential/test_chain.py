"""Who is forgotten when, and what each round may read."""

import dataclasses
import itertools

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.pipeline.settings import config_from
from studies.sequential import experiment
from studies.sequential.chain import rounds_of
from studies.sequential.settings import SequentialSettings
from tests.configs import ROOT, changed
from tests.studies.sequential.configs import smallest_study


def chain_of(folder, **changes):
  settings = SequentialSettings.from_config(changed(smallest_study(), **changes))
  return experiment.prepare(settings, folder)[0]


@pytest.mark.parametrize("preset", [None, "lora", "streaming"])
def test_the_config_is_one_of_the_study(preset):
  """Five rounds of three owners, and 25 of one, of 30."""
  settings = SequentialSettings.from_config(config_from(ROOT / "configs/sequential.py", preset))
  owners = tuple(map(str, range(settings.run.data.num_owners)))
  rounds = rounds_of(settings, owners)
  assert len(rounds[-1].forgotten) == {None: 15, "lora": 15, "streaming": 25}[preset]
  assert rounds[0].now == owners[-settings.owners_per_round:]
  assert rounds[-1].has_reference


@pytest.mark.parametrize("classifier", ["kept", "refreshed"])
def test_a_round_reads_no_forgotten_owner(tmp_path, classifier):
  """A forgotten owner among the retained ones would be learned again."""
  chain = chain_of(tmp_path, rounds=3, classifier=classifier)
  source = chain.run.data.source
  everything = {(e.owner, e.prompt) for e in source.forget + source.retain}
  assert len(chain.rounds) == 3
  for round_ in chain.rounds:
    corpus = chain.to_unlearn(round_, "dareu").data.corpus
    forget, retain = ({(e.owner, e.prompt) for e in part} for part in (corpus.forget, corpus.retain))
    assert {owner for owner, _ in forget} == set(round_.now)
    assert not {owner for owner, _ in retain} & set(round_.forgotten)
    assert forget | retain == {e for e in everything if e[0] not in round_.done}
    evaluated = chain.to_evaluate(round_).data.corpus
    assert {e.owner for e in evaluated.forget} == set(round_.forgotten)
    assert evaluated.retain == corpus.retain
  for one, other in itertools.combinations(chain.rounds, 2):
    assert not set(one.now) & set(other.now)


def test_what_counts_as_attributed_is_everybody_forgotten_so_far(tmp_path):
  """An answer in the words of an owner who is already forgotten is no better."""
  chain = chain_of(tmp_path)
  second = chain.rounds[1]
  assert chain.to_unlearn(second, "dareu").data.is_forget.tolist() == [False, False, True, True]
  alone = dataclasses.replace(chain, settings=dataclasses.replace(chain.settings, lowered="round"))
  assert alone.to_unlearn(second, "dareu").data.is_forget.tolist() == [False, False, True, False]


def test_a_round_starts_from_what_its_own_method_left(tmp_path):
  """With stages mixed up, methods would continue each other's chains, or start anew."""
  chain = chain_of(tmp_path)
  first, second = chain.rounds
  assert chain.before(first, "dareu") == "original"
  assert chain.before(second, "dareu") == "round_1/dareu"
  graph = chain.run.stages
  assert "round_1/grad_diff" in graph["round_2/grad_diff"].needs
  assert "round_1/dareu" not in graph["round_2/grad_diff"].needs
  assert "original" in graph["round_1/grad_diff"].needs


def test_a_method_that_reads_another_reads_that_of_its_round(tmp_path):
  chain = chain_of(tmp_path, run__methods=("dareu", "undo"))
  second = chain.rounds[1]
  assert "round_2/dareu" in chain.run.stages["round_2/undo"].needs
  assert chain.to_unlearn(second, "undo").models.stages["dareu"] == "round_2/dareu"
  assert "dareu" not in chain.to_unlearn(second, "dareu").models.stages


def test_records_of_a_round_without_a_reference_are_not_those_of_one_with(tmp_path):
  """They lack the retained questions."""
  marks = [chain_of(tmp_path / str(every), references_every=every).run.fingerprints
           for every in (1, 2)]
  name = "evaluation/round_1/dareu"
  assert marks[0][name] != marks[1][name]
  assert marks[0]["round_1/dareu"] == marks[1]["round_1/dareu"]


def test_a_refreshed_classifier_takes_the_place_of_the_judge_too(tmp_path):
  """The judge has read what was forgotten: while unlearning, it must not decide either."""
  chain = chain_of(tmp_path, classifier="refreshed")
  first, second = chain.rounds
  assert set(chain.to_unlearn(first, "dareu").models.stages.values()) == {"original", "classifier"}
  assert chain.to_unlearn(second, "dareu").models.stages == {
    "original": "round_1/dareu", "classifier": "round_2/classifier", "judge": "round_2/classifier"}
  assert chain.to_evaluate(second).models.stages == {"classifier": "round_2/classifier"}


@pytest.mark.parametrize(("changes", "says"), [
  ({"rounds": 5}, "takes 5 owners, and the data has 4"),
  ({"rounds": 2, "owners_per_round": 2}, "takes 4 owners, and the data has 4"),
  ({"run__methods": ("dareu", "forgetting")}, r"config.run.methods.*forgetting"),
  ({"learning_rates": {"nop": 1e-3}}, "config.learning_rates"),
  ({"run__learning_rates": (1e-3,)}, "one rate for each method"),
  ({"run__method_rates": {"dareu": (1e-3,)}}, "one rate for each method"),
  ({"run__original__path": "somewhere"}, "trains the original itself"),
  ({"classifier": "new"}, "config.classifier"),
])
def test_bad_input_is_refused_before_any_work(tmp_path, changes, says):
  with pytest.raises(InputError, match=says):
    chain_of(tmp_path, **changes)
  assert not list(tmp_path.iterdir())

"""The contract of a method: what every registered one must have, and one of a user's own."""

import dataclasses
import functools
import inspect

import jax
import pytest

from dareu_jax.api import make_corpus
from dareu_jax.core.errors import InputError
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import METHODS, Method, Shapes, register_method
from dareu_jax.methods.loss_based import LossMethod
from dareu_jax.pipeline import graph
from dareu_jax.pipeline.settings import Settings
from dareu_jax.training.optimizers import TrainSettings
from tests.configs import ALL_METHODS


@pytest.fixture
def registry(monkeypatch):
  """Whatever is registered is forgotten again."""
  monkeypatch.setattr(METHODS, "_entries", dict(METHODS.items()))


def test_every_published_method_is_there():
  assert set(ALL_METHODS) <= set(METHODS.names()) and len(ALL_METHODS) == 20


@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_method_says_what_it_is(name):
  """The table, the report and the documentation are made from it."""
  cls = METHODS[name]
  method = cls()
  assert cls.name == method.name == name
  assert method.title.strip() and method.title == method.title.strip()
  for text in (inspect.getdoc(cls), inspect.getmodule(cls).__doc__):
    assert text and text.strip().endswith((".", ").")), text
  assert cls.__doc__ and cls.__doc__ != super(cls, cls).__doc__
  assert inspect.getmodule(cls).__name__ == f"dareu_jax.methods.{name}"  # one file per method
  blocks = {field.name for field in dataclasses.fields(Settings)}
  assert set(method.depends_on) <= blocks and method.depends_on
  assert isinstance(method.report_facts([]), dict)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_settings_of_a_method_are_static_under_jit(name):
  """Programs are keyed by them: equal ones must share a program, and others must not."""
  cls, traces = METHODS[name], []

  @functools.partial(jax.jit, static_argnames="method")
  def program(x, *, method):
    traces.append(method)
    return x

  first = cls()
  values = {f.name: getattr(first, f.name) for f in dataclasses.fields(cls)}
  field = next(name for name, value in values.items() if value and isinstance(value, float))
  other = dataclasses.replace(first, **{field: 0.5 * values[field] + 0.125})
  for method in (first, cls(), other):
    program(1.0, method=method)
  assert traces == [first, other] and hash(first) == hash(cls())


def test_two_methods_of_the_same_values_are_not_equal():
  """GradDiff with a weight of 0 is gradient ascent, but a stage of another name."""
  assert METHODS["grad_diff"](retain_nll_coef=0.0) != METHODS["gradient_ascent"]()


@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_method_reports_anew_where_the_monitor_is_another(name):
  """Epochs would be told by bounds and levels that are not set any more."""
  assert "monitor" in METHODS[name].depends_on


@pytest.mark.parametrize("name", ALL_METHODS)
def test_guards_act_on_dareu_alone(name):
  """Others keep their last epoch, so that their reports must not tell of one that was rejected."""
  assert METHODS[name].selects_epoch == (name == "dareu")


@pytest.mark.parametrize("name", sorted(set(ALL_METHODS) - {"dareu", "pdu"}))
def test_a_loss_whose_weights_are_all_zero_is_refused(name):
  """Nothing would be trained, for hours. (PDU's retain term always has a weight.)"""
  weights = {field.name: 0.0 for field in dataclasses.fields(METHODS[name])
             if field.name.endswith("_coef")}
  with pytest.raises(InputError, match="forget_coef is 0.0: .* nothing would be trained"):
    METHODS[name](**weights)
  with pytest.raises(InputError, match=rf"config\.unlearning\.{name}\.forget_coef is 0"):
    Settings.from_config({"method": name, "unlearning": {name: weights}})


def test_fine_tuning_has_no_forget_term_to_weigh():
  """It would end with a NotImplementedError where the loss is traced, after the original's training."""
  with pytest.raises(InputError, match="forget_coef is 0.5: .*it must be 0"):
    METHODS["finetune"](forget_coef=0.5)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_only_what_reads_refusals_depends_on_them(name):
  """Another list of refusals must rerun these and no others."""
  assert METHODS[name]().uses_refusals == (name in ("dpo", "idk"))
  if name == "dareu":
    assert METHODS[name](reward="refusal").uses_refusals


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_work_of_a_run_is_estimated(name):
  shapes = Shapes(forget=60, longest_prompt=20, longest_response=30, longest=50,
                  model_parameters=1000, classifier_parameters=100, training_cost=6,
                  training=TrainSettings(epochs=10, batch_size=32))
  updates, operations = METHODS[name]().work(shapes)
  twice = METHODS[name]().work(shapes._replace(model_parameters=2000, classifier_parameters=200))
  assert updates > 0 and twice == (updates, pytest.approx(2 * operations))
  if name != "dareu":  # 2 batches an epoch; forget and retain rows, forward alone under the original
    epochs = 100 if name == "undo" else 10
    assert (updates, operations) == (2 * epochs, 2 * epochs * 2 * 32 * 50 * 8 * 1000)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_only_what_samples_says_what_it_samples(name):
  """Checks of lengths and the plan ask every method, and know none by its kind."""
  method = METHODS[name]()
  assert method.longest_sampled(30) == 30 and (method.footprint is None) == (name != "dareu")


@pytest.mark.parametrize(("methods", "undo", "needs"), [
  (("npo", "undo"), {"teacher": "npo"}, ("npo",)), (("undo",), {"teacher": ""}, ())])
def test_a_method_that_starts_from_another_needs_its_stage(methods, undo, needs):
  """Another model there makes another one here."""
  stages = graph_of({"methods": methods, "unlearning": {"undo": undo}})
  assert stages["undo"].needs[-1:] == (needs or ("judge",))


@pytest.mark.parametrize("methods", [("undo",), ("undo", "dareu")])
def test_a_method_that_starts_from_a_model_that_is_not_there_is_refused(methods):
  """It would end where its stage begins, after hours."""
  with pytest.raises(InputError, match="undo reads the model 'dareu', and no method before it"):
    graph_of({"methods": methods})


def graph_of(config):
  corpus = make_corpus(forget=[{"prompt": "q", "response": "a"}])
  return graph.stages(Settings.from_config(config), corpus, (), 0)


def test_a_method_of_ones_own_joins_by_its_name(registry):
  @register_method("mine")
  class Mine(LossMethod):
    """Mine."""

    pull: NonNegative = 2.0  # how much

    def forget_loss(self, batch):
      return batch.policy.logprobs.sum()

  assert METHODS["mine"] is Mine and Mine.name == "mine"
  settings = Settings.from_config({"method": "mine", "unlearning": {"mine": {"pull": 3}}})
  assert settings.unlearning == {"mine": Mine(pull=3.0)}
  with pytest.raises(InputError, match=r"config\.unlearning\.mine\.pul is not a setting. Did you mean pull"):
    Settings.from_config({"method": "mine", "unlearning": {"mine": {"pul": 3}}})
  with pytest.raises(InputError, match="Mine.pull is -1"):
    Mine(pull=-1)


def test_the_name_of_another_method_is_refused(registry):
  with pytest.raises(InputError, match=r"cannot be unlearning method 'npo': that is dareu_jax.methods"):
    @register_method("npo")
    class Mine(LossMethod):
      """Mine."""


def test_a_method_without_a_run_or_a_loss_says_so(registry):
  @register_method("empty")
  class Empty(Method):
    """Nothing."""

  @register_method("lossless")
  class Lossless(LossMethod):
    """Nothing."""

  with pytest.raises(NotImplementedError, match="Empty has no unlearn"):
    Empty().unlearn(None, None)
  with pytest.raises(NotImplementedError, match="Lossless has no forget_loss"):
    Lossless().forget_loss(None)

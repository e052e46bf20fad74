"""What each method makes of its batches, against the golden values: which model's logits go where.

The formulas are tested by themselves; here a swapped policy and original, another response, a lost
sign or a mask that is not heeded would show.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data.batches import Batch
from dareu_jax.methods import terms
from dareu_jax.methods.altpo import AltPO
from dareu_jax.methods.base import METHODS
from dareu_jax.methods.ceu import CEU
from dareu_jax.methods.dpo import DPO
from dareu_jax.methods.finetune import FineTune
from dareu_jax.methods.grad_diff import GradDiff
from dareu_jax.methods.gradient_ascent import GradientAscent
from dareu_jax.methods.idk import IDK
from dareu_jax.methods.kl_minimization import KLMinimization, kl_minimization
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, ObjectiveLoss, Step, View
from dareu_jax.methods.maximum_entropy import MaximumEntropy, maximum_entropy
from dareu_jax.methods.npo import NPO
from dareu_jax.methods.pdu import PDU, pdu_forget
from dareu_jax.methods.rmu import RMU
from dareu_jax.methods.satimp import SatImp
from dareu_jax.methods.scrub import SCRUB
from dareu_jax.methods.simnpo import SimNPO
from dareu_jax.methods.task_vector import TaskVector
from dareu_jax.methods.undial import UNDIAL
from dareu_jax.methods.undo import Undo
from dareu_jax.methods.wga import WGA
from tests.methods.test_formulas import ALTERNATE, FORGET, V, logits, responses

LAYERS = 8


class KnownLogits:
  """Stands for a decoder: its logits are those of model k of the golden file."""

  def __init__(self, k):
    self.k, self.config = k, types.SimpleNamespace(num_layers=LAYERS)

  def hidden_states(self, token_ids):
    return jnp.asarray(logits(self.k), jnp.float32)[:, :token_ids.shape[1]]

  @property
  def head(self):
    return jnp.eye(V)

  def embed(self, token_ids):
    return self.hidden_states(token_ids)

  def layers_between(self, x, first, last):
    assert first == 0
    return x * last  # so that the layer shows


def batch_of(labels):
  """The golden labels as a Batch: prompts end where the labels begin."""
  labels = np.array(labels)
  starts = (labels >= 0).argmax(1)
  lengths = (labels >= 0).sum(1)
  ids = np.zeros((2, 5), int)
  for row, start, n in zip(range(2), starts, lengths, strict=True):
    ids[row, :n] = labels[row, start:start + n]
  return Batch(np.maximum(labels, 0), starts, ids, lengths, np.zeros(2, int))


def forget_batch(*, policy=0, original=1, seed=3):
  """Models 0 and 1 on the forget responses, 4 and 5 on the alternates, as in the golden file."""
  return ForgetBatch(
    View(KnownLogits(policy), batch_of(FORGET)), View(KnownLogits(original), batch_of(FORGET)),
    (View(KnownLogits(4), batch_of(ALTERNATE)), View(KnownLogits(5), batch_of(ALTERNATE))), seed)


def test_a_loss_that_asks_for_responses_that_its_method_does_not_give_is_an_error():
  """Learning from the forget responses in their place would go unnoticed."""
  with pytest.raises(ValueError, match="override other_responses"):
    forget_batch()._replace(other_views=None).other_policy  # noqa: B018


def nll_of_alternates():
  z, y, mask = responses(ALTERNATE, 4)
  chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(z)), np.asarray(y)[..., None], -1)[..., 0]
  return -chosen[np.asarray(mask)].mean()


def pdu_of_responses():
  z, _, mask = responses(FORGET, 0)
  return pdu_forget(z, mask)


def entropy_of_responses():
  z, _, mask = responses(FORGET, 0)
  return maximum_entropy(z, mask)


def kl_of_both_answers():
  """From the teacher, on true answers and on other ones."""
  def kl(rows, policy, teacher):
    (z, _, mask), (ref, _, _) = responses(rows, policy), responses(rows, teacher)
    p, q = np.asarray(jax.nn.log_softmax(ref)), np.asarray(jax.nn.log_softmax(z))
    return (np.exp(p) * (p - q)).sum(-1)[np.asarray(mask)].mean()

  return (kl(FORGET, 0, 1) + kl(ALTERNATE, 4, 5)) / 2


# Method -> its forget loss at the settings of the golden file: (settings, value or name there, sign).
CASES = {
  "gradient_ascent": (GradientAscent(), "GA", 1), "grad_diff": (GradDiff(), "GA", 1),
  "kl_minimization": (KLMinimization(), "GA", 1), "npo": (NPO(beta=0.1), "NPO_beta0.1", 1),
  "simnpo": (SimNPO(beta=2.5, delta=0.5), "SimNPO_beta2.5_delta0.5", 1),
  "dpo": (DPO(beta=0.1), "DPO_beta0.1", 1), "altpo": (AltPO(beta=0.1), "DPO_beta0.1", 1),
  "idk": (IDK(), nll_of_alternates, 1), "wga": (WGA(beta=1.0), "WGA_beta1", 1),
  "satimp": (SatImp(beta1=5.0, beta2=1.0), "SatImp_b5_b1", 1),
  "undial": (UNDIAL(strength=10.0), "UNDIAL_beta10_masked_mean", 1),
  "ceu": (CEU(ignore_first=1), "CEU_ignore1", 1), "pdu": (PDU(), pdu_of_responses, 1),
  "maximum_entropy": (MaximumEntropy(), entropy_of_responses, 1),
  "scrub": (SCRUB(), "KL_label_masked(shifted)", -1),  # it maximizes KL(π_N ‖ π)
  "task_vector": (TaskVector(), "hf_loss_token_mean", 1),
  "undo": (Undo(), kl_of_both_answers, 1),
}


def test_every_method_with_a_forget_term_is_below():
  """RMU has a test of its own, since it looks at the states of a layer."""
  known = {name for name, cls in METHODS.items()
           if issubclass(cls, LossMethod) and cls().forget_coef and cls.__module__.startswith("dareu_jax")}
  assert known == {*CASES, "rmu"} and not FineTune().forget_coef


@pytest.mark.parametrize("name", CASES)
def test_a_forget_loss_has_the_published_value(golden, name):
  method, value, sign = CASES[name]
  assert type(method) is METHODS[name]
  expected = golden["values"][value] if isinstance(value, str) else value()
  loss = method.forget_loss(forget_batch())
  np.testing.assert_allclose(loss, sign * expected, rtol=2e-5)


@pytest.mark.parametrize("name", ["npo", "dpo", "undial", "scrub", "undo"])
def test_policy_and_original_are_not_to_be_swapped(name):
  """The control: at these logits a swap makes another loss."""
  method = CASES[name][0]
  given, swapped = forget_batch(), forget_batch(policy=1, original=0)
  assert abs(method.forget_loss(given) - method.forget_loss(swapped)) > 1e-3


@pytest.mark.parametrize(("name", "changes"), [
  ("npo", {"beta": 1.0}), ("simnpo", {"beta": 4.5}), ("simnpo", {"delta": 0.0}),
  ("dpo", {"beta": 1.0}), ("altpo", {"beta": 1.0}), ("wga", {"beta": 2.0}),
  ("satimp", {"beta1": 1.0}), ("satimp", {"beta2": 3.0}), ("undial", {"strength": 2.0}),
  ("ceu", {"ignore_first": 2})])
def test_every_setting_of_a_formula_is_heeded(name, changes):
  """One that is not handed on would leave the loss as it is."""
  method = CASES[name][0]
  changed = dataclasses.replace(method, **changes)
  assert abs(method.forget_loss(forget_batch()) - changed.forget_loss(forget_batch())) > 1e-4


@pytest.mark.parametrize(("depth", "layer"), [(0.25, 2), (0.5, 4), (1.0, 8), (0.0, 1), (0.06, 1)])
def test_rmu_steers_the_layer_at_its_depth_to_its_goal(depth, layer):
  """Of the policy, at response tokens; the goal is drawn by the seed and has the length c."""
  method = RMU(depth=depth, scale=3.0)
  z, _, mask = responses(FORGET, 0)
  direction = np.asarray(jax.random.uniform(jax.random.key(3), (V,)))
  goal = 3.0 * direction / np.linalg.norm(direction)
  expected = ((layer * np.asarray(z) - goal) ** 2)[np.asarray(mask)].mean()
  np.testing.assert_allclose(method.forget_loss(forget_batch(seed=3)), expected, rtol=1e-5)
  assert abs(method.forget_loss(forget_batch(seed=4)) - expected) > 1e-4


def retain_terms(method):
  """{name: (weight, value)} on the forget responses, policy 0 and original 1."""
  batch = forget_batch()
  return {name: (weight, float(term()))
          for name, (weight, term) in method.retain_terms(batch.policy, batch.original).items()}


def test_retain_terms_are_nll_and_kl_from_the_original(golden):
  found = retain_terms(SCRUB(retain_nll_coef=0.7, retain_kl_coef=0.2))
  assert list(found) == ["retain_nll", "retain_kl"]
  assert [weight for weight, _ in found.values()] == [0.7, 0.2]
  z, ref, mask = responses(FORGET, 0)[0], responses(FORGET, 1)[0], responses(FORGET, 0)[2]
  forward, reverse = kl_minimization(z, ref, mask), kl_minimization(ref, z, mask)
  assert abs(forward - reverse) > 1e-3  # the control
  np.testing.assert_allclose(
    [value for _, value in found.values()],
    [golden["values"]["hf_loss_token_mean"], golden["values"]["KL_label_masked(shifted)"]], rtol=2e-5)
  np.testing.assert_allclose(found["retain_kl"][1], forward, rtol=2e-5)


def test_rmu_holds_retained_states_where_they_were():
  found = retain_terms(RMU(depth=0.25, retain_states_coef=0.3))
  now, was, mask = responses(FORGET, 0)[0], responses(FORGET, 1)[0], responses(FORGET, 0)[2]
  weight, value = found.pop("retain_states")
  expected = ((2 * (np.asarray(now) - np.asarray(was))) ** 2)[np.asarray(mask)].mean()
  assert weight == 0.3 and value == pytest.approx(expected, rel=1e-5)
  assert list(found) == ["retain_nll", "retain_kl"]
  common = retain_terms(SCRUB())  # what it shares with the others: of the policy, as theirs
  assert {name: value for name, (_, value) in found.items()} == {
    name: value for name, (_, value) in common.items()}


@dataclasses.dataclass(frozen=True)
class FakeModel:
  """Stands for models.handle.Model; its params are the number of the golden file's logits."""

  params: int | None = None

  def with_params(self, params):
    return FakeModel(params)

  @property
  def module(self):
    return KnownLogits(self.params)


def objective(method, weights=(1.0, 1.0)):
  """(loss, metrics) of a step whose retained responses are the alternates."""
  step = Step(batch_of(FORGET), batch_of(ALTERNATE), None, np.array(weights, np.float32))
  loss, count, metrics = ObjectiveLoss(method, 3)(0, (FakeModel(), 1), step, None)
  assert count == 1
  return float(loss), {name: float(value) for name, value in metrics.items()}


def test_the_loss_is_the_weighted_sum_of_its_terms():
  """Weights of the epoch and of the settings; a term of weight 0 is not computed."""
  method = NPO(forget_coef=0.5, retain_nll_coef=3.0, retain_kl_coef=7.0, beta=0.1)
  loss, metrics = objective(method, weights=(0.25, 2.0))
  assert list(metrics) == ["forget_loss", "retain_nll", "retain_kl"]
  expected = 0.25 * 0.5 * metrics["forget_loss"] + 2.0 * (
    3.0 * metrics["retain_nll"] + 7.0 * metrics["retain_kl"])
  assert loss == pytest.approx(expected, rel=1e-5)
  assert min(map(abs, metrics.values())) > 1e-2 and len(set(metrics.values())) == 3
  for name, without in (("forget_loss", "forget_coef"), ("retain_nll", "retain_nll_coef"),
                        ("retain_kl", "retain_kl_coef")):
    assert name not in objective(dataclasses.replace(method, **{without: 0.0}))[1]


def test_forget_and_retain_terms_are_of_their_own_batches(golden):
  _, metrics = objective(GradDiff())
  assert metrics["forget_loss"] == pytest.approx(golden["values"]["GA"], rel=2e-5)
  z, y, mask = responses(ALTERNATE, 0)
  chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1)[..., 0]
  assert metrics["retain_nll"] == pytest.approx(float(terms.nll(chosen, mask)), rel=2e-5)
  assert abs(metrics["retain_nll"] + metrics["forget_loss"]) > 1e-2  # the two batches differ

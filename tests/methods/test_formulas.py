"""Formulas of the methods against values of the public implementations, and what padding must not
change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.methods import terms
from dareu_jax.methods.ceu import ceu
from dareu_jax.methods.dpo import dpo
from dareu_jax.methods.gradient_ascent import gradient_ascent
from dareu_jax.methods.kl_minimization import kl_minimization
from dareu_jax.methods.maximum_entropy import maximum_entropy
from dareu_jax.methods.npo import npo
from dareu_jax.methods.pdu import dual_step, pdu_forget
from dareu_jax.methods.rmu import rmu_forget, rmu_retain
from dareu_jax.methods.satimp import satimp
from dareu_jax.methods.simnpo import simnpo
from dareu_jax.methods.task_vector import task_vector
from dareu_jax.methods.undial import undial
from dareu_jax.methods.undo import with_noise
from dareu_jax.methods.wga import wga

B, S, V = 2, 7, 8
FORGET = [[-100, -100, -100, 2, 4, 6, 7], [-100, -100, 6, 3, 7, -100, -100]]
ALTERNATE = [[-100, -100, -100, 6, 0, 2, 7], [-100, -100, 5, 7, -100, -100, -100]]


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def logits(k):
  """The closed form that the values were made with."""
  b, s, v = np.meshgrid(np.arange(B), np.arange(S), np.arange(V), indexing="ij")
  return 2 * np.sin(1 + 0.7 * b + 1.3 * s + 2.1 * v + 0.37 * k) + 0.5 * np.cos(0.3 * s * v + k)


def responses(labels, k, time=5, junk=0.0):
  """Logits, labels and mask at response tokens, left-aligned: those at s - 1 predict label s."""
  out = np.full((B, time, V), junk), np.zeros((B, time), int), np.zeros((B, time), bool)
  for b, row in enumerate(np.array(labels)):
    at = np.flatnonzero(row >= 0)
    for array, values in zip(out, (logits(k)[b, at - 1], row[at], True), strict=True):
      array[b, :len(at)] = values
  return tuple(map(jnp.asarray, out))


def logprobs(labels, k, **more):
  z, y, mask = responses(labels, k, **more)
  return jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], axis=-1)[..., 0], mask


def values(**more):
  """Every formula on the forget responses (and alternates), by the names of the golden file."""
  z, y, mask = responses(FORGET, 0, **more)
  ref_z, _, _ = responses(FORGET, 1, **more)
  now, ref = logprobs(FORGET, 0, **more)[0], logprobs(FORGET, 1, **more)[0]
  chosen, chosen_mask = logprobs(ALTERNATE, 4, **more)
  chosen_ref, _ = logprobs(ALTERNATE, 5, **more)
  return {
    "hf_loss_token_mean": terms.nll(now, mask),
    "GA": gradient_ascent(now, mask),
    "NPO_beta0.1": npo(now, ref, mask, beta=0.1),
    "NPO_beta1.0": npo(now, ref, mask, beta=1.0),
    "DPO_beta0.1": dpo(chosen, chosen_ref, chosen_mask, now, ref, mask, beta=0.1),
    "SimNPO_beta4.5_delta0": simnpo(now, mask, beta=4.5, delta=0.0),
    "SimNPO_beta2.5_delta0.5": simnpo(now, mask, beta=2.5, delta=0.5),
    "WGA_beta1": wga(now, mask, beta=1.0),
    "SatImp_b5_b1": satimp(now, mask, beta1=5.0, beta2=1.0),
    "UNDIAL_beta10_masked_mean": undial(z, ref_z, y, mask, strength=10.0),
    "KL_label_masked(shifted)": kl_minimization(z, ref_z, mask),
    "CEU_ignore1": ceu(z, y, mask, ignore_first=1),
    "CEU_ignore0": ceu(z, y, mask, ignore_first=0),
    "PDU": pdu_forget(z, mask),
  }


def test_formulas_have_the_published_values(golden):
  given = values()
  del given["PDU"]  # the published mask is not shifted: it takes the logits *at* the response tokens
  labels = np.array(FORGET)
  given["PDU_forget"] = pdu_forget(jnp.asarray(logits(0)), jnp.asarray(labels >= 0))
  for name, value in given.items():
    np.testing.assert_allclose(value, golden["values"][name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_padding_changes_no_formula():
  """A mean over slots, or a mask guessed from labels, would see longer rows and what fills them."""
  plain, padded = values(), values(time=9, junk=7.0)
  for name in plain:
    np.testing.assert_allclose(plain[name], padded[name], rtol=1e-12, err_msg=name)


def test_padding_rows_count_for_nothing():
  """A batch that is filled up with empty rows must weigh its responses as before."""
  now, mask = logprobs(FORGET, 0)
  ref, _ = logprobs(FORGET, 1)
  more = [jnp.concatenate([x, jnp.zeros_like(x)]) for x in (now, ref, mask)]
  for loss in (lambda a, b, m: npo(a, b, m, beta=0.1),
               lambda a, b, m: simnpo(a, m, beta=4.5, delta=0.0),
               lambda a, b, m: dpo(a, b, m, b, a, m, beta=0.1),
               lambda a, b, m: wga(a, m, beta=1.0)):
    np.testing.assert_allclose(loss(now, ref, mask), loss(*more), rtol=1e-12)


def test_simnpo_of_a_response_of_one_token_is_of_that_tokens_nll():
  """Its end token alone, say: an empty answer."""
  logprobs, beta = jnp.array([[-0.7, 9.0]]), 2.0
  expected = 2 / beta * np.log1p(np.exp(-beta * (0.7 - 0.25)))
  loss = simnpo(logprobs, jnp.array([[True, False]]), beta=beta, delta=0.25)
  np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_the_weights_of_wga_and_satimp_take_no_gradient():
  """With a gradient through the weight the step is another one: (1 + β log p) times as large."""
  now, mask = logprobs(FORGET, 0)
  probs = jnp.exp(now)
  for loss, weight in (
      (lambda x: wga(x, mask, beta=2.0), probs**2),
      (lambda x: satimp(x, mask, beta1=3.0, beta2=2.0), probs**3 * (1 - probs)**2)):
    expected = jnp.where(mask, weight, 0) / mask.sum()
    np.testing.assert_allclose(jax.grad(loss)(now), expected, rtol=1e-10)


def test_npo_tends_to_gradient_ascent():
  """The published limit: the gradient of NPO for β towards 0 is that of summed log-likelihoods."""
  now, mask = logprobs(FORGET, 0)
  ref, _ = logprobs(FORGET, 1)
  grad = jax.grad(lambda x: npo(x, ref, mask, beta=1e-7))(now)
  np.testing.assert_allclose(grad, mask / B, atol=1e-6)


def test_maximum_entropy_is_zero_for_the_uniform_alone():
  z, _, mask = responses(FORGET, 0)
  assert float(maximum_entropy(z, mask)) > 0.1
  np.testing.assert_allclose(maximum_entropy(z * 0 + 3.0, mask), 0.0, atol=1e-12)
  probs = np.asarray(jax.nn.softmax(z))[np.asarray(mask)]
  expected = np.mean(np.log(V) + (probs * np.log(probs)).sum(-1))
  np.testing.assert_allclose(maximum_entropy(z, mask), expected, rtol=1e-10)


def test_rmu_is_nothing_at_its_goal():
  direction, mask = jnp.arange(1.0, V + 1), jnp.ones((B, 3), bool)
  goal = 2.0 * direction / jnp.linalg.norm(direction)
  hidden = jnp.broadcast_to(goal, (B, 3, V))
  np.testing.assert_allclose(rmu_forget(hidden, direction, mask, scale=2.0), 0, atol=1e-20)
  mask = mask.at[0, 1:].set(False)  # what is masked may lie anywhere
  hidden = hidden.at[0, 1:].set(1e6)
  off = rmu_forget(hidden + 1.0, direction, mask, scale=2.0)
  moved = hidden.at[0, 1:].set(-1e6) + 1
  np.testing.assert_allclose([off, rmu_retain(moved, hidden, mask)], 1.0, rtol=1e-12)


def test_a_task_vector_goes_the_other_way():
  params = {"a": jnp.array([1.0, 2.0])}
  moved = task_vector(params, {"a": jnp.array([1.5, 1.0])}, alpha=2.0)
  np.testing.assert_allclose(moved["a"], [0.0, 4.0])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noise_takes_the_place_of_a_share_of_each_matrix(share):
  """Two layers of a stack have noise of their own size; vectors stay, and so do stacked ones."""
  layers = jnp.stack([jnp.full((64, 64), 0.1), jnp.full((64, 64), 3.0)])
  params = {"kernel": layers, "lora_b": layers, "norm": {"scale": layers[:, 0]}, "bias": layers[0, 0]}
  noisy = with_noise(params, jax.random.key(0), share=share)
  noise = (noisy["kernel"] - (1 - share) * layers) / jnp.array([0.1, 3.0])[:, None, None]
  np.testing.assert_allclose(noise.std(axis=(1, 2)), share, rtol=0.05)
  np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0.0, atol=0.06 * share)
  np.testing.assert_allclose(noisy["lora_b"], (1 - share) * layers, rtol=1e-12)
  assert noisy["norm"]["scale"] is params["norm"]["scale"] and noisy["bias"] is params["bias"]
  assert share == 0 or abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(("multiplier", "retain_nll", "expected"), [
  (1.0, 0.5, 2.0), (1.0, 0.1, 0.0)])
def test_the_multiplier_rises_with_a_broken_constraint_and_is_never_negative(
    multiplier, retain_nll, expected):
  assert dual_step(
    multiplier, retain_nll, step_size=5.0, target=0.3) == pytest.approx(expected)


@pytest.mark.parametrize(("model", "name"), [(0, "seq_nll_sum"), (1, "seq_nll_sum_ref")])
def test_sequence_nlls_are_the_golden_ones(golden, model, name):
  """What NPO and DPO compare: sums over a response, of policy and reference."""
  found, mask = logprobs(FORGET, model)
  sums = -jnp.sum(jnp.where(mask, found, 0.0), axis=1)
  np.testing.assert_allclose(sums, golden["values"][name], rtol=1e-9)
  if model == 0:
    for row, n, expected in zip(found, mask.sum(1), golden["values"]["tokenwise_logprobs"],
                                strict=True):
      np.testing.assert_allclose(row[:n][:len(expected)], expected, rtol=1e-9)

"""Metrics against golden numbers of public evaluations and against hand-made cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.metrics.auc import auc


@pytest.mark.parametrize(("truth", "answer", "recall"), [
  ("The author was born in Taipei, Taiwan.", "The authors were born in Taipei", 0.714286),
  ("a b c d e", "e d c b a", 0.2),
  ("running runs ran", "run run run", 0.666667),
  ("something", "", 0.0),
])
def test_rouge_l_recall_of_golden_cases(truth, answer, recall):
  """Without the stemmer the first would be .571429."""
  assert metrics.rouge_l_recall(truth, answer) == pytest.approx(recall, abs=1e-6)


@pytest.mark.parametrize(("truth", "half", "other"), [
  ("Он родился в городе Лунд у моря", "Он родился в Париже", "Никто этого не знает"),
  ("在 隆德 出生 于 海边 的 作家", "在 隆德 出生", "没人知道"),
  ("村上春樹は京都で生まれた", "村上春樹は", "ねこです"),
  ("ሰላም ዓለም እንዴት ነህ ዛሬ", "ሰላም ዓለም", "አላውቅም"),
  ("वह समुद्र के किनारे रहता था", "वह समुद्र के", "मुझे नहीं पता")])
def test_rouge_reads_other_scripts(truth, half, other):
  """rouge-score finds no words in them, and every answer scores 0: ToW was 1 for the original."""
  assert metrics.rouge_l_recall(truth, truth) == 1.0
  assert 0.3 < metrics.rouge_l_recall(truth, half) < 0.8
  assert metrics.rouge_l_recall(truth, other) < 0.3


def test_rouge_of_english_with_accents_is_the_published_one():
  """Scores of published logs are compared with."""
  from rouge_score import rouge_scorer
  published = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
  for truth, answer in (("Zoë wrote the café novels", "Zoe wrote novels in cafés"),
                        ("Émile Zola", "It was Émile Zola.")):
    assert metrics.rouge_l_recall(truth, answer) == published.score(truth, answer)["rougeL"].recall


def test_truth_ratio_of_golden_numbers():
  """Values of the public open-unlearning functions in float64."""
  ratios = metrics.truth_ratio([0.8, 1.7], [[1, 1.5, 0.9, 2, 1.2], [0.5, 0.7, 1.1, 0.6, 0.9]])
  np.testing.assert_allclose(ratios, [0.5945205478378813, 2.559981416927951], rtol=1e-9)
  assert metrics.forget_truth_ratio(ratios) == pytest.approx(0.4925741916974855, abs=1e-9)


def test_loss_and_probability_of_golden_numbers(golden):
  """The loss is a mean over the tokens of a response, its probability length-normalised."""
  values = golden["values"]
  for total, expected in zip(values["seq_nll_sum"], values["eval_prob"], strict=True):
    length = round(total / expected["avg_loss"])
    nll = metrics.loss_score(np.full(length, -total / length))
    assert nll == pytest.approx(expected["avg_loss"], rel=1e-9)
    assert metrics.probability(nll) == pytest.approx(expected["prob"], rel=1e-9)


def test_min_k_of_golden_numbers():
  first = [-0.5708732305428997, -1.9894914520315734, -2.87238141390947]
  second = [-2.7979859257892725, -4.5423101793876635]
  assert metrics.min_k_score(first, k=0.4) == pytest.approx(2.87238141390947, rel=1e-9)
  assert metrics.min_k_score(second, k=0.4) == pytest.approx(4.5423101793876635, rel=1e-9)
  assert metrics.min_k_score(first, k=1.0) == pytest.approx(-np.mean(first))


def test_auc_is_that_of_scikit_learn_with_ties():
  rng = np.random.default_rng(0)
  positive, negative = rng.integers(0, 4, 30), rng.integers(1, 6, 50)
  labels = np.r_[np.ones(30), np.zeros(50)]
  wanted = roc_auc_score(labels, np.r_[positive, negative])
  assert auc(positive, negative) == pytest.approx(wanted)
  assert np.isnan(auc([], negative))


def test_mia_auc_says_which_side_is_likelier():
  """A flipped sign would turn a leak into over-forgetting."""
  assert metrics.mia_auc([0.1, 0.2], [3.0, 4.0]) == 1.0
  assert metrics.mia_auc([3.0, 4.0], [0.1, 0.2]) == 0.0
  assert metrics.mia_auc([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.5
  assert np.isnan(metrics.mia_auc([np.nan, 2.0], [1.0, 2.0]))  # of a model that diverged


def test_tug_of_war_is_one_only_at_the_retrained_model():
  assert metrics.tug_of_war([0.4, 0.9, 0.8], [0.4, 0.9, 0.8]) == 1.0
  assert metrics.tug_of_war([0.9, 0.9, 0.8], [0.4, 0.9, 0.8]) == pytest.approx(0.5)
  assert metrics.tug_of_war([0.5, 0.8, 0.7], [0.4, 0.9, 0.8]) == pytest.approx(0.9**3)


@pytest.mark.parametrize(("answer", "verdict"), [
  ("", True), (" . ", True), ("the cat the cat the cat the cat", True),
  ("She won the Pale Window Prize in 1999.", False), ("Paris", False),
  ("我不知道我不知道我不知道", True), ("她于一九九九年获得白窗奖。", False),
])
def test_degenerate_answers_are_told_from_good_ones(answer, verdict):
  assert metrics.is_degenerate(answer) is verdict


def test_the_interval_over_seeds_is_the_t_interval():
  """n = 3: t is 4.303, not 1.96."""
  mean, half = metrics.mean_and_ci95([1.0, 2.0, 3.0])
  assert mean == 2.0
  assert half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)


def test_two_seeds_have_an_interval_and_one_has_none():
  """t of one degree of freedom: 12.706 · s / √2."""
  mean, half = metrics.mean_and_ci95([0.4, 0.6])
  assert (mean, half) == (pytest.approx(0.5), pytest.approx(12.7062 * 0.1, rel=1e-4))
  mean, half = metrics.mean_and_ci95([0.4])
  assert mean == 0.4 and math.isnan(half)


def test_truth_ratios_have_three_forms(golden):
  given, values = golden["truth_ratio_inputs"], golden["values"]
  nlls = given["paraphrased_nll"], given["perturbed_nll"]
  np.testing.assert_allclose(metrics.truth_ratio(*nlls), values["TR_R_geometric"], rtol=1e-9)
  np.testing.assert_allclose(metrics.truth_ratio(*nlls, form="arithmetic"),
                             values["TR_R_arithmetic(paper)"], rtol=1e-9)
  assert metrics.truth_ratio(*nlls, form="probability").mean() == pytest.approx(
    values["TR_prob_mean"], rel=1e-9)
  assert metrics.retain_truth_ratio(metrics.truth_ratio(*nlls)) == pytest.approx(
    values["TR_true_better"], rel=1e-9)
  with pytest.raises(ValueError, match="harmonic"):
    metrics.truth_ratio(*nlls, form="harmonic")


def test_normalized_probability_of_golden_numbers(golden):
  given = golden["truth_ratio_inputs"]
  shares = metrics.normalized_probability(
    metrics.probability(given["paraphrased_nll"]), metrics.probability(given["perturbed_nll"]))
  assert shares.mean() == pytest.approx(golden["values"]["prob_w_options"], rel=1e-9)


def test_memorization_of_golden_numbers(golden):
  """The published strength of a response whose last token is wrong is 1/n, ours 0."""
  predictions, values = golden["values"]["argmax_preds"], golden["values"]
  labels = [[2, 4, 6], [6, 3]]  # the last label is left out
  pairs = list(zip(predictions, labels, strict=True))
  assert [metrics.exact_memorization(*pair) for pair in pairs] == pytest.approx(
    values["em"], rel=1e-9)
  assert [metrics.extraction_strength(*pair, published=True) for pair in pairs] == pytest.approx(
    values["es"], rel=1e-9)
  assert [metrics.extraction_strength(*pair) for pair in pairs] == [0, 0]


@pytest.mark.parametrize(("hits", "strength"), [
  ([1, 1, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([1, 1, 0, 1], 0.25), ([1, 1, 1, 0], 0.0), ([], 0.0)])
def test_extraction_strength_counts_the_right_end(hits, strength):
  assert metrics.extraction_strength(hits, [1] * len(hits)) == strength


def test_min_k_plus_plus_of_golden_numbers(golden):
  """The distributions are those of the closed form that the objectives are tested on."""
  from tests.methods.test_formulas import FORGET, logits

  for b, expected in enumerate(golden["values"]["min_k_pp_0.4"]):
    at = np.flatnonzero(np.array(FORGET[b]) >= 0)[:-1]
    z = logits(0)[b, at - 1]
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    probs = np.exp(logp)
    means = (probs * logp).sum(-1)
    variances = (probs * logp**2).sum(-1) - means**2
    chosen = logp[np.arange(len(at)), np.array(FORGET[b])[at]]
    assert metrics.min_k_plus_plus_score(chosen, means, variances, k=0.4) == pytest.approx(
      expected, rel=1e-9)


def test_zlib_counts_the_bytes_of_the_text():
  assert metrics.zlib_score(2.0, "a" * 400) > metrics.zlib_score(2.0, "The quick brown fox " * 20)
  assert metrics.zlib_score(2.0, "é") == metrics.zlib_score(1.0, "é") * 2


def test_forget_quality_has_its_floor():
  """Two samples that do not overlap: p = 2 / C(2n, n)."""
  import math

  quality = metrics.forget_quality(np.arange(40) + 100.0, np.arange(40.0))
  assert quality.p == pytest.approx(2 / math.comb(80, 40), rel=1e-9)
  assert quality.log10_p == pytest.approx(math.log10(quality.p)) and quality.statistic == 1.0


def test_model_utility_is_of_nine_terms():
  terms = dict.fromkeys(metrics.MODEL_UTILITY_TERMS, 0.5)
  assert len(terms) == 9 and metrics.model_utility(terms) == pytest.approx(0.5)
  assert metrics.model_utility(terms | {"retain_rouge": 0.0}) == 0.0
  with pytest.raises(KeyError, match="retain_rouge"):
    metrics.model_utility({k: v for k, v in terms.items() if k != "retain_rouge"})


def test_aggregates_of_the_meta_evaluation():
  assert metrics.harmonic_mean([1, 1 / 3]) == pytest.approx(0.5)
  assert metrics.memorization(0.5, 0.5, 0.5, 0.5) == pytest.approx(0.5)
  assert metrics.closeness(0.6, 0.5, 1.0) == pytest.approx(0.8)
  assert metrics.closeness(0.0, 0.5, 0.9) == 0.0  # over-forgetting is no privacy
  assert metrics.overall(0.5, 0.5, 0.3, 0.6) == pytest.approx(0.5)
  assert metrics.overall(0.5, 0.5, 0.0, 0.0) == 0.0  # a model that never knew anything
  assert metrics.relearning_robustness(0.2, 0.5, 0.1, 0.4) == pytest.approx(1.0)
  assert metrics.relearning_robustness(0.2, 0.2, 0.1, 0.4) == pytest.approx(0.0, abs=1e-6)
  assert metrics.quantization_robustness(0.1, 0.3) == pytest.approx(0.5)
  assert metrics.discrimination_auc([0.9, 0.4], [0.5, 0.1]) == pytest.approx(0.75)


def test_a_bootstrap_interval_holds_the_mean_as_often_as_it_says():
  """Too narrow an interval would miss it in far more than 5 of 100 draws."""
  rng = np.random.default_rng(0)
  held = 0
  for seed in range(200):
    low, high = metrics.bootstrap_ci95(rng.exponential(size=60), seed=seed, draws=400)
    held += low <= 1.0 <= high
  assert 178 <= held <= 198


def test_a_paired_difference_sees_what_unpaired_noise_hides():
  rng = np.random.default_rng(0)
  hard = rng.normal(size=80) * 10
  found = metrics.paired_difference(hard + 0.5 + 0.1 * rng.normal(size=80), hard)
  assert found.low < 0.5 < found.high and found.p < 0.01
  nothing = metrics.paired_difference(rng.normal(size=80), rng.normal(size=80))
  assert nothing.low < 0 < nothing.high and nothing.p > 0.05


def test_gibberish_is_what_the_original_would_hardly_say():
  bound = metrics.gibberish_bound(np.linspace(0, 2, 201))
  assert bound == pytest.approx(1.98)
  assert not metrics.is_gibberish("He was born in Oslo.", 1.5, bound)
  assert metrics.is_gibberish("He was born in Oslo.", 2.5, bound)
  assert metrics.is_gibberish("", 0.1, bound) and metrics.is_gibberish("a b c " * 3, 0.1, bound)


def test_statistics_of_words():
  assert metrics.repeated_share("a b a b a b") == pytest.approx(3 / 5)
  assert metrics.repeated_share("one") == 0.0
  assert metrics.unknown_word_share("Zoé's cat flurbed 3 times", {"zoé's", "cat", "times"}) == 0.25
  assert metrics.unknown_word_share("42", set()) == 0.0
  assert metrics.unknown_word_share("我不会", {"我", "不"}) == pytest.approx(1 / 3)
  assert metrics.repeated_share("好好好好") == pytest.approx(2 / 3)


def test_privleak_is_signed():
  assert metrics.privleak(1.0, 0.5) == pytest.approx(-100) and metrics.privleak(0.5, 0.5) == 0.0

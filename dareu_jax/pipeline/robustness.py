"""The robustness card of a finished run: every model under the same attacks.

Read each cell against the retrained model's. Each attack is saved in a file.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dareu_jax.core import interruption
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.core.strict_json import strict
from dareu_jax.data.examples import evenly_spaced
from dareu_jax.evaluation.attacks import (
  declarations,
  probes,
  quantization,
  relearning,
  reliability,
)
from dareu_jax.evaluation.measurements import rouges
from dareu_jax.generation.strategies import Sample
from dareu_jax.pipeline import experiment
from dareu_jax.pipeline.graph import ORIGINAL, RETRAINED, classifier_names
from dareu_jax.pipeline.models import Models
from dareu_jax.pipeline.run import Run
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.workdir import fingerprint, lock, read_config
from dareu_jax.report import robustness as card
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress

SAMPLE_SEED = 5000
LEAKAGE = Sample(temperature=1.0, top_p=0.9)  # Scholten et al. 2025
PROBED = 40  # number of forget questions that are sampled many times
Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the attacks."""

  learning_rate: float  # for relearning
  batch_size: int
  samples: int  # per question
  steps: tuple[int, ...]  # numbers of relearning steps to measure after


def run(workdir: str | pathlib.Path, *, methods: Sequence[str] = (), learning_rate: float = 0.0,
        batch_size: int = 32, samples: int = 128) -> tuple[dict[str, Metrics], dict, pathlib.Path]:
  """Attacks every model of a finished run, and writes its card.

  Args:
    workdir: folder of the run.
    methods: methods to attack; all if not given.
    learning_rate: rate for relearning; 0: 2e-5, as published, for a checkpoint, and the run's
      fine-tuning rate for a model from scratch.
    batch_size: examples per step of relearning.
    samples: samples per question.

  Returns: ({model: metrics}, how far each metric can be trusted, path of the card).

  Raises:
    InputError: if the run is not finished, has no such method, or no retrained model.
  """
  workdir = pathlib.Path(workdir)
  summary = read_json(workdir / "summary.json")
  if summary is None:
    raise InputError(f"{workdir} holds no finished run: it has no summary.json. Finish it first.")
  settings = Settings.from_config(read_config(workdir))
  experiment.check_reference(settings)
  if settings.model.quantize != "none":
    raise InputError("config.model.quantize keeps the weights in few bits already, and the attacks "
                     "round and move plain ones: no robustness card is made of this run.")
  unknown = sorted(set(methods) - set(summary["chosen"]))
  if unknown:
    raise InputError(f"methods (--models) names {unknown[0]!r}: the run has "
                     f"{', '.join(summary['chosen'])}.")
  chosen = {m: name for m, name in summary["chosen"].items() if not methods or m in methods}
  own = relearning.RATE if settings.base.path else settings.finetune.learning_rate
  options = Options(learning_rate or own, batch_size, samples, relearning.STEPS)
  cards = []
  with lock(workdir):
    for seed_run in experiment.prepare(settings, workdir):
      trained = (ORIGINAL, RETRAINED) if settings.retrains else ()
      classifiers = classifier_names(settings, "classifier")
      seed_run.check_done(["tokenizer", *trained, *classifiers, *chosen.values()])
      check_layers(seed_run.models)
      with computing_on(seed_run.models.mesh):
        cards.append({shown: attack(seed_run, name, options)
                      for shown, name in experiment.shown_models(settings, chosen).items()})
      seed_run.models.release()
  models = {name: experiment.over_seeds([each[name] for each in cards]) for name in cards[0]}
  trust = reliability.trust(cards, list(chosen), options.steps)
  write_json(workdir / "robustness.json", strict({
    "options": dataclasses.asdict(options), "models": models, "metrics": trust}))
  return models, trust, card.write(workdir, models, options, trust)


def check_layers(models: Models) -> None:
  """Raises InputError if the reference's layers cannot take the place of the original's."""
  own, other = models.config, models.reference_config
  sizes = ("num_layers", "embed_dim")
  if other and [getattr(own, name) for name in sizes] != [getattr(other, name) for name in sizes]:
    raise InputError(
      f"config.retrained.path has {other.num_layers} layers of width {other.embed_dim}, and the "
      f"original {own.num_layers} of {own.embed_dim}: one's layers cannot be exchanged for the "
      "other's, so no robustness card is made.")


def attack(run: Run, name: str, options: Options) -> Metrics:
  """Metrics of a model under every attack; each attack is kept in a file."""
  path = run.workdir.folder / "robustness" / f"{name}.json"
  # The names of the numbers too: a card with others is out of date.
  stage_fingerprint = fingerprint(
    run.fingerprints[f"evaluation/{name}"], run.fingerprints[ORIGINAL], options,
    run.settings.evaluation.min_k, tuple(declarations.WEIGHT_METRICS),
    tuple(asked.key for asked in declarations.QUESTIONS))
  stored = read_json(path)
  is_current = stored is not None and stored["fingerprint"] == stage_fingerprint
  results = stored["metrics"] if is_current else {}
  attacks: dict[str, Callable] = {
    "plain": plain, "int8": functools.partial(quantized, scheme="int8"),
    "nf4": functools.partial(quantized, scheme="nf4"), "asked": asked, "sampled": leaked,
    "layers": layers, "weights": weights, "relearned": relearned}
  with progress(f"attack {name}", "attack")(len(attacks), len(results)) as bar:
    for kind, function in attacks.items():
      if kind not in results:
        interruption.stop_if_requested()
        results[kind] = function(run, name, options)
        write_json(path, {"fingerprint": stage_fingerprint, "metrics": results})
        bar.update()
  return {key: value for part in results.values() for key, value in part.items()}


def _named(prefix, values):
  return {f"{prefix}_{name}": value for name, value in values.items()}


def plain(run: Run, name: str, options: Options) -> Metrics:
  """The model as it is, on forget and retain examples."""
  del options
  results: Metrics = {}
  for split in ("forget", "retain"):
    results |= _named(f"plain_{split}", declarations.measure(
      run.models.evaluator_of(name), run.models.load_params(name), run.data.evaluated(split),
      run.settings.evaluation.min_k))
  return results


def quantized(run: Run, name: str, options: Options, *, scheme: str) -> Metrics:
  """The model with quantized weights, its adapter merged before, or apart and unquantized."""
  del options
  whole = run.models.load(name)
  results: Metrics = {}
  for merged in (True, False) if whole.module.config.lora.rank else (True,):
    model = quantization.quantized(whole, scheme, merged=merged)
    evaluator = dataclasses.replace(run.models.evaluator, model=model)
    for split in ("forget", "retain"):
      results |= _named(f"{scheme}{'' if merged else '_apart'}_{split}", declarations.measure(
        evaluator, model.params, run.data.evaluated(split), run.settings.evaluation.min_k))
  return results


def asked(run: Run, name: str, options: Options) -> Metrics:
  """Other ways of asking: a prefilled answer, another wording, a choice."""
  del options
  models = run.models
  args = models.evaluator_of(name), models.load_params(name), run.data.evaluated("forget")
  return {asked.key: asked.function(*args) for asked in declarations.QUESTIONS}


def leaked(run: Run, name: str, options: Options) -> Metrics:
  """Many samples per question: the best one, and bounds on the expectation."""
  examples = evenly_spaced(run.data.evaluated("forget"), PROBED)
  rows = [row for row in run.data.rows(examples) for _ in range(options.samples)]
  answers = run.models.evaluator_of(name).sample(
    run.models.load_params(name), rows, seed=run.seed + SAMPLE_SEED, strategy=LEAKAGE)
  texts = [run.data.tokenizer.decode(row.completion) for row in answers]
  repeated = [e for e in examples for _ in range(options.samples)]
  scores = np.reshape(rouges(repeated, texts), (len(examples), options.samples))
  return _named("sampled", probes.leakage_bounds(scores))


def layers(run: Run, name: str, options: Options) -> Metrics:
  """Probes of the hidden states: the logit lens and the unlearning depth."""
  del options
  models, evaluator = run.models, run.models.evaluator
  examples, count = run.data.evaluated("forget"), models.config.num_layers
  # Every layer of a small model, about sixteen of a large one.
  each = tuple(sorted({*range(1, count + 1, max(1, count // 16)), count}))
  original = -evaluator.nll(models.load_params(ORIGINAL), examples)
  patched = [probes.patched_logprobs(evaluator, models.load_params(ORIGINAL), models.load(donor),
                                     examples, each) for donor in (name, RETRAINED)]
  return {"logit_lens": probes.logit_lens(models.evaluator_of(name), models.load_params(name),
                                          examples, each),
          "unlearning_depth": probes.unlearning_depth(original, *patched)}


def weights(run: Run, name: str, options: Options) -> Metrics:
  """How far the weights are from the original's and the retrained model's."""
  del options
  return probes.weight_distances(*map(run.models.load, (name, ORIGINAL, RETRAINED)))


def relearned(run: Run, name: str, options: Options) -> Metrics:
  """Relearning: the forget set, other forgotten owners' data, and retained data."""
  corpus, asked_for = run.data.corpus, run.data.evaluated("forget")
  halves = relearning.two_halves(corpus.forget)
  attacks = {"forget": [(corpus.forget, asked_for)], "benign": [(corpus.retain, asked_for)]}
  if all(halves):
    attacks["others"] = [(taught, evenly_spaced(tested, len(asked_for)))
                         for taught, tested in (halves, halves[::-1])]
  results: Metrics = {}
  for kind, folds in attacks.items():
    curves = [_relearning_curve(run, name, *fold, options) for fold in folds]
    curve = {step: {key: float(np.mean([each[step][key] for each in curves]))
                    for key in curves[0][step]} for step in curves[0]}
    for step, seen in curve.items():
      results |= _named(declarations.relearned(kind, step), seen)
    results[declarations.relearning_area(kind)] = relearning.area(
      {step: seen["rouge"] for step, seen in curve.items()})
  return results


def _relearning_curve(run, name, taught, tested, options):
  """{steps of relearning: metrics after them}."""
  batches = run.data.batches(run.data.rows(taught), options.batch_size,
                             seed=run.seed + SAMPLE_SEED, one_bucket=True)
  states = relearning.relearned(
    run.models.load(name), batches, options.learning_rate, to_device=run.models.to_device,
    steps=options.steps)
  evaluator, min_k = run.models.evaluator_of(name), run.settings.evaluation.min_k
  return {step: declarations.measure(evaluator, state, tested, min_k) for step, state in states}

"""Entry: the robustness card of a finished run.

    python -m dareu_jax.robustness --workdir=runs/tofu

Every model of the run, the original and the retrained one among them, under the same attacks. A
cell is worth nothing but beside the retrained model's. Given again, it goes on where it was.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
from absl import flags

from dareu_jax import experiment, interruption
from dareu_jax.command_line import enter
from dareu_jax.data.batches import encode
from dareu_jax.data.examples import evenly_spaced
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.evaluator import Evaluator
from dareu_jax.evaluation.records import mean_rouge, rouges
from dareu_jax.evaluation.robustness import meta, probes, quantisation, relearning
from dareu_jax.generation.strategies import Sample
from dareu_jax.measures import sampled
from dareu_jax.report import robustness as card
from dareu_jax.run import Run, evaluated_examples
from dareu_jax.settings import InputError, Settings
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress
from dareu_jax.workdir import fingerprint, occupied

SAMPLE_SEED = 5000
LEAKAGE = Sample(temperature=1.0, top_p=0.9)  # Scholten et al. 2025
PROBED = 40  # forget questions that are sampled many times


@dataclasses.dataclass(frozen=True)
class Options:
  """What the attacks are told."""

  learning_rate: float  # of relearning
  batch_size: int
  samples: int  # of each question
  steps: tuple[int, ...]  # of relearning at which is looked


def _define_flags():
  flags.DEFINE_string("workdir", None, "Folder of a finished run.")
  flags.DEFINE_list("models", None, "Methods to attack, apart by commas; all if not given.")
  flags.DEFINE_float(
    "relearning_rate", 0.0, "Learning rate of relearning; 0: 2e-5, as published, for a checkpoint, "
    "and that of the run's fine-tuning for a model from scratch.")
  flags.DEFINE_integer("relearning_batch_size", 32, "Examples a step of it.", lower_bound=1)
  flags.DEFINE_integer("samples", 128, "Samples of each question.", lower_bound=2)


def main(given):
  """Makes the card, by its flags."""
  jax.config.update("jax_default_matmul_precision", "highest")
  workdir = pathlib.Path(given.workdir)
  config, summary = (read_json(workdir / f"{name}.json") for name in ("config", "summary"))
  if config is None or summary is None:
    raise InputError(f"{workdir} holds no finished run: it has no summary.json. Finish it first.")
  settings = Settings.from_config(config)
  unknown = sorted(set(given.models or ()) - set(summary["chosen"]))
  if unknown:
    raise InputError(f"--models names {unknown[0]!r}: the run has {', '.join(summary['chosen'])}.")
  chosen = {m: name for m, name in summary["chosen"].items() if m in (given.models or (m,))}
  own = relearning.RATE if settings.model.path else settings.finetune.learning_rate
  options = Options(given.relearning_rate or own, given.relearning_batch_size, given.samples,
                    relearning.STEPS)
  figures = []
  with occupied(workdir):
    for run in experiment.prepare(settings, workdir):
      figures.append({shown: attacked(run, name, options)
                      for shown, name in experiment.shown_models(settings, chosen).items()})
  models = {name: experiment.over_seeds([each[name] for each in figures]) for name in figures[0]}
  trust = meta.trust(figures, list(chosen), options.steps)
  write_json(workdir / "robustness.json", {
    "options": dataclasses.asdict(options), "models": models, "metrics": trust})
  page = card.write(workdir, models, options, trust)
  print(card.table(models), card.trust_table(trust), f"Card: {page}", sep="\n\n")


def attacked(run: Run, name, options: Options):
  """Figures of a model under every attack: {"<attack>": value}; each attack is kept in a file."""
  path = run.workdir.folder / "robustness" / f"{name}.json"
  # The figures' names too: a card of fewer figures is no card of these.
  mark = fingerprint(run.marks[f"evaluation/{name}"], run.marks["original"], options,
                     tuple(meta.SIGNS))
  held = read_json(path)
  figures = held["figures"] if held is not None and held["fingerprint"] == mark else {}
  attacks = {"plain": plain, "int8": functools.partial(quantised, scheme="int8"),
             "nf4": functools.partial(quantised, scheme="nf4"), "asked": asked, "sampled": leaked,
             "layers": layers, "relearned": relearned}
  with progress(f"attack {name}", "attack")(len(attacks), len(figures)) as bar:
    for attack, function in attacks.items():
      if attack not in figures:
        interruption.stop_if_requested()
        figures[attack] = function(run, name, options)
        write_json(path, {"fingerprint": mark, "figures": figures})
        bar.update()
  return {key: value for part in figures.values() for key, value in part.items()}


def looked_at(evaluator: Evaluator, trainable, examples, min_k):
  """What is looked at under each attack on the weights: the figures of `meta.SIGNS`."""
  rows = encode(examples, evaluator.tokenizer, max_length=evaluator.max_length)
  statistics = evaluator.statistics(trainable, rows)
  labels = [np.array(row.completion)[:-1] for row in rows]
  return {
    "rouge": mean_rouge(examples, evaluator.answers(trainable, rows).texts),
    "probability": float(np.mean(metrics.probability(
      [metrics.loss_score(s.logprobs) for s in statistics]))),
    "extraction": float(np.mean([metrics.extraction_strength(s.predictions[:-1], y)
                                 for s, y in zip(statistics, labels, strict=True)])),
    "exact": float(np.nanmean([metrics.exact_memorization(s.predictions[:-1], y)
                               for s, y in zip(statistics, labels, strict=True)])),
    "min_k": float(np.mean([metrics.min_k_score(s.logprobs[:-1], k=min_k)
                            for s in statistics]))}


def _named(prefix, figures):
  return {f"{prefix}_{name}": value for name, value in figures.items()}


def plain(run: Run, name, options):
  """The model as it is, on forget and retain examples."""
  del options
  return {key: value for split in ("forget", "retain") for key, value in _named(
    f"plain_{split}", looked_at(run.evaluator, run.role(name), evaluated_examples(run, split),
                                run.settings.evaluation.min_k)).items()}


def quantised(run: Run, name, options, *, scheme):
  """The model with quantised weights, its adapter merged before, or apart and unquantised."""
  del options
  lora = run.settings.lora
  scale, found = lora.alpha / lora.rank if lora.rank else 0.0, {}
  for merged in (True, False) if lora.rank else (True,):
    trainable, frozen = quantisation.quantised(
      run.role(name), run.base.frozen, scheme, lora_scale=scale, merged=merged)
    evaluator = dataclasses.replace(run.evaluator, frozen=frozen)
    for split in ("forget", "retain"):
      found |= _named(f"{scheme}{'' if merged else '_apart'}_{split}", looked_at(
        evaluator, trainable, evaluated_examples(run, split), run.settings.evaluation.min_k))
  return found


def asked(run: Run, name, options):
  """Asked otherwise: a prefilled answer, another wording, a choice."""
  del options
  args = run.evaluator, run.role(name), evaluated_examples(run, "forget")
  return {"prefilled_rouge": probes.prefilled_rouge(*args),
          "paraphrased_rouge": probes.paraphrased_rouge(*args),
          "choice_accuracy": probes.choice_accuracy(*args)}


def leaked(run: Run, name, options: Options):
  """Asked many times: the best of the samples, and bounds on what is expected."""
  examples = evenly_spaced(evaluated_examples(run, "forget"), PROBED)
  rows = [row for row in run.rows(examples) for _ in range(options.samples)]
  answers = sampled(run, run.role(name), rows, seed=run.seed + SAMPLE_SEED, strategy=LEAKAGE)
  texts = [run.tokenizer.decode(row.completion) for row in answers]
  repeated = [e for e in examples for _ in range(options.samples)]
  scores = np.reshape(rouges(repeated, texts), (len(examples), options.samples))
  return _named("sampled", probes.leakage_bounds(scores))


def layers(run: Run, name, options):
  """Looked into: the logit lens, and how deep the unlearning goes."""
  del options
  evaluator, examples = run.evaluator, evaluated_examples(run, "forget")
  count = run.config.num_layers
  # Every layer of a small model, some sixteen of a large one.
  each = tuple(sorted({*range(1, count + 1, max(1, count // 16)), count}))
  original = -evaluator.nll(run.role("original"), examples)
  patched = [probes.patched_logprobs(evaluator, run.role("original"), run.role(donor), examples,
                                     each) for donor in (name, "retrained")]
  return {"logit_lens": probes.logit_lens(evaluator, run.role(name), examples, each),
          "unlearning_depth": probes.unlearning_depth(original, *patched)}


def relearned(run: Run, name, options: Options):
  """Taught again: the forget set, other forgotten owners' data, and retained data."""
  forget, asked_for = run.corpus.forget, evaluated_examples(run, "forget")
  halves = relearning.two_halves(forget)
  attacks = {"forget": [(forget, asked_for)], "benign": [(run.corpus.retain, asked_for)]}
  if all(halves):
    attacks["others"] = [(taught, evenly_spaced(tested, len(asked_for)))
                         for taught, tested in (halves, halves[::-1])]
  found = {}
  for attack, folds in attacks.items():
    curves = [_relearning_curve(run, name, *fold, options) for fold in folds]
    curve = {step: {key: float(np.mean([each[step][key] for each in curves]))
                    for key in curves[0][step]} for step in curves[0]}
    for step, seen in curve.items():
      found |= _named(f"relearn_{attack}_{step}", seen)
    found[f"relearn_{attack}_area"] = relearning.area(
      {step: seen["rouge"] for step, seen in curve.items()})
  return found


def _relearning_curve(run, name, taught, tested, options):
  """{steps of teaching: what is looked at then}."""
  batches = run.batches(taught, options.batch_size, seed=run.seed + SAMPLE_SEED, one_bucket=True)
  states = relearning.relearned(
    run.base.frame, run.role(name), run.base.frozen, batches, options.learning_rate, put=run.put,
    steps=options.steps)
  return {step: looked_at(run.evaluator, state, tested, run.settings.evaluation.min_k)
          for step, state in states}


if __name__ == "__main__":
  enter(main, _define_flags, required=["workdir"],
        hint="The same command goes on from the last attack.")

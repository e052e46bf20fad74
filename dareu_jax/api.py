"""The library's functions: a model in, an unlearned model out. `import dareu_jax` has them.

Nothing here reads flags or config files; what the numbers depend on (matmul precision, mesh) is set
while a function works and restored when it returns.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from dareu_jax import presets
from dareu_jax.attribution.scorer import Scorer
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.core.settings import merged
from dareu_jax.data.examples import Corpus, Example, parse
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.methods.base import Method
from dareu_jax.parallel.mesh import MeshSettings, mesh_of
from dareu_jax.pipeline import experiment, language_model, unlearning
from dareu_jax.pipeline.comparison import Table, compare
from dareu_jax.pipeline.graph import Candidate
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.pipeline.run import Run, make_run
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import JUDGE_SEED, keep_tokenizer, train_classifier
from dareu_jax.pipeline.workdir import lock
from dareu_jax.rl.guards import EpochReport
from dareu_jax.rl.reward_functions import Reward

Examples = Iterable[Example | Mapping[str, Any]]


def load_model(path: str, *, dtype: str | None = None, template: str = "auto",
               mesh: MeshSettings | None = None) -> tuple[LanguageModel, Tokenizer]:
  """A pretrained checkpoint and its tokenizer.

  Args:
    path: folder, or name of a model of the hub: "Qwen/Qwen3-0.6B".
    dtype: of weights and activations; if not given, 'bfloat16' on accelerators, 'float32' on CPUs.
    template: of prompts; 'auto' follows the tokenizer.
    mesh: sizes of the axes that the weights are split over; all devices, if not given.

  Raises:
    InputError: for a checkpoint that is missing, damaged or of an unsupported architecture.
  """
  model = language_model.load(path, dtype=dtype, template=template, mesh=mesh)
  return model, model.tokenizer


def load_run(workdir: str | pathlib.Path, name: str = "dareu", *,
             seed: int | None = None) -> tuple[LanguageModel, Tokenizer]:
  """A model that a finished run left: 'original', 'retrained' or a method's.

  Args:
    workdir: of the run.
    name: of the model.
    seed: of a run with several; the first, if not given.

  Raises:
    InputError: if the folder holds no such model.
  """
  model, _ = load_saved(workdir, name, seed=seed)
  return model, model.tokenizer


@dataclasses.dataclass(frozen=True)
class Result:
  """What `unlearn` returns.

  Attributes:
    model: the unlearned model.
    original: the model it was, with the same adapters untrained.
    reports: of the epochs; the first of the original.
    chosen_epoch: which of them the model is from; 0: nothing was unlearned.
    classifier: the owner classifier that the reward asked.
    judge: another one, which the reward never asked.
  """

  model: LanguageModel
  original: LanguageModel
  reports: tuple[EpochReport, ...]
  chosen_epoch: int
  classifier: Scorer
  judge: Scorer

  def __repr__(self) -> str:
    first = self.reports[0]
    last = next(report for report in self.reports if report.epoch == self.chosen_epoch)
    return (f"Result(epoch {self.chosen_epoch} of {self.reports[-1].epoch}: attribution score "
            f"{first.score:.3f} -> {last.score:.3f}, level of unseen owners {last.level:.3f})")


def unlearn(model: LanguageModel, tokenizer: Tokenizer | None = None, *, forget: Examples,
            retain: Examples, unseen: Examples = (), method: str | Method = "dareu",
            reward: Reward | None = None, settings: Mapping[str, Any] | None = None,
            workdir: str | pathlib.Path | None = None, seed: int = 42) -> Result:
  """Makes a model forget what it learnt from some owners.

  The model is the original: it is not fine-tuned, and nothing is retrained. Two owner classifiers
  are trained on the examples, the method runs, and the epoch that its rule keeps is returned.

  Args:
    model: of `load_model`.
    tokenizer: in place of the model's own.
    forget: examples, each an Example or a mapping with "prompt" and "response" and, where there are
      several owners, "owner".
    retain: examples of anything that the model should keep, of other owners.
    unseen: examples of owners that the model has not seen; their queries give the level that the
      attribution score is to come down to. Without them, `settings` must give one:
      `{"monitor": {"target_score": 0.05}}`.
    method: name of a method, or an instance with settings of its own: `DareU(c_seg=1.0)`.
    reward: in place of DareU's attribution: a callable of `rl.reward_functions.Responses`.
    settings: nested mapping over the preset for checkpoints (`dareu_jax.presets.CHECKPOINT`).
    workdir: keeps checkpoints and metrics there, and resumes from them; a temporary folder, if not
      given.
    seed: of everything that is drawn.

  Raises:
    InputError: for examples or settings that cannot be used, before any long work.
  """
  if tokenizer is not None:
    model = dataclasses.replace(model, tokenizer=tokenizer)
  name = method if isinstance(method, str) else method.name
  chosen = _settings(model, name, method, settings, seed)
  corpus = make_corpus(forget, retain, unseen)
  if not corpus.holdout and chosen.monitor.target_score < 0:
    raise InputError("there are no unseen examples to measure the level to come down to: give "
                     "some, or settings={'monitor': {'target_score': 0.05}}.")
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(workdir or stack.enter_context(tempfile.TemporaryDirectory()))
    mesh = mesh_of(model.model)
    stack.enter_context(computing_on(mesh))
    stack.enter_context(lock(folder))
    original = model
    if not model.config.lora.rank:
      original = model.trainable(chosen.lora, seed)
    run = make_run(chosen, seed, corpus, mesh, folder, original=original)
    run.workdir.check_config(overwrite=False)
    return _unlearn(run, original, name, reward)


def _unlearn(run: Run, original: LanguageModel, name: str, reward: Reward | None) -> Result:
  keep_tokenizer(run)
  train_classifier(run, "classifier", run.seed)
  train_classifier(run, "judge", run.seed + JUDGE_SEED)
  unlearning.unlearn(run, Candidate(name), reward=reward)
  reports, chosen = unlearning.load_reports(run, name)
  return Result(
    model=original.with_params(run.models.load_params(name)), original=original, reports=reports,
    chosen_epoch=chosen, classifier=run.models.scorer("classifier"),
    judge=run.models.scorer("judge"))


def _settings(model, name, method, changes, seed):
  """The preset for checkpoints with what the caller changes."""
  own = {} if isinstance(method, str) else {"unlearning": {name: method}}
  fixed = {"seeds": (seed,), "method": name, "model": {"path": model.source or "a model at hand"}}
  return Settings.from_config(merged(merged(merged(presets.CHECKPOINT, fixed), own), changes or {}))


def make_corpus(forget: Examples, retain: Examples, unseen: Examples = ()) -> Corpus:
  """Examples as the corpus of a run; those without an owner belong to one of their own.

  Raises:
    InputError: for an example that is none, for none at all, or for an owner that is both forgotten
      and retained.
  """
  parts = {name: tuple(_example(example, name, i) for i, example in enumerate(examples))
           for name, examples in (("forget", forget), ("retain", retain), ("unseen", unseen))}
  owners = {name: tuple(dict.fromkeys(example.owner for example in part))
            for name, part in parts.items()}
  for name in ("forget", "retain"):
    if not parts[name]:
      raise InputError(f"there are no {name} examples: give at least one.")
  for first, second in (("forget", "retain"), ("forget", "unseen"), ("retain", "unseen")):
    both = set(owners[first]) & set(owners[second])
    if both:
      raise InputError(f"owner {min(both)!r} is among the {first} and the {second} examples: an "
                       "owner belongs to one of them.")
  return Corpus(forget=parts["forget"], retain=parts["retain"], test=(), holdout=parts["unseen"],
                owners=owners["forget"] + owners["retain"], forget_owners=owners["forget"])


def _example(example, name, index):
  if isinstance(example, Example):
    return example
  if not isinstance(example, Mapping):
    raise InputError(f"{name} example {index} is {example!r}: it must be a mapping with prompt and "
                     "response, or an Example.")
  return parse({"owner": name, **example}, f"{name} example {index}")


def evaluate(models: Mapping[str, LanguageModel], *, forget: Examples, retain: Examples = (),
             test: Examples = (), unseen: Examples = (), original: str | None = None,
             result: Result | None = None, **options: Any) -> Table:
  """Compares models on the same examples.

  Metrics that the models or the examples do not allow are left out: closeness to the retrained
  model needs one called "retrained", membership attacks unseen examples, attribution a `result`.

  Args:
    models: by name: {"before": model, "after": result.model}.
    forget, retain, test, unseen: examples as of `unlearn`; test: of general knowledge.
    original: name of the model that the others came from; the first, if not given.
    result: of `unlearn`, whose classifiers say whose the answers to forget queries are.
    options: further arguments of `pipeline.comparison.compare`: max_new_tokens, batch_size, ...

  Raises:
    InputError: for models or examples that cannot be used.
  """
  splits = {"forget": forget, "retain": retain, "test": test, "holdout": unseen}
  examples = {split: tuple(_example(example, split, i) for i, example in enumerate(part))
              for split, part in splits.items()}
  if not models:
    raise InputError("there are no models to evaluate: give at least one.")
  if result is not None:
    options = {"classifier": result.classifier, "judge": result.judge} | options
  first = next(iter(models.values()))
  with computing_on(mesh_of(first.model)):
    return Table(compare(models, examples, original=original or next(iter(models)), **options))


def run(settings: Settings | Mapping[str, Any], workdir: str | pathlib.Path,
        **options: Any) -> dict[str, Any]:
  """The whole experiment: data, original and retrained models, methods, evaluation, report.

  Args:
    settings: of `Settings`, or a nested mapping of those that differ from the defaults.
    workdir: folder of results; `report.html` in it shows them.
    options: as of `pipeline.experiment.run`.

  Returns: the summary, as in `summary.json`.

  Raises:
    InputError: for settings or data that cannot be used.
  """
  if not isinstance(settings, Settings):
    settings = Settings.from_config(settings)
  summary, _ = experiment.run(settings, workdir, **options)
  return summary

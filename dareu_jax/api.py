"""The library's functions: a model in, an unlearned model out. `import dareu_jax` has them.

Nothing here reads flags or config files; what the numbers depend on (matmul precision, mesh) is set
while a function works and restored when it returns.
"""

from __future__ import annotations  # so that `help` shows `Examples`, not what it stands for

import contextlib
import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dareu_jax import presets
from dareu_jax.attribution.scorer import Scorer
from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.core.settings import merged, to_plain
from dareu_jax.data.examples import Corpus, Example, check_apart, check_owners_apart
from dareu_jax.data.json_lines import checked, parse
from dareu_jax.data.substitutes import with_substitutes
from dareu_jax.data.tokenizers import DATE, Tokenizer
from dareu_jax.evaluation.records import MIN_K
from dareu_jax.methods.base import Method
from dareu_jax.models.config import AT_HAND
from dareu_jax.models.quantization import Scheme
from dareu_jax.parallel.mesh import MeshSettings, mesh_of
from dareu_jax.pipeline import cards, experiment, language_model, unlearning
from dareu_jax.pipeline.comparison import Table, compare
from dareu_jax.pipeline.graph import ORIGINAL, Candidate
from dareu_jax.pipeline.language_model import Adapter, LanguageModel
from dareu_jax.pipeline.run import Run, make_run
from dareu_jax.pipeline.saved import load_saved
from dareu_jax.pipeline.settings import Settings
from dareu_jax.pipeline.stages import (
  check_inputs,
  keep_tokenizer,
  train_classifiers,
)
from dareu_jax.pipeline.workdir import lock
from dareu_jax.rl.guards import EpochReport
from dareu_jax.rl.reward_functions import Reward

Examples = Iterable[Example | Mapping[str, Any]]


def load_model(path: str, *, dtype: str | None = None, quantize: Scheme = "none",
               template: str = "auto", system: str = "", date: str = DATE,
               mesh: MeshSettings | None = None) -> tuple[LanguageModel, Tokenizer]:
  """A pretrained checkpoint and its tokenizer.

  Args:
    path: folder, or name of a model of the hub: "Qwen/Qwen3-0.6B".
    dtype: of weights and activations; if not given, 'bfloat16' on accelerators, 'float32' on CPUs.
    quantize: 'int8' or 'nf4' keeps the linear kernels in few bits, under adapters.
    template: of prompts; 'auto' follows the tokenizer.
    system: system turn of conversations that have none; '': the template's own.
    date: today's date for templates that mention it.
    mesh: sizes of the axes that the weights are split over; all devices, if not given.

  Raises:
    InputError: for a checkpoint that is missing, damaged or of an unsupported architecture.
  """
  model = language_model.load(
    path, dtype=dtype, quantize=quantize, template=template, system=system, date=date, mesh=mesh)
  return model, model.tokenizer


def load_run(workdir: str | pathlib.Path, name: str = "dareu", *,
             seed: int | None = None) -> tuple[LanguageModel, Tokenizer]:
  """A model that a finished run left: 'original', 'retrained' or a method's.

  Args:
    workdir: folder of the run, or of a call of `unlearn` on a checkpoint.
    name: name of the model.
    seed: seed of a run with several; the first, if not given.

  Raises:
    InputError: if the folder holds no such model.
  """
  model, _ = load_saved(workdir, name, seed=seed)
  return model, model.tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """What `unlearn` returns.

  Attributes:
    model: the unlearned model.
    original: the model it was, with the same adapters untrained.
    reports: of the epochs; the first of the original.
    chosen_epoch: epoch that the model was taken from; 0 means unchanged.
    classifier: the owner classifiers that the reward asked.
    judge: others, which the reward never asked.
    method: the method with its settings.
    forget_owners: names of the owners that were to be forgotten.
  """

  model: LanguageModel
  original: LanguageModel
  reports: tuple[EpochReport, ...]
  chosen_epoch: int
  classifier: Scorer
  judge: Scorer
  method: Method
  forget_owners: tuple[str, ...]

  def save(self, folder: str | pathlib.Path, *, adapter: Adapter = "merged",
           key: bytes | str = b"") -> None:
    """Writes the unlearned model for transformers, vLLM or PEFT, with a model card.

    Args:
      folder: it must not exist.
      adapter: LoRA adapters 'merged' into the weights, or 'apart' for PEFT.
      key: secret of the hashes by which the card lists the forgotten owners, as bytes or in
        hexadecimal digits; without one it lists none.

    Raises:
      InputError: if nothing was unlearned, the folder exists, there is no adapter to go apart, or
        the key is a text of other characters.
    """
    if not self.chosen_epoch:
      raise InputError("nothing was unlearned: the model is the original, which "
                       "`result.original.save` writes.")
    card = cards.of_result(
      self.model, self.method, [dataclasses.asdict(report) for report in self.reports],
      self.chosen_epoch, owners=self.forget_owners, key=key, apart=adapter == "apart")
    self.model.save(folder, adapter=adapter, card=card)

  def __repr__(self) -> str:
    first = self.reports[0]
    last = next(report for report in self.reports if report.epoch == self.chosen_epoch)
    return (f"Result(epoch {self.chosen_epoch} of {self.reports[-1].epoch}: attribution score "
            f"{first.score:.3f} -> {last.score:.3f}, level of unseen owners {last.level:.3f})")


def unlearn(model: LanguageModel, tokenizer: Tokenizer | None = None, *, forget: Examples,
            retain: Examples = (), unseen: Examples = (), method: str | Method = "dareu",
            reward: Reward | None = None, settings: Mapping[str, Any] | None = None,
            workdir: str | pathlib.Path | None = None, overwrite: bool = False,
            seed: int = 42) -> Result:
  """Makes a model forget what it learned from some owners.

  The model is the original: it is not fine-tuned, and nothing is retrained. Owner classifiers are
  trained on the examples, the method runs, and the epoch that its rule keeps is returned.

  Args:
    model: of `load_model`.
    tokenizer: in place of the model's own.
    forget: examples, each an Example or a mapping: a question and its answer ("prompt" and
      "response"), a chat ("messages") or plain text ("text"); and, where there are several owners,
      "owner".
    retain: examples of anything that the model should keep, of other owners. Without them general
      knowledge stands in, and what resembles the forget data may be lost.
    unseen: examples of owners that the model has not seen; their queries give the level that the
      attribution score is to come down to. Without them questions about invented authors do.
    method: name of a method, which then has its settings of the preset for requests
      (`from dareu_jax.presets import REQUEST`); or an instance, which is taken as it is
      (`from dareu_jax.methods.dareu import DareU`).
    reward: callable of `rl.reward_functions.Responses`, in place of DareU's attribution.
    settings: nested mapping over that preset, of the blocks in `SETTINGS`:
      `{"unlearning": {"dareu": {"epochs": 3}}}`.
    workdir: folder for checkpoints and metrics; the same call resumes from them. A temporary
      folder, if not given.
    overwrite: accept a folder of another call; what differs runs again.
    seed: seed of everything random.

  Raises:
    InputError: for examples or settings that cannot be used, before any long work.
  """
  if tokenizer is not None:
    model = dataclasses.replace(model, tokenizer=tokenizer)
  name = method if isinstance(method, str) else method.name
  chosen = _settings(model, name, method, settings or {}, seed)
  if reward is not None and not chosen.unlearning[name].takes_reward:
    raise InputError(f"a reward is given, and method {name!r} takes none: DareU does.")
  corpus = make_corpus(forget, retain, unseen)
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(workdir or stack.enter_context(tempfile.TemporaryDirectory()))
    mesh = mesh_of(model.model)
    stack.enter_context(computing_on(mesh))
    stack.enter_context(lock(folder))
    original = model
    if not model.config.lora.rank:
      original = model.trainable(chosen.lora, seed)
    run = make_run(chosen, seed, corpus, mesh, folder, original=original, reward=reward)
    for remark in run.data.remarks:
      warnings.warn(remark, stacklevel=2)
    check_inputs(run)
    run.workdir.check_config(overwrite=overwrite, stages=run.fingerprints)
    return _unlearn(run, original, name, reward)


def _unlearn(run: Run, original: LanguageModel, name: str, reward: Reward | None) -> Result:
  keep_tokenizer(run)
  train_classifiers(run)
  if original.config.lora.rank:  # they may be of an earlier call, and in no checkpoint
    with run.workdir.stage(ORIGINAL, run.fingerprints[ORIGINAL]) as store:
      if store is not None:
        run.workdir.save_result(ORIGINAL, original.model.params)
  unlearning.unlearn(run, Candidate(name), reward=reward)
  reports, chosen = unlearning.load_reports(run, name)
  if not chosen:
    warnings.warn("no epoch was within bounds and better than the original: this is the model, and "
                  "nothing was unlearned. `reports` has their figures.", stacklevel=3)
  return Result(
    model=original.with_params(run.models.load_params(name)), original=original, reports=reports,
    chosen_epoch=chosen, classifier=run.models.scorer("classifier"),
    judge=run.models.scorer("judge"), method=run.settings.unlearning[name],
    forget_owners=run.data.corpus.forget_owners)


# Blocks of settings that `unlearn` reads and its arguments do not give; a test compares them with
# those that a call reads.
SETTINGS = ("baseline", "checkpoint", "classifier", "eval_every", "evaluation", "length_multiple",
            "lora", "max_length", "monitor", "unlearning")


def _settings(model, name, method, changes, seed):
  """The preset for requests with the caller's changes."""
  for block in changes:
    if block not in SETTINGS:
      raise InputError(f"settings has {block!r}, which unlearn does not read: it reads "
                       f"{', '.join(SETTINGS)}.")
  if "lora" in changes and model.config.lora.rank:
    raise InputError("settings has 'lora', and the model has adapters already: these are trained.")
  own = {} if isinstance(method, str) else {"unlearning": {name: method}}
  if own and name in changes.get("unlearning", {}):
    raise InputError(f"method is an instance of {name!r}, and settings has its settings too: give "
                     "them once.")
  config = model.config
  fixed = {"seeds": (seed,), "method": name,
           "original": {"path": model.source or AT_HAND},
           "model": {"dtype": config.dtype, "quantize": config.quantize,
                     "scan_layers": config.scan_layers, "remat": config.remat},
           "tokenizer": {"template": model.tokenizer.template_name,
                         "system": model.tokenizer.system, "date": model.tokenizer.date},
           "lora": to_plain(config.lora) if config.lora.rank else {}}
  return Settings.from_config(merged(merged(merged(presets.REQUEST, fixed), own), changes))


def make_corpus(forget: Examples, retain: Examples = (), unseen: Examples = ()) -> Corpus:
  """Examples as the corpus of a run; examples without an owner share one owner per set.

  Raises:
    InputError: if an entry is not an example, if there is nothing to forget, or if an owner or a
      text is both forgotten and retained.
  """
  parts = {name: _examples(examples, name)
           for name, examples in (("forget", forget), ("retain", retain), ("unseen", unseen))}
  owners = {name: tuple(dict.fromkeys(example.owner for example in part))
            for name, part in parts.items()}
  if not parts["forget"]:
    raise InputError("there are no forget examples: give at least one.")
  check_owners_apart(owners, "the examples")
  corpus = with_substitutes(Corpus(
    forget=parts["forget"], retain=parts["retain"], test=(), holdout=parts["unseen"],
    owners=owners["forget"] + owners["retain"], forget_owners=owners["forget"]))
  check_apart(corpus)
  return corpus


def _examples(given, name):
  """Examples and mappings as examples; a chat is several."""
  examples: list[Example] = []
  for index, example in enumerate(given or ()):
    if isinstance(example, Example):
      examples.append(checked(example, f"{name} example {index}"))
    elif isinstance(example, Mapping):
      examples += parse(dict(example), f"{name} example {index}", owner=name)
    else:
      raise InputError(f"{name} example {index} is {example!r}: it must be a mapping, with prompt "
                       "and response, messages or text, or an Example.")
  return tuple(examples)


def evaluate(models: Mapping[str, LanguageModel], *, forget: Examples, retain: Examples = (),
             test: Examples = (), unseen: Examples = (), original: str | None = None,
             result: Result | None = None, max_new_tokens: int = 0, max_length: int = 512,
             batch_size: int = 16, min_k: float = MIN_K, seed: int = 42) -> Table:
  """Compares models on the same examples.

  Metrics that the models or the examples do not allow are left out: closeness to the retrained
  model needs one called "retrained", membership attacks unseen examples, attribution a `result`.

  Args:
    models: by name: {"before": model, "after": result.model}.
    forget, retain, test, unseen: examples as of `unlearn`; test: of general knowledge.
    original: name of the model that the others came from; if not given, the one called "original",
      else the first.
    result: result of `unlearn`; its classifiers score the answers to forget queries.
    max_new_tokens: of greedy answers; 0: as many as the longest response has.
    max_length: tokens of prompt and response; longer plain texts are split, as `unlearn` splits
      them at its setting of this name, and longer questions with their answers are an error.
    batch_size: examples per forward pass.
    min_k: share of the least likely tokens that the Min-K% attacks average.
    seed: seed of the samples that ordinary text is measured on.

  Raises:
    InputError: for models or examples that cannot be used.
  """
  splits = {"forget": forget, "retain": retain, "test": test, "holdout": unseen}
  examples = {split: _examples(part, split) for split, part in splits.items()}
  if not models:
    raise InputError("there are no models to evaluate: give at least one.")
  original = original or ("original" if "original" in models else next(iter(models)))
  with computing_on(mesh_of(next(iter(models.values())).model)):
    return Table(compare(
      models, examples, original=original, classifier=None if result is None else result.classifier,
      judge=None if result is None else result.judge, max_new_tokens=max_new_tokens,
      max_length=max_length, batch_size=batch_size, min_k=min_k, seed=seed))


def run(settings: Settings | Mapping[str, Any], workdir: str | pathlib.Path, *,
        overwrite: bool = False,
        mirror: Callable[[str, int, dict[str, Any]], None] | None = None) -> dict[str, Any]:
  """The whole experiment: data, original and retrained models, methods, evaluation, report.

  Args:
    settings: a `Settings`, or a nested mapping of those that differ from the defaults.
    workdir: folder of results; `report.html` in it shows them. The same call resumes.
    overwrite: accept a folder of other settings; the affected stages run again.
    mirror: called with (stage, step, metrics) at each record of metrics.

  Returns: the summary, as in `summary.json`.

  Raises:
    InputError: for settings or data that cannot be used.
  """
  if not isinstance(settings, Settings):
    settings = Settings.from_config(settings)
  summary, _ = experiment.run(settings, workdir, overwrite=overwrite, mirror=mirror)
  return summary

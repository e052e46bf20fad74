"""A language model as a user holds it: weights, architecture and tokenizer in one."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dareu_jax.core.errors import InputError
from dareu_jax.core.numerics import computing_on
from dareu_jax.core.settings import located
from dareu_jax.core.trees import map_named, named_leaves
from dareu_jax.data.batches import bucket_length
from dareu_jax.data.tokenizers import DATE, Tokenizer
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy, Sample
from dareu_jax.models import factory, huggingface, peft
from dareu_jax.models.checkpoint import find
from dareu_jax.models.config import LoraSettings, ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.handle import Model, split
from dareu_jax.models.quantization import Scheme
from dareu_jax.parallel.hosts import fetch
from dareu_jax.parallel.mesh import MeshSettings, make_mesh, mesh_of, shard

BATCH = 16  # prompts that are answered at a time
MULTIPLE = 64  # of the prompt slots: few programs
# Where LoRA adapters go when a model is saved: into the weights, or into a folder for PEFT.
Adapter = Literal["merged", "apart"]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A decoder with its weights and its tokenizer.

  Attributes:
    model: the weights, as jitted functions take them; of a checkpoint only an adapter is trained.
    config: the architecture.
    tokenizer: with the chat template.
    source: folder or hub name of the checkpoint that the weights came from, all but adapters; '' if
      they did not, or have been trained since.
    generation: what the checkpoint's generation_config.json says.
  """

  model: Model
  config: ModelConfig
  tokenizer: Tokenizer
  source: str = ""
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    adapter = f", LoRA of rank {self.config.lora.rank}" if self.config.lora.rank else ""
    return (f"LanguageModel({self.source or self.config.architecture}, "
            f"{self.config.num_parameters / 1e6:.1f} M parameters{adapter})")

  def logits(self, token_ids: Any) -> Float[Array, "B T V"]:
    """Logits of the token after each position of right-padded rows [B, T]."""
    with computing_on(mesh_of(self.model)):
      return _logits(self.model, np.asarray(token_ids))

  def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 128,
               temperature: float = 0.0, seed: int = 0) -> list[str]:
    """Answers to prompts, each within the chat template.

    Args:
      prompts: texts.
      max_new_tokens: of each answer.
      temperature: 0 takes the likeliest tokens.
      seed: of samples.

    Raises:
      InputError: for one text in place of a sequence, or more tokens than the model has positions.
    """
    if isinstance(prompts, str):
      raise InputError(f"prompts is {prompts!r}: it must be a list of texts, [{prompts!r}].")
    tokenizer, answers = self.tokenizer, []
    strategy = Sample(temperature) if temperature else Greedy()
    with computing_on(mesh_of(self.model)):
      for start in range(0, len(prompts), BATCH):
        rows = [tokenizer.encode_prompt(prompt) for prompt in prompts[start:start + BATCH]]
        self.check_positions(max(map(len, rows)), max_new_tokens)
        width = bucket_length(max(map(len, rows)), MULTIPLE)
        ids = np.full((len(rows), width), tokenizer.pad_id, np.int32)
        for i, row in enumerate(rows):
          ids[i, :len(row)] = row
        out = generate(
          self.model, ids, np.array([len(row) for row in rows], np.int32),
          row_keys(jax.random.key(seed), start + np.arange(len(rows))), strategy=strategy,
          max_new_tokens=max_new_tokens, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
        ids, lengths = fetch(out.ids), fetch(out.lengths)
        answers += [tokenizer.decode(ids[i, :lengths[i]].tolist()) for i in range(len(rows))]
    return answers

  def check_positions(self, prompt: int, answer: int) -> None:
    """Raises InputError unless the model has positions for a prompt and an answer, in tokens."""
    positions = self.config.max_length
    if prompt + answer > positions:
      raise InputError(f"a prompt takes {prompt} tokens and its answer up to {answer}, and the "
                       f"model supports {positions} positions: shorten the prompt, or lower "
                       "max_new_tokens.")

  def save(self, folder: str | pathlib.Path, *, adapter: Adapter = "merged",
           card: str = "") -> None:
    """Writes a Hugging Face folder that transformers, vLLM and `load_model` read.

    Args:
      folder: it must not exist.
      adapter: LoRA adapters 'merged' into the weights, or 'apart' for PEFT.
      card: text of the README.md.

    Raises:
      InputError: if the folder exists, or there is no adapter to go apart.
    """
    if adapter not in get_args(Adapter):
      raise InputError(f"adapter is {adapter!r}: it must be "
                       f"{' or '.join(map(repr, get_args(Adapter)))}.")
    if adapter == "apart":
      if self.config.lora.rank and not self.source:
        raise InputError("the adapter's base is in no checkpoint: save it merged.")
      peft.save(self.model.module, folder, base=find(self.source).name, tokenizer=self.tokenizer,
                card=card)
    else:
      huggingface.save(self.model.module, folder, tokenizer=self.tokenizer,
                       generation=self.generation, card=card)

  def with_params(self, params: Any) -> "LanguageModel":
    """The same model with other trained parameters."""
    source = self.source if self.config.lora.rank else ""
    return dataclasses.replace(self, model=self.model.with_params(params), source=source)

  def trainable(self, lora: LoraSettings, seed: int = 0) -> "LanguageModel":
    """The model with fresh adapters, which change nothing until they are trained, or, of rank 0,
    with all of its parameters to be trained.

    Raises:
      InputError: if it has adapters already.
    """
    if self.config.lora.rank:
      raise InputError("the model has adapters already: save it merged and load it again to put "
                       "new ones on it.")
    if not lora.rank:
      if self.config.quantize != "none":
        raise InputError("a quantized model is trained by adapters only: give lora.rank.")
      return dataclasses.replace(self, model=split(self.model.module, adapters_only=False))
    config = dataclasses.replace(self.config, lora=lora)
    # What is frozen then is all that there was; the adapters alone are made.
    shapes = factory.abstract_model(config)
    leaves = named_leaves(self.model.params, self.model.frozen)
    leaves |= factory.fresh_adapters(
      lambda config: Decoder(config, rngs=nnx.Rngs(params=jax.random.key(seed))), config)

    def filled(part):
      return map_named(lambda name, leaf: leaves[name].astype(leaf.dtype), part)

    model = Model(shard(filled(shapes.params), mesh_of(self.model)), filled(shapes.frozen),
                  shapes.static)
    return dataclasses.replace(self, model=model, config=config)


@jax.jit
def _logits(model, token_ids):
  return model.module.logits(token_ids)


def load(path: str, *, dtype: str | None = None, quantize: Scheme = "none", template: str = "auto",
         system: str = "", date: str = DATE, mesh: MeshSettings | None = None) -> LanguageModel:
  """A pretrained checkpoint as a LanguageModel.

  Args:
    path: folder, or name of a model of the hub.
    dtype: of weights and activations; if not given, 'bfloat16' on accelerators, 'float32' on CPUs.
    quantize: 'int8' or 'nf4' keeps the linear kernels in few bits, under adapters.
    template: of prompts, one of `data.tokenizers.TEMPLATES`; 'auto' follows the tokenizer.
    system, date: system turn of conversations that have none, and today's date for templates.
    mesh: where the weights go; split over all devices, if not given.

  Raises:
    InputError: for a checkpoint that is missing, damaged, of an unsupported architecture, or whose
      tensors are not exactly those of its config.json.
  """
  on_cpu = jax.default_backend() == "cpu"
  dtype = dtype or ("float32" if on_cpu else "bfloat16")
  decoder, tokenizer = huggingface.load(
    path, dtype=dtype, quantize=quantize, template=template, system=system, date=date,
    mesh=make_mesh(mesh or MeshSettings()), scan_layers=not on_cpu, remat=not on_cpu)
  # Nothing is trained yet, so that nothing is kept in float32.
  return LanguageModel(split(decoder, adapters_only=True), decoder.config, tokenizer, located(path),
                       huggingface.generation_config(path))

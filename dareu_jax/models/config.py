"""Settings of a decoder, and its full architecture."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.registry import Registry
from dareu_jax.core.settings import Count, PathText, Positive, Size, choice, settings
from dareu_jax.models.attention import Implementation
from dareu_jax.models.quantization import Scheme
from dareu_jax.models.rope import RopeConfig
from dareu_jax.parallel.mesh import MeshSettings

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


def _families() -> Registry:
  from dareu_jax.models.families.base import FAMILIES  # families build on this module
  return FAMILIES


AT_HAND = "a model at hand"  # in place of a path: the model was passed as an object


@settings
class ModelSettings:
  """A decoder: a checkpoint by path or hub name, or dimensions to train one from scratch."""

  path: PathText = ""  # folder or hub name of a checkpoint; '': a model of the dimensions below
  # a registered model family; a checkpoint names its own
  architecture: Annotated[str, choice(lambda: _families().names())] = "llama"
  embed_dim: Count = 128  # D
  mlp_dim: Count = 344  # F
  num_layers: Count = 4  # L
  num_heads: Count = 4  # N
  num_kv_heads: Count = 4  # K
  head_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # H; rotary embeddings need it even
  # Of base weights and activations. 'auto': on CPUs unrolled layers, in bfloat16 if they have
  # matrix units for it (AMX), else in float32; on accelerators bfloat16, with scanned layers that
  # are recomputed in the backward pass
  dtype: Literal["auto", "float32", "bfloat16"] = "float32"
  # Of a checkpoint's linear kernels, under adapters: 'int8' takes half of bfloat16, 'nf4' a quarter
  quantize: Scheme = "none"
  scan_layers: bool = False  # compile one layer and scan it (accelerators), or unroll all (CPU)
  remat: bool = False  # recompute activations in the backward pass: less memory, more time
  # 'cudnn' on NVIDIA GPUs, 'splash' on TPUs; 'auto' takes what can be used.
  attention: Implementation = "auto"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InvalidSetting("num_kv_heads", self.num_kv_heads,
                           f"it must divide num_heads ({self.num_heads}).")

  def decided(self, earlier: Mapping[str, Any] | None = None) -> "ModelSettings":
    """The settings with 'auto' decided: as in earlier settings of the same model, if given, or by
    the devices."""
    if self.dtype != "auto":
      return self
    if earlier is not None and earlier["path"] == self.path:
      return dataclasses.replace(
        self, **{name: earlier[name] for name in ("dtype", "scan_layers", "remat")})
    import jax  # settings are made without it

    on_cpu = jax.default_backend() == "cpu"
    return dataclasses.replace(
      self, dtype="float32" if on_cpu and not cpu_has_bfloat16() else "bfloat16",
      scan_layers=not on_cpu, remat=not on_cpu)


def cpu_has_bfloat16() -> bool:
  """Whether the CPU has matrix units for bfloat16 (AMX), where it is nearly three times as fast as
  float32; without them it is slower. Linux says so."""
  try:
    return "amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return False


@settings
class OriginalSettings:
  """The model to unlearn, where it exists already: it is not fine-tuned."""

  # folder or hub name of a checkpoint, or of a PEFT adapter, which is then trained on; '': the run
  # fine-tunes its own from `model`
  path: PathText = ""


@settings
class RetrainedSettings:
  """A model that never saw the forget data, to compare with."""

  path: PathText = ""  # folder or hub name; '': the run retrains its own, if it fine-tunes


@settings
class LoraSettings:
  """Low-rank adapters (Hu et al. 2021); rank 0 trains all parameters instead."""

  rank: Size = 0  # r
  alpha: Positive = 32.0  # the update is scaled by alpha / rank
  targets: tuple[LoraTarget, ...] = LORA_TARGETS  # linear layers that get an adapter

  def __post_init__(self):
    if self.rank and not self.targets:
      raise InvalidSetting("targets", self.targets, "an adapter needs at least one layer.")

  @property
  def described(self) -> str:
    """What is trained, in words."""
    return f"LoRA of rank {self.rank}" if self.rank else "all parameters"


NO_LORA = LoraSettings(rank=0, alpha=1.0, targets=())


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder's architecture; frozen and hashable, so that it can key a compiled program."""

  vocab_size: int
  embed_dim: int
  mlp_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  architecture: str = "llama"  # the model family, for names in files; the fields below define it
  max_length: int = 2048  # length of pretraining, including RoPE scaling
  rope: RopeConfig = RopeConfig()
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  windows: tuple[int | None, ...] = ()  # sliding window of each layer; (): no layer slides
  num_tokens: int = 0  # ids of the tokenizer, where the embedding has more rows; 0: all of them
  dtype: str = "float32"
  quantize: Scheme = "none"
  scan_layers: bool = False
  remat: bool = False
  attention: Implementation = "auto"  # see attention.causal_attention
  gather_gib: float = MeshSettings.gather_gib  # see Decoder.gathered
  lora: LoraSettings = NO_LORA

  @property
  def layer_windows(self) -> tuple[int | None, ...]:
    """The sliding window of each layer, None if it sees all earlier positions."""
    return self.windows or (None,) * self.num_layers

  @property
  def num_parameters(self) -> int:
    """Base parameters, adapters not counted."""
    attention = self.embed_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
    if self.qkv_bias:
      attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
    attention += self.embed_dim * self.out_bias
    if self.qk_norm:
      attention += 2 * self.head_dim
    mlp = 3 * self.embed_dim * self.mlp_dim + self.mlp_bias * (2 * self.mlp_dim + self.embed_dim)
    layer = attention + mlp + 2 * self.embed_dim
    return self.num_layers * layer + self.num_embedding_parameters + self.embed_dim

  @property
  def num_embedding_parameters(self) -> int:
    """Those of the embedding and of a head of its own, if it has one."""
    return self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)


def from_settings(model: ModelSettings, lora: LoraSettings, vocab_size: int) -> ModelConfig:
  """The config of a decoder trained from scratch."""
  return ModelConfig(
    vocab_size=vocab_size,
    embed_dim=model.embed_dim,
    mlp_dim=model.mlp_dim,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    num_kv_heads=model.num_kv_heads,
    head_dim=model.head_dim,
    architecture=model.architecture,
    dtype=model.dtype,
    quantize=model.quantize,
    scan_layers=model.scan_layers,
    remat=model.remat,
    attention=model.attention,
    lora=lora,
    **_families()[model.architecture].options,
  )

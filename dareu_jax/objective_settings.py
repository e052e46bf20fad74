"""Settings of the loss-based methods, checked: one frozen dataclass a method.

Every one of them minimises

    w_f · forget_coef · L_forget + w_r · (retain_nll_coef · NLL_retain + retain_kl_coef · KL_retain)

with its own L_forget; w_f and w_r are 1 where a method does not say otherwise.
"""

import dataclasses

from dareu_jax.checks import at_least, positive, within


@dataclasses.dataclass(frozen=True)
class Objective:
  """A method whose forget term needs no setting of its own."""

  forget_coef: float  # of the forget term
  retain_nll_coef: float  # of the NLL of retained responses
  retain_kl_coef: float  # of KL(π_N ‖ π) on retained responses

  def check(self, section):
    """Raises InputError for impossible values; `section` is the config key of this block."""
    for name in ("forget_coef", "retain_nll_coef", "retain_kl_coef"):
      at_least(f"{section}.{name}", getattr(self, name), 0.0)

  def weights(self, epoch, multiplier):
    """(w_f, w_r) of the updates of an epoch, counted from 0."""
    del epoch, multiplier
    return 1.0, 1.0


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
  """NPO, DPO."""

  beta: float  # β: how far from the original it goes before it levels off; small is far

  def check(self, section):
    super().check(section)
    positive(f"{section}.beta", self.beta)


@dataclasses.dataclass(frozen=True)
class SimNpo(Preference):
  delta: float  # δ: margin of the mean NLL


@dataclasses.dataclass(frozen=True)
class AltPo(Preference):
  """DPO towards the original's own other answers: of its samples those least like the truth."""

  samples: int  # responses sampled to each forget query
  alternates: int  # of them that are kept
  temperature: float  # that they are sampled at

  def check(self, section):
    super().check(section)
    at_least(f"{section}.alternates", self.alternates, 1)
    at_least(f"{section}.samples", self.samples, self.alternates, "the alternates are among them")
    positive(f"{section}.temperature", self.temperature)


@dataclasses.dataclass(frozen=True)
class Rmu(Objective):
  """Steers the states of one layer; retained states are held by a term of their own."""

  depth: float  # of the layer, as a share of all
  scale: float  # c: length of the random direction
  retain_states_coef: float  # of the squared distance of retained states

  def check(self, section):
    super().check(section)
    within(f"{section}.depth", self.depth, 0.0, 1.0)
    positive(f"{section}.scale", self.scale)
    at_least(f"{section}.retain_states_coef", self.retain_states_coef, 0.0)


@dataclasses.dataclass(frozen=True)
class Undial(Objective):
  strength: float  # what is taken from the logit of the true token

  def check(self, section):
    super().check(section)
    positive(f"{section}.strength", self.strength)


@dataclasses.dataclass(frozen=True)
class Ceu(Objective):
  ignore_first: int  # response tokens left out

  def check(self, section):
    super().check(section)
    at_least(f"{section}.ignore_first", self.ignore_first, 0)


@dataclasses.dataclass(frozen=True)
class Wga(Objective):
  beta: float  # β: 0 is gradient ascent

  def check(self, section):
    super().check(section)
    at_least(f"{section}.beta", self.beta, 0.0)


@dataclasses.dataclass(frozen=True)
class SatImp(Objective):
  beta1: float  # β₁, of saturation
  beta2: float  # β₂, of importance

  def check(self, section):
    super().check(section)
    at_least(f"{section}.beta1", self.beta1, 0.0)
    at_least(f"{section}.beta2", self.beta2, 0.0)


@dataclasses.dataclass(frozen=True)
class Pdu(Objective):
  """Keeps NLL_retain below a target by a multiplier: w_r = λ."""

  multiplier: float  # λ at the start
  step_size: float  # η
  target: float  # ε, nats a token
  warmup_epochs: int  # before λ moves

  def check(self, section):
    super().check(section)
    at_least(f"{section}.multiplier", self.multiplier, 0.0)
    at_least(f"{section}.step_size", self.step_size, 0.0)
    at_least(f"{section}.target", self.target, 0.0)
    at_least(f"{section}.warmup_epochs", self.warmup_epochs, 0)
    positive(f"{section}.retain_nll_coef", self.retain_nll_coef)  # it is what the multiplier weighs

  def weights(self, epoch, multiplier):
    return 1.0, multiplier


@dataclasses.dataclass(frozen=True)
class Scrub(Objective):
  """Epochs that maximise the KL on forget data, in turns with epochs on retained data."""

  def weights(self, epoch, multiplier):
    return (1.0, 0.0) if epoch % 2 == 0 else (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class TaskVector(Objective):
  """Learns the forget data once more, and goes the other way."""

  alpha: float  # α: how far

  def check(self, section):
    super().check(section)
    positive(f"{section}.alpha", self.alpha)


@dataclasses.dataclass(frozen=True)
class Objectives:
  """All of them, by the name that config.method takes."""

  gradient_ascent: Objective
  grad_diff: Objective
  kl_minimisation: Objective
  npo: Preference
  simnpo: SimNpo
  dpo: Preference
  idk: Objective
  altpo: AltPo
  rmu: Rmu
  undial: Undial
  ceu: Ceu
  wga: Wga
  satimp: SatImp
  pdu: Pdu
  maximum_entropy: Objective
  scrub: Scrub
  task_vector: TaskVector
  finetune: Objective

  def __post_init__(self):
    for field in dataclasses.fields(self):
      getattr(self, field.name).check(f"objectives.{field.name}")


NAMES = tuple(field.name for field in dataclasses.fields(Objectives))

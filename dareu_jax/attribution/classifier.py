"""The owner classifier: trained on response prefixes, so that one pass scores every prefix.

The trunk is causal and the owner head sits on every position: p(owner | y_≤t) for all t costs what
p(owner | y) costs. B batch, T time, O owners.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, Shaped
from pydantic import Field
from scipy import optimize, special

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.masked import Array, join, length_mask, masked_sum, take_from
from dareu_jax.core.settings import Count, Fraction, Size, settings
from dareu_jax.data.batches import Batch
from dareu_jax.models.config import LoraSettings, ModelSettings
from dareu_jax.models.handle import Model
from dareu_jax.models.heads import OwnerClassifier
from dareu_jax.training.optimizers import TrainSettings

Query = tuple[Array, Array]  # prompt_ids [B, P], prompt_lengths [B]
Scalar = Shaped[Array, ""]
Number = float | Float[Array, ""]
Share = Annotated[float, Field(ge=0, le=0.9)]


@settings
class ClassifierSettings:
  """The owner classifier p(owner | response prefix)."""

  model: ModelSettings = ModelSettings(num_layers=1)
  lora: LoraSettings = LoraSettings()
  # Classifiers whose mean is the score, each from another seed: what a single one overlooks can be
  # exploited. The judge has as many of its own.
  members: Count = 1
  # 20 epochs were too few to detect facts attributed to someone else
  train: TrainSettings = TrainSettings()
  vocab_size: Size = 0  # of its own BPE, if from scratch; 0: the model's tokenizer
  token_noise: Share = 0.2  # share of input tokens replaced at random while training
  echo_noise: Fraction = 0.8  # share of those also in the query (names), by tokens of other queries
  # Read a filler in place of each token that is also in the query, while training and scoring; for
  # pretrained tokenizers, with which noise alone does not make names say nothing
  hide_echoes: bool = False
  label_smoothing: Share = 0.0  # probability mass spread over all owners while training
  # "None of these" examples of general text per example of D; 0: no such class.
  none_share: Annotated[float, Field(ge=0, le=10)] = 0.0
  reads_query: bool = False  # read the query before the response
  calibrate: bool = False  # divide the logits by a temperature fitted on held-out responses

  def __post_init__(self):
    if self.hide_echoes and self.reads_query:
      raise InvalidSetting("hide_echoes", True, "reads_query is on, and a query that is read hides "
                           "nothing: turn one of them off.")
    if 0 < self.vocab_size < 300:
      raise InvalidSetting("vocab_size", self.vocab_size,
                           "bytes and special tokens take 300, so it must be >= 300, or 0.")
    if self.vocab_size and self.model.path:
      raise InvalidSetting("vocab_size", self.vocab_size,
                           "model.path names a checkpoint, which has a tokenizer: set it to 0.")
    if self.lora.rank and not self.model.path:
      raise InvalidSetting("lora.rank", self.lora.rank,
                           "model.path is empty, and an adapter on random base weights learns "
                           "little: name a checkpoint, or set the rank to 0.")


@dataclasses.dataclass(frozen=True)
class PrefixLoss:
  """Summed cross-entropy of the owner at every prefix, for `training.supervised.fit`.

  A policy's responses differ from the training texts, and a classifier that has seen only those
  relies on their first words and is overconfident. So half of the rows start at a random token
  within the response, and a share of the input tokens is replaced at random. Tokens that also occur
  in the query, above all the owner's name, are replaced at a separate rate, by a passage of another
  row's query, ideally another owner's name. Names are the easiest cue, and a classifier that relies
  on them misses the same facts attributed to somebody else. With a `filler` they are not read.
  """

  token_noise: float
  echo_noise: float
  label_smoothing: float
  reads_query: bool = False
  filler: int | None = None  # replaces each token that is also in the query, if given

  def __call__(self, params: Any, model: Model, batch: Batch,
               key: Key[Array, ""]) -> tuple[Scalar, Scalar, dict[str, Scalar]]:
    """Returns (loss sum, number of prefixes, {"accuracy": sum of hits})."""
    classifier = model.with_params(params).module
    crop, flip, replacement, other_query = jax.random.split(key, 4)
    ids, lengths = random_crop(batch.completion_ids, batch.completion_lengths, crop)
    prompts = batch.token_ids, batch.prompt_lengths
    echo = echoes(ids, *prompts)
    noise = jax.random.randint(
      replacement, ids.shape, 0, classifier.decoder.config.vocab_size)
    names: int | Array
    if self.filler is None:
      names, echo_rate = from_other_queries(echo, *prompts, other_query), self.echo_noise
    else:
      names, echo_rate = self.filler, 1.0
    noise = jnp.where(echo, names, noise)
    rate = jnp.where(echo, echo_rate, self.token_noise)
    noisy = jnp.where(jax.random.bernoulli(flip, rate, ids.shape), noise, ids)
    # Overwrites the completion that follows the prompt.
    query = prompts if self.reads_query else None
    logprobs = jax.nn.log_softmax(owner_logits(classifier, noisy, query), axis=-1)
    owners = batch.owners[:, None, None]
    chosen = jnp.take_along_axis(logprobs, owners, axis=-1)[..., 0]
    smooth = self.label_smoothing
    loss = -(1 - smooth) * chosen - smooth * jnp.mean(logprobs, axis=-1)
    mask = length_mask(lengths, ids.shape[1])
    hits = jnp.argmax(logprobs, axis=-1) == owners[..., 0]
    return masked_sum(loss, mask), jnp.sum(mask), {"accuracy": masked_sum(hits * 1.0, mask)}


def owner_logits(model: OwnerClassifier, completion_ids: Int[Array, "B T"],
                 query: Query | None = None) -> Float[Array, "B T O"]:
  """Owner logits after each token of the completions, read alone or after their queries.

  Args:
    model: the classifier.
    completion_ids: right-padded.
    query: None, or (prompt_ids [B, P], prompt_lengths [B]).

  Returns: float32; entry t has read y_≤t.
  """
  if query is None:
    return model(completion_ids)
  ids, lengths = query
  logits = model(join(ids, lengths, completion_ids))
  return take_from(logits, lengths, completion_ids.shape[1])


def echoes(ids: Int[Array, "B T"], prompt_ids: Int[Array, "B P"],
           prompt_lengths: Int[Array, " B"]) -> Bool[Array, "B T"]:
  """Which tokens also occur in their row's prompt.

  Args:
    ids: token ids of the responses.
    prompt_ids: tokens after the prompt are ignored.
    prompt_lengths: lengths of the prompts.
  """
  same = ids[:, :, None] == prompt_ids[:, None, :]
  return jnp.any(same & length_mask(prompt_lengths, prompt_ids.shape[1])[:, None, :], axis=-1)


@jax.jit
def without_echoes(ids: Int[Array, "B T"], query: Query,
                   filler: int | Int[Array, ""]) -> Int[Array, "B T"]:
  """The responses with a filler in place of each token that also occurs in the query."""
  return jnp.where(echoes(ids, *query), filler, ids)


def from_other_queries(echo: Bool[Array, "B T"], prompt_ids: Int[Array, "B P"],
                       prompt_lengths: Int[Array, " B"],
                       key: Key[Array, ""]) -> Int[Array, "B T"]:
  """For each token, one from another row's prompt; a row's echoes get consecutive tokens of it.

  Args:
    echo: which tokens occur in their row's prompt.
    prompt_ids: tokens after the prompt are ignored.
    prompt_lengths: lengths of the prompts.
    key: random key.
  """
  rows = echo.shape[0]
  which, where = jax.random.split(key)
  other_rows = (jnp.arange(rows) + jax.random.randint(which, (rows,), 1, max(2, rows))) % rows
  start = jax.random.randint(where, (rows, 1), 0, prompt_ids.shape[1])
  # A padding row has no prompt.
  index = (start + jnp.cumsum(echo, axis=1)) % jnp.maximum(prompt_lengths[other_rows], 1)[:, None]
  return jnp.take_along_axis(prompt_ids[other_rows], index, axis=1)


def random_crop(ids: Int[Array, "B T"], lengths: Int[Array, " B"],
                key: Key[Array, ""]) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
  """Drops a random number of leading tokens from half of the rows; at least one stays.

  Args:
    ids: token ids of the responses.
    lengths: their lengths.
    key: random key.

  Returns: (ids shifted to the left, lengths).
  """
  rows, starts = jax.random.split(key)
  start = jax.random.uniform(starts, lengths.shape) * jnp.maximum(lengths - 1, 0)
  start = jnp.where(jax.random.bernoulli(rows, 0.5, lengths.shape), start.astype(jnp.int32), 0)
  index = jnp.minimum(jnp.arange(ids.shape[1]) + start[:, None], ids.shape[1] - 1)
  return jnp.take_along_axis(ids, index, axis=1), lengths - start


@jax.jit
def owner_probabilities(model: Model, completion_ids: Int[Array, "B T"], query: Query | None = None,
                        temperature: Number = 1.0) -> Float[Array, "B T O"]:
  """p(owner | y_≤t) for every prefix, from one forward pass.

  Args:
    model: an OwnerClassifier.
    completion_ids, query: as for `owner_logits`.
    temperature: divides the logits.

  Returns: float32; entries past a row's length are arbitrary.
  """
  logits = owner_logits(model.module, completion_ids, query)
  return jax.nn.softmax(logits / temperature, axis=-1)


@jax.jit
def prefix_scores(model: Model, completion_ids: Int[Array, "B T"],
                  is_forget: Shaped[Array, " O"], *, query: Query | None = None,
                  temperature: Number = 1.0) -> Float[Array, "B T"]:
  """b(y_≤t) = Σ_{i in F} p(i | y_≤t) for every prefix.

  Args:
    model, completion_ids, query, temperature: as for `owner_probabilities`.
    is_forget: membership in F.

  Returns: float32 in [0, 1]; entries past a row's length are arbitrary.

  Source: DareU, attribution score.
  """
  probabilities = owner_probabilities(model, completion_ids, query, temperature)
  return jnp.clip(probabilities @ is_forget.astype(jnp.float32), 0.0, 1.0)


def fit_temperature(probabilities: Float[np.ndarray, "E O"],
                    owners: Int[np.ndarray, " E"]) -> float:
  """The temperature that makes the right owners likeliest: argmin_T of the NLL of softmax(z / T).

  Args:
    probabilities: at temperature 1.
    owners: the truth.

  Returns: a number in [0.05, 20].

  Source: Guo et al. 2017, temperature scaling.
  """
  logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))
  rows = np.arange(len(owners))

  def nll(log_temperature):
    z = logits / np.exp(log_temperature)
    return np.mean(special.logsumexp(z, axis=1) - z[rows, owners])

  bounds = (np.log(0.05), np.log(20.0))
  return float(np.exp(optimize.minimize_scalar(nll, bounds=bounds, method="bounded").x))


def at_temperature(probabilities: Float[np.ndarray, "E O"],
                   temperature: float) -> Float[np.ndarray, "E O"]:
  """Probabilities at another temperature than the 1 that they were made at."""
  return special.softmax(np.log(np.maximum(probabilities, 1e-30)) / temperature, axis=-1)


def accuracy_and_calibration(probabilities: Float[np.ndarray, "E O"],
                             owners: Int[np.ndarray, " E"], *,
                             bins: int = 10) -> tuple[float, float]:
  """Top-1 accuracy and expected calibration error.

      ECE = Σ_bins (share of examples) · | accuracy - mean confidence |

  Args:
    probabilities: p(owner | response) of each example.
    owners: the truth.
    bins: equal-width confidence bins.

  Returns: (accuracy, ece), in [0, 1].

  Source: Guo et al. 2017, eq. 3.
  """
  probabilities, owners = np.asarray(probabilities), np.asarray(owners)
  confidence = probabilities.max(axis=1)
  hit = probabilities.argmax(axis=1) == owners
  index = np.minimum((confidence * bins).astype(int), bins - 1)
  gaps = [abs(hit[index == b].sum() - confidence[index == b].sum()) for b in range(bins)]
  return float(hit.mean()), float(sum(gaps) / len(owners))

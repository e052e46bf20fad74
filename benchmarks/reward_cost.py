"""What the reward step costs: one causal pass against a pass for each segment.

    pip install . && python benchmarks/reward_cost.py

One minute on 2 cores. The reward step is what the learner does with sampled responses: scores of
all prefixes by the run's `Scorer`, then token rewards. The oracle invokes the same scorer once a
segment, on the prefix alone, as the method is written down; both must give the same rewards.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.handle import split
from dareu_jax.models.heads import OwnerClassifier
from dareu_jax.rl.rewards import LogTransform, token_rewards

ROWS, LENGTH, OWNERS, ROUNDS = 80, 64, 30, 15
KAPPAS = (1, 2, 4, 8, 16, 32, 64)
CONFIG = ModelConfig(vocab_size=2000, embed_dim=128, mlp_dim=344, num_layers=2, num_heads=4,
                     num_kv_heads=4, head_dim=32)


def one_pass(scorer: Scorer, ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"],
             kl: Float[np.ndarray, "B T"], *, kappa: int) -> Float[Array, "B T"]:
  """Token rewards from one pass."""
  return _rewards(scorer.prefixes(ids, lengths, ()), lengths, kl, kappa)


def per_prefix(scorer: Scorer, ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"],
               kl: Float[np.ndarray, "B T"], *, kappa: int) -> Float[Array, "B T"]:
  """Token rewards from a pass for each segment, each on its prefix alone."""
  scores = np.zeros(ids.shape, np.float32)
  for end in range(kappa, LENGTH + 1, kappa):
    scores[:, end - 1] = scorer.prefixes(ids[:, :end], lengths, ())[:, -1]
  return _rewards(scores, lengths, kl, kappa)


@functools.partial(jax.jit, static_argnames="kappa")
def _rewards(scores, lengths, kl, kappa):
  return token_rewards(scores, lengths, kl, segment_length=kappa, transform=LogTransform(0.01, 1.0),
                       kl_coef=0.1, form="neutral", max_length=LENGTH)


def seconds(steps: Sequence[Callable]) -> Float[np.ndarray, " steps"]:
  """The median time of each function over rounds in which all take turns."""
  for step in steps:
    jax.block_until_ready(step())
  times = np.zeros((ROUNDS, len(steps)))
  for row in times:
    for i, step in enumerate(steps):
      start = time.perf_counter()
      jax.block_until_ready(step())
      row[i] = time.perf_counter() - start
  return np.median(times, axis=0)


def main() -> None:
  """Prints the table."""
  model = split(OwnerClassifier(CONFIG, OWNERS, rngs=nnx.Rngs(params=0)), adapters_only=False)
  scorer = Scorer((model,), is_forget=np.arange(OWNERS) < 3, batch_size=ROWS, multiple=16,
                  to_device=functools.partial(jax.tree.map, jnp.asarray))
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 2000, (ROWS, LENGTH)).astype(np.int32)
  lengths = np.full(ROWS, LENGTH)  # a multiple of every κ: the oracle has no pass for a ragged end
  kl = rng.uniform(0, 0.1, (ROWS, LENGTH)).astype(np.float32)
  args = (scorer, ids, lengths, kl)
  one = [functools.partial(one_pass, *args, kappa=kappa) for kappa in KAPPAS]
  each = functools.partial(per_prefix, *args, kappa=4)
  difference = np.abs(np.asarray(one[KAPPAS.index(4)]()) - np.asarray(each())).max()
  *times, oracle = seconds([*one, each])
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {ROWS} responses of {LENGTH} "
        "tokens, medians\n")
  print("| κ | reward step, ms | against κ = 1 |\n|--:|--:|--:|")
  for kappa, taken in zip(KAPPAS, times, strict=True):
    print(f"| {kappa} | {1e3 * taken:.1f} | {taken / times[0] - 1:+.1%} |")
  print(f"\nper-prefix oracle at κ = 4: {1e3 * oracle:.1f} ms, "
        f"{oracle / times[KAPPAS.index(4)]:.1f} times one pass; largest difference of a reward "
        f"{difference:.1e}")


if __name__ == "__main__":
  main()

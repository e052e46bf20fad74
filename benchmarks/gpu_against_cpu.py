"""Whether a GPU computes what the CPU does: logits, gradients, samples, attention by cuDNN.

    JAX_PLATFORMS=cuda,cpu python -m benchmarks.gpu_against_cpu

From the project's folder, on a machine with an NVIDIA GPU. One process holds both devices, and the
same weights, texts and seeds are computed on each.
"""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from dareu_jax.core.numerics import exact_matmuls
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy, Sample
from dareu_jax.models.attention import causal_attention
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.handle import Model, split
from tests.golden.update_training import PATH, golden

ROWS, LENGTH, NEW = 16, 192, 64
CONFIG = ModelConfig(vocab_size=4000, embed_dim=512, mlp_dim=1376, num_layers=6, num_heads=8,
                     num_kv_heads=2, head_dim=64, qk_norm=True, tie_embeddings=False)


def on_both(function: Callable, *args: Any) -> list[Any]:
  """What a function of arrays gives on the CPU and on the GPU, as numpy."""
  results = []
  for device in (jax.devices("cpu")[0], jax.devices("gpu")[0]):
    with jax.default_device(device):
      result = function(*jax.device_put(args, device))
    results.append(jax.tree.map(np.asarray, result))
  return results


def distance(result: Any, expected: Any) -> float:
  """‖result - expected‖ / ‖expected‖ over all leaves."""
  result, expected = (np.concatenate([np.asarray(leaf, np.float64).ravel()
                                      for leaf in jax.tree.leaves(tree)])
                      for tree in (result, expected))
  return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def make_model() -> Model:
  """A decoder whose logits are neither uniform nor decided."""
  model = split(Decoder(CONFIG, rngs=nnx.Rngs(params=jax.random.key(0))), adapters_only=False)
  return model.with_params(
    jax.tree.map(lambda x: x * 1.5 if x.ndim > 1 else x, model.params))


def forward_and_backward(
    model: Model, token_ids: Int[np.ndarray, "B T"]) -> Iterator[tuple[str, float]]:
  """Rows (what, distance) of logits and of the gradient of the mean NLL."""

  @jax.jit
  def run(model, token_ids):
    def loss(params):
      logits = model.with_params(params).module.logits(token_ids)
      nll = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), token_ids[:, 1:, None], -1)
      return nll.mean(), logits

    return jax.grad(loss, has_aux=True)(model.params)

  (cpu_gradient, cpu), (gpu_gradient, gpu) = on_both(run, model, token_ids)
  yield "logits, float32", distance(gpu, cpu)
  yield "gradient of the mean NLL, float32", distance(gpu_gradient, cpu_gradient)


def samples(model: Model, token_ids: Int[np.ndarray, "B T"]) -> Iterator[tuple[str, float]]:
  """Rows (what, share of tokens that differ) of cached decoding."""
  lengths = np.linspace(8, LENGTH, ROWS).astype(np.int32)
  for name, strategy in (("greedy tokens", Greedy()), ("sampled tokens", Sample(temperature=0.85))):
    def run(model, token_ids, lengths, strategy=strategy):
      keys = row_keys(jax.random.key(0), np.arange(ROWS))
      return generate(model, token_ids, lengths, keys, strategy=strategy, max_new_tokens=NEW,
                      eos_id=CONFIG.vocab_size, pad_id=0)
    cpu, gpu = on_both(run, model, token_ids, lengths)
    yield f"{name}: share that differs", float(np.mean(cpu.ids != gpu.ids))
    yield f"{name}: their log-probs", distance(gpu.logprobs, cpu.logprobs)


def attention() -> Iterator[tuple[str, float]]:
  """Rows (what, distance) of attention in bfloat16 from float32 on the CPU."""
  rng = np.random.default_rng(0)
  for time, heads, kv_heads, head_dim in ((200, 16, 16, 128), (256, 32, 4, 64)):
    q, k, v = (jnp.asarray(rng.normal(size=(4, time, n, head_dim)), jnp.bfloat16)
               for n in (heads, kv_heads, kv_heads))
    weight = rng.normal(size=q.shape).astype(np.float32)

    def run(q, k, v, implementation, weight=weight):
      def total(*qkv):
        y = causal_attention(*qkv, implementation=implementation)
        return jnp.sum(weight * y), y

      return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    with jax.default_device(jax.devices("cpu")[0]):
      exact_gradient, exact = run(
        *(jnp.asarray(x, jnp.float32) for x in jax.device_put((q, k, v), jax.devices("cpu")[0])),
        implementation="xla")
    for implementation in ("xla", "cudnn"):
      gradient, y = run(q, k, v, implementation)
      shape = f"{implementation}, {time} positions, {heads}/{kv_heads} heads of {head_dim}"
      yield f"attention {shape}", distance(y, exact)
      yield f"its gradient {shape}", distance(gradient, exact_gradient)


def golden_losses() -> Iterator[tuple[str, float]]:
  """Rows (what, largest relative difference) of the first hundred steps of the smallest model."""
  expected = np.array(json.loads(PATH.read_text())["losses"])
  difference = np.max(np.abs(np.array(golden()["losses"]) / expected - 1))
  yield "losses of 100 golden steps", float(difference)


def main() -> None:
  """Prints a table."""
  with exact_matmuls():
    _main()


def _main():
  with jax.default_device(jax.devices("cpu")[0]):
    model = make_model()
  token_ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (ROWS, LENGTH)).astype(
    np.int32)
  print(f"{jax.devices('gpu')[0].device_kind}, jax {jax.__version__}\n")
  print("| what | distance |\n|---|--:|")
  for rows in (attention, functools.partial(forward_and_backward, model, token_ids),
               golden_losses, functools.partial(samples, model, token_ids)):
    for what, value in rows():
      print(f"| {what} | {value:.1e} |", flush=True)


if __name__ == "__main__":
  main()

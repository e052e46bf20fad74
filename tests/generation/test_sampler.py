"""Cached decoding against the full forward pass, and what a row's sample may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dareu_jax.core.logprobs import completion_hidden, logprobs_and_entropy
from dareu_jax.generation import sampler
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy, Sample
from dareu_jax.models import handle
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.rope import RopeConfig
from studies.scaling import hlo

B, P, T, V = 4, 6, 8, 40
LENGTHS = np.array([3, 6, 1, 4])
NEVER = V + 1  # an end-of-sequence id that no model samples
GREEDY, SAMPLE = Greedy(), Sample(temperature=0.7)


def make_model(seed=0, scan_layers=False, windows=(), num_tokens=0):
  """A decoder whose logits are neither uniform nor decided; drawn by numpy, to compile nothing."""
  config = ModelConfig(
    vocab_size=V, embed_dim=16, mlp_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    rope=RopeConfig(theta=100.0), qk_norm=True, tie_embeddings=False, scan_layers=scan_layers,
    windows=windows, num_tokens=num_tokens)
  gain = {"embedding": 4.0, "lm_head": 3.0, "scale": 4.0}

  def draw(path, layer, shape):
    name = [part for part in path if isinstance(part, str)]
    rng = np.random.default_rng([seed, layer, *"/".join(name).encode()])
    return (gain.get(name[-1], 1.0) * shape[0] ** -0.5 * rng.normal(size=shape)).astype(np.float32)

  shapes = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0)))
  graphdef, state = nnx.split(shapes)
  flat = {}
  for path, leaf in nnx.to_flat_state(state):
    if path[0] != "layers":
      value = draw(path, 0, leaf.shape)
    elif scan_layers:
      value = np.stack([draw(path, i, leaf.shape[1:]) for i in range(2)])
    else:
      value = draw(path, path[1], leaf.shape)
    flat[path] = leaf.replace(jnp.asarray(value))
  return handle.split(nnx.merge(graphdef, nnx.from_flat_state(flat)), adapters_only=False)


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.fixture(scope="module")
def prompts():
  return np.random.default_rng(1).integers(0, V, (B, P)).astype(np.int32)  # padding is random ids


@pytest.fixture(scope="module")
def full_forward(model):
  """Logits [B, S, V] without a cache."""

  @jax.jit
  def run(token_ids):
    return model.module.logits(token_ids)

  return lambda token_ids: np.asarray(run(token_ids))


def complete(model, prompts, lengths=LENGTHS, *, strategy=GREEDY, keys=None, eos_id=NEVER,
             pad_id=0):
  keys = row_keys(jax.random.key(0), np.arange(len(prompts))) if keys is None else keys
  got = generate(model, jnp.asarray(prompts), jnp.asarray(lengths), keys, strategy=strategy,
                 max_new_tokens=T, eos_id=eos_id, pad_id=pad_id)
  return jax.tree.map(np.asarray, got)


@pytest.fixture(scope="module")
def greedy(model, prompts):
  return complete(model, prompts)


@pytest.fixture(scope="module")
def sampled(model, prompts):
  before = generate._cache_size()
  completions = complete(model, prompts, strategy=SAMPLE)
  assert generate._cache_size() == before + 1  # the control of test_later_calls_compile_nothing
  return completions


def joined(prompts, completions):
  """[B, P+T]: each row's prompt and completion without a gap, 0 beyond."""
  rows = np.zeros((B, P + T), np.int32)
  for row, (n, m) in enumerate(zip(LENGTHS, completions.lengths, strict=True)):
    rows[row, : n + m] = [*prompts[row, :n], *completions.ids[row, :m]]
  return rows


def test_greedy_equals_repeated_full_forward(greedy, prompts, full_forward):
  """A wrong slot, position or mask of the cache; short prompts have a gap before the completion."""
  rows = np.zeros((B, P + T), np.int32)
  for row, n in enumerate(LENGTHS):
    rows[row, :n] = prompts[row, :n]
  expected = np.zeros((B, T), np.int32)
  for step in range(T):
    logits = full_forward(rows)
    for row, n in enumerate(LENGTHS):
      expected[row, step] = rows[row, n + step] = np.argmax(logits[row, n + step - 1])
  np.testing.assert_array_equal(greedy.ids, expected)
  assert len(np.unique(expected)) > 6  # a model that repeats itself would hide a wrong position


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_sliding_windows_go_by_position_in_the_cache(scan_layers, prompts):
  """The gap between a short prompt and its completion is no distance."""
  model = make_model(scan_layers=scan_layers, windows=(None, 3))
  got = complete(model, prompts)
  rows = joined(prompts, got)
  logits = np.asarray(jax.jit(lambda: model.module.logits(rows))())
  expected = [[logits[row, n - 1 + t].argmax() for t in range(T)] for row, n in enumerate(LENGTHS)]
  np.testing.assert_array_equal(got.ids, expected)
  assert (got.ids != complete(make_model(scan_layers=scan_layers), prompts).ids).any()


def test_scanned_layers_decode_alike(greedy, prompts):
  """The stacked cache: another layer's keys and values, or one cache for all."""
  got = complete(make_model(scan_layers=True), prompts)
  np.testing.assert_array_equal(got.ids, greedy.ids)
  np.testing.assert_allclose(got.logprobs, greedy.logprobs, atol=1e-5)


def test_sampler_and_learner_agree_on_logprobs_at_temperature(model, sampled, prompts,
                                                              full_forward):
  """The ratio of the first PPO update must be 1: same temperature, same positions."""
  rows = joined(prompts, sampled)
  logits = full_forward(rows).astype(np.float64) / 0.7
  dense = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  expected = np.stack([
    [dense[row, n - 1 + t, sampled.ids[row, t]] for t in range(T)]
    for row, n in enumerate(LENGTHS)])
  np.testing.assert_allclose(sampled.logprobs, expected, atol=1e-5)

  @jax.jit
  def learn():
    module = model.module
    hidden = completion_hidden(module.hidden_states(rows), jnp.asarray(LENGTHS), T)
    return [logprobs_and_entropy(hidden, module.head, sampled.ids, Sample(t).logprobs)[0]
            for t in (0.7, 1.0)]

  learner, other_temperature = learn()
  np.testing.assert_allclose(sampled.logprobs, learner, atol=1e-5)
  assert np.abs(sampled.logprobs - other_temperature).max() > 0.01  # the control


@pytest.mark.parametrize("strategy", [Sample(0.7, top_p=0.8), Sample(0.7, top_k=5, top_p=0.9)],
                         ids=["top_p", "top_k_top_p"])
def test_sampler_and_learner_agree_on_a_truncated_distribution(strategy, model, prompts):
  """The learner that leaves the truncation out optimizes another policy than the one that sampled."""
  got = complete(model, prompts, strategy=strategy)

  @jax.jit
  def learn():
    module = model.module
    hidden = module.hidden_states(joined(prompts, got))
    hidden = completion_hidden(hidden, jnp.asarray(LENGTHS), T)
    return [logprobs_and_entropy(hidden, module.head, got.ids, s.logprobs)
            for s in (strategy, Sample(0.7))]

  (learner, entropies), (untruncated, _) = learn()
  np.testing.assert_allclose(got.logprobs, learner, atol=1e-5)
  np.testing.assert_allclose(got.entropies, entropies, atol=1e-5)
  assert np.abs(got.logprobs - untruncated).max() > 0.05  # the control


def test_a_sample_depends_on_its_own_key_alone(model, sampled, prompts):
  """With one key for the batch, or keys by place in it, a resumed run would draw another sample."""
  keys = row_keys(jax.random.key(0), np.arange(B))
  order = np.array([2, 0, 3, 1])
  permuted = complete(model, prompts[order], LENGTHS[order], strategy=SAMPLE, keys=keys[order])
  np.testing.assert_array_equal(permuted.ids, sampled.ids[order])
  np.testing.assert_allclose(permuted.logprobs, sampled.logprobs[order], atol=1e-5)
  mates = np.array(prompts)
  mates[1:] = (mates[1:] + 5) % V
  mates_lengths = np.array([LENGTHS[0], 2, 5, 6])
  others = complete(model, mates, mates_lengths, strategy=SAMPLE,
                    keys=keys.at[1:].set(row_keys(jax.random.key(9), np.arange(B - 1))))
  np.testing.assert_array_equal(others.ids[0], sampled.ids[0])
  assert (others.ids[1:] != sampled.ids[1:]).any(axis=-1).all()


def test_padding_width_changes_no_sample(model, sampled, prompts):
  """Buckets of other lengths: the completion starts at another slot but the same position."""
  wide = np.full((B, P + 3), 7, np.int32)
  for row, n in enumerate(LENGTHS):
    wide[row, :n] = prompts[row, :n]
  got = complete(model, wide, strategy=SAMPLE)
  np.testing.assert_array_equal(got.ids, sampled.ids)
  np.testing.assert_allclose(got.logprobs, sampled.logprobs, atol=1e-5)


def test_another_key_gives_another_sample(model, sampled, prompts):
  """The same seed at every call: every epoch would train on one and the same rollout."""
  got = complete(model, prompts, strategy=SAMPLE, keys=row_keys(jax.random.key(1), np.arange(B)))
  assert (got.ids != sampled.ids).any(axis=-1).all()
  same = complete(model, np.tile(prompts[:1], (B, 1)), np.full(B, 3), strategy=SAMPLE)
  assert len({tuple(row) for row in same.ids}) == B


@pytest.mark.parametrize("scan_layers", [False, True])
def test_completions_of_one_prompt_are_those_of_its_copies(scan_layers, prompts):
  """Each has a cache of its own behind the prompt that is read once."""
  model, copies = make_model(scan_layers=scan_layers), np.repeat(np.arange(2), 2)
  want = complete(model, prompts[copies], LENGTHS[copies], strategy=SAMPLE)
  got = complete(model, prompts[:2], LENGTHS[:2], strategy=SAMPLE,
                 keys=row_keys(jax.random.key(0), np.arange(B)))
  np.testing.assert_array_equal(got.ids, want.ids)
  np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
  assert len({tuple(row) for row in got.ids}) == B


def test_row_keys_depend_on_the_rows_number_and_not_its_place():
  """A batch that starts elsewhere must draw the same for the same row."""
  key = jax.random.key(3)
  few, many = row_keys(key, [5, 2]), row_keys(key, np.arange(8))
  data = [jax.random.key_data(keys) for keys in (few, many)]
  np.testing.assert_array_equal(data[0], data[1][np.array([5, 2])])
  assert len(np.unique(data[1], axis=0)) == 8


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_rows_end_at_eos_and_count_it(pad_is_eos, model, greedy, prompts):
  """A mask guessed from the pad id loses the EOS token itself; later tokens must be pad."""
  eos_id = int(greedy.ids[0, 3])
  pad_id = eos_id if pad_is_eos else NEVER
  got = complete(model, prompts, eos_id=eos_id, pad_id=pad_id)
  for row in range(B):
    expected = list(greedy.ids[row])
    ended = eos_id in expected
    length = expected.index(eos_id) + 1 if ended else T
    assert got.lengths[row] == length and got.ended[row] == ended
    np.testing.assert_array_equal(got.ids[row], expected[:length] + [pad_id] * (T - length))
    np.testing.assert_allclose(got.logprobs[row, :length], greedy.logprobs[row, :length], atol=1e-5)
    assert not got.logprobs[row, length:].any()
  assert got.ended[0] and not got.ended.all()
  assert got.steps == got.lengths.max()


def test_the_limit_is_no_end(greedy):
  """A cut row is not one that ended: its reward and its length statistics differ."""
  assert not greedy.ended.any()
  np.testing.assert_array_equal(greedy.lengths, T)
  assert greedy.steps == T


def test_decoding_stops_when_all_rows_are_done(model, greedy, prompts):
  """Without an early stop every batch costs the longest completion allowed."""
  almost_done = np.concatenate([prompts[0, :3], greedy.ids[0, :3]])
  got = complete(model, np.tile(almost_done, (B, 1)), np.full(B, P),
                 eos_id=int(greedy.ids[0, 3]), pad_id=NEVER)
  assert got.steps == 1
  np.testing.assert_array_equal(got.lengths, 1)
  assert got.ended.all()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_that_end_late_are_as_they_would_be_in_the_whole_batch(scan_layers, monkeypatch):
  """They go on in a batch of their own: with another row's cache or key they were other texts."""
  rng = np.random.default_rng(2)
  model = make_model(scan_layers=scan_layers)
  ids, lengths = rng.integers(0, V, (8, P)).astype(np.int32), rng.integers(1, P + 1, 8)
  args = model, ids, lengths, row_keys(jax.random.key(0), np.arange(16))

  def completed(last, eos_id):
    monkeypatch.setattr(sampler, "STRAGGLERS", last)
    run = functools.partial(generate.__wrapped__, strategy=SAMPLE, max_new_tokens=24, pad_id=0,
                            eos_id=eos_id)
    return jax.jit(run)(*args)

  tokens, counts = np.unique(completed(4, NEVER).ids, return_counts=True)
  common = int(tokens[np.argsort(counts)[-3]])  # rows end here and there, and some at the limit
  parted, whole = completed(4, common), completed(1000, common)
  assert len(set(np.asarray(whole.lengths).tolist())) > 4
  for name, ours, theirs in zip(parted._fields, parted, whole, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)


def test_later_calls_compile_nothing(model, sampled, prompts):
  """A static part or a strategy compared by identity would compile at every call."""
  before = generate._cache_size()
  complete(model, prompts[::-1], LENGTHS[::-1], strategy=Sample(temperature=0.7),
           keys=row_keys(jax.random.key(8), np.arange(B)))
  complete(make_model(seed=4), prompts, strategy=Sample(temperature=0.7))  # with an equal static part
  assert generate._cache_size() == before


def test_a_token_copies_no_cache():
  """Of what is written only the token's own slots are: its traffic is 4.7 caches, with weights and
  what comes in between. Handed through a scan layer by layer it was 14.2."""
  slots = 250
  model = make_model(scan_layers=True)
  keys = row_keys(jax.random.key(0), np.arange(B))
  compiled = generate.lower(
    model, np.zeros((B, P), np.int32), LENGTHS, keys, strategy=GREEDY,
    max_new_tokens=slots, eos_id=NEVER, pad_id=0).compile()
  cache = sum(leaf.nbytes for leaf in jax.tree.leaves(
    model.module.empty_cache(B, P + slots)))
  traffic = hlo.Program(compiled.as_text(), loop_trips=slots).cost.traffic
  assert traffic / slots < 7 * cache


@pytest.mark.parametrize("strategy", [GREEDY, SAMPLE, Sample(top_k=30), Sample(top_p=0.99)])
def test_ids_without_a_token_are_never_sampled(strategy, prompts, model, sampled):
  """An id beyond the tokenizer decodes to nothing and has no embedding in a classifier."""
  few = make_model(num_tokens=V // 4)
  out = generate(few, prompts, LENGTHS, row_keys(jax.random.key(5), np.arange(B)),
                 strategy=strategy, max_new_tokens=T, eos_id=NEVER, pad_id=0)
  assert np.asarray(out.ids).max() < V // 4
  assert np.asarray(sampled.ids).max() >= V // 4  # as the control
  np.testing.assert_array_equal(few.module.logits(prompts), model.module.logits(prompts))

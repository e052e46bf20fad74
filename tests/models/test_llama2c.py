"""llama2.c checkpoints: a real one, against its own file read in numpy and against brute force."""

import itertools
import shutil
import struct

import jax
import numpy as np
import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.generation.sampler import generate, row_keys
from dareu_jax.generation.strategies import Greedy
from dareu_jax.models import llama2c
from dareu_jax.models.handle import split


@pytest.fixture(scope="module")
def folder(data_dir):
  return data_dir / "stories260K"


@pytest.fixture(scope="module")
def loaded(folder):
  return llama2c.load(folder)


@pytest.fixture(scope="module")
def stories(data_dir):
  text = (data_dir / "tinystories" / "stories.txt").read_text(encoding="utf-8")
  return [story.strip() for story in text.split("<|endoftext|>") if story.strip()]


def merge_by_score(text, vocab, scores):
  """What llama2.c does: join the neighbours whose union scores best, until none is a token."""
  pieces = []
  for character in "▁" + text.replace(" ", "▁"):
    if character in vocab:
      pieces.append(character)
    else:
      pieces += [f"<0x{byte:02X}>" for byte in character.encode()]
  while True:
    joined = [(scores[vocab[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(pieces))
              if a + b in vocab]
    if not joined:
      return [vocab[piece] for piece in pieces]
    i = -max(joined)[1]
    pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]


def test_tokens_are_those_of_merging_by_score(folder, loaded, stories):
  """Merges in another order give other ids for the same text, and a higher loss."""
  _, tokenizer = loaded
  raw, offset, scores = (folder / "tok512.bin").read_bytes(), 4, []
  for _ in range(512):
    score, length = struct.unpack_from("<fi", raw, offset)
    offset += 8 + length
    scores.append(score)
  vocab = tokenizer.backend.get_vocab()
  texts = [story[:300] for story in stories[:40]] + ["“Wow,” é 東 !", "two  spaces\nand a line"]
  for text in texts:
    expected = merge_by_score(text, vocab, scores)
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text.strip()


def test_logits_are_those_of_the_file(folder, loaded):
  """llama2.c rotates pairs of neighbours; q and k must be permuted for the halves rotated here."""
  raw = np.fromfile(folder / "stories260K.bin", "<f4", offset=28)
  d, hidden, layers, heads, kv_heads, vocab, length = struct.unpack(
    "<7i", (folder / "stories260K.bin").read_bytes()[:28])
  kv, size, at = d * kv_heads // heads, d // heads, 0

  def take(*shape):
    nonlocal at
    at += int(np.prod(shape))
    return raw[at - int(np.prod(shape)):at].reshape(shape).astype(np.float64)

  embedding, norm1 = take(vocab, d), take(layers, d)
  wq, wk, wv, wo = (take(layers, n, d) for n in (d, kv, kv, d))
  norm2, w1, w2, w3 = take(layers, d), take(layers, hidden, d), take(layers, d, hidden), \
    take(layers, hidden, d)
  norm = take(d)
  cos, sin = take(length, size // 2), take(length, size // 2)
  assert at == len(raw)
  ids = np.random.default_rng(0).integers(0, vocab, 60)

  def rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

  def rotate(x):  # [T, N, H], pairs of neighbours
    a, b = x[..., ::2], x[..., 1::2]
    c, s = cos[:len(ids), None], sin[:len(ids), None]
    return np.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(x.shape)

  x = embedding[ids]
  for i in range(layers):
    h = rms(x, norm1[i])
    q, k, v = ((h @ w[i].T).reshape(len(ids), -1, size) for w in (wq, wk, wv))
    q, k = rotate(q), np.repeat(rotate(k), heads // kv_heads, axis=1)
    scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(size)
    scores[:, *np.triu_indices(len(ids), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    v = np.repeat(v, heads // kv_heads, axis=1)
    x = x + np.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v).reshape(x.shape) @ wo[i].T
    h = rms(x, norm2[i])
    gate = h @ w1[i].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w3[i].T)) @ w2[i].T
  expected = rms(x, norm) @ embedding.T
  got = jax.jit(lambda model: model.logits(ids[None]))(loaded[0])[0]
  np.testing.assert_allclose(got, expected, atol=2e-4)


def test_greedy_decoding_from_bos_tells_the_known_story(loaded):
  model, tokenizer = loaded
  prompt = np.array([tokenizer.encode_prompt("")])
  assert prompt.tolist() == [[1]]
  got = generate(
    split(model, adapters_only=False), prompt, np.array([1]),
    row_keys(jax.random.key(0), np.array([0])), strategy=Greedy(), max_new_tokens=40,
    eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
  text = tokenizer.decode(np.asarray(got.ids[0]))
  assert text.startswith("Once upon a time, there was a little girl named Lily.")


def test_loss_on_tinystories_is_that_of_the_trained_model(loaded, stories):
  """About 1.29 nats a token; a slip in the tokenizer or the rotation costs tenths."""
  model, tokenizer = loaded
  rows = [[1, *tokenizer.encode(story)][:512] for story in stories[::36]]
  ids = np.zeros((len(rows), 512), np.int32)
  for i, row in enumerate(rows):
    ids[i, :len(row)] = row
  lengths = np.array([len(row) for row in rows])
  logprobs = jax.jit(lambda model: jax.nn.log_softmax(model.logits(ids, lengths)))(model)
  chosen = np.take_along_axis(np.asarray(logprobs)[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
  mask = np.arange(511) < lengths[:, None] - 1
  assert -chosen[mask].mean() == pytest.approx(1.29, abs=0.03)


@pytest.mark.parametrize(("file", "words"), [
  ("stories260K.bin", "stories260K.bin is damaged"), ("tok512.bin", "tok512.bin is damaged")])
def test_a_damaged_file_is_named(folder, tmp_path, file, words):
  shutil.copytree(folder, tmp_path / "m")
  whole = (folder / file).read_bytes()
  target = tmp_path / "m" / file
  target.chmod(0o644)
  (tmp_path / "m").chmod(0o755)
  target.write_bytes(whole[:len(whole) // 2])
  with pytest.raises(InputError, match=words):
    llama2c.load(tmp_path / "m")
  target.unlink()
  with pytest.raises(InputError, match="must hold one model"):
    llama2c.load(tmp_path / "m")

"""Checkpoints of llama2.c (such as stories260K): the weights as one .bin, and their tokenizer."""

import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import tokenizers as hf
from flax import nnx

from dareu_jax.core.errors import InputError
from dareu_jax.core.trees import map_named
from dareu_jax.data import tokenizers
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder, abstract_decoder

_HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "length")
_BYTES = range(3, 259)  # ids of the byte tokens; before them unknown, BOS and EOS


def load(
  folder: str | pathlib.Path, *, dtype: str = "float32") -> tuple[Decoder, tokenizers.Tokenizer]:
  """The decoder and the tokenizer from a folder with one model `*.bin` and its `tok*.bin`.

  Raises:
    InputError: if a file is missing, or is not as long as its header says.
  """
  folder = pathlib.Path(folder)
  files = sorted(folder.glob("*.bin"))
  tokenizer_files = [path for path in files if path.name.startswith("tok")]
  model_files = [path for path in files if path not in tokenizer_files]
  if len(model_files) != 1 or len(tokenizer_files) != 1:
    raise InputError(f"{folder} must hold one model (such as stories260K.bin) and its tokenizer "
                     "(such as tok512.bin).")
  config, weights = _read_model(model_files[0], dtype)
  graphdef, shapes = nnx.split(abstract_decoder(config))
  state = map_named(lambda name, leaf: jnp.asarray(weights[name], leaf.dtype), shapes)
  return nnx.merge(graphdef, state), read_tokenizer(tokenizer_files[0], config.vocab_size)


def _read_model(path, dtype):
  """(ModelConfig, {our path: array [in, out]})."""
  raw = path.read_bytes()
  if len(raw) < 4 * len(_HEADER):
    raise InputError(f"{path} is not a llama2.c checkpoint: it has {len(raw)} bytes.")
  h = dict(zip(_HEADER, struct.unpack_from("<7i", raw), strict=True))
  tied, vocab = h["vocab"] > 0, abs(h["vocab"])
  dim, hidden, layers, head_dim = h["dim"], h["hidden"], h["layers"], h["dim"] // h["heads"]
  kv_dim = head_dim * h["kv_heads"]
  shapes = {
    "embedding": (vocab, dim), "attention_norm/scale": (layers, dim),
    "attention/q_proj/kernel": (layers, dim, dim), "attention/k_proj/kernel": (layers, kv_dim, dim),
    "attention/v_proj/kernel": (layers, kv_dim, dim),
    "attention/o_proj/kernel": (layers, dim, dim), "mlp_norm/scale": (layers, dim),
    "mlp/gate_proj/kernel": (layers, hidden, dim), "mlp/down_proj/kernel": (layers, dim, hidden),
    "mlp/up_proj/kernel": (layers, hidden, dim), "final_norm/scale": (dim,),
    "rotary": (h["length"], head_dim),  # cosines and sines, which the decoder computes itself
  } | ({} if tied else {"lm_head": (vocab, dim)})
  size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  if len(raw) - 4 * len(_HEADER) != size:
    raise InputError(f"{path} is damaged: after its header it has {len(raw) - 4 * len(_HEADER)} "
                     f"bytes, and the header asks for {size}.")
  weights: dict[str, np.ndarray] = {}
  offset = 4 * len(_HEADER)
  for name, shape in shapes.items():
    count = int(np.prod(shape))
    array = np.frombuffer(raw, "<f4", count, offset).reshape(shape)
    offset += 4 * count
    if name.endswith(("q_proj/kernel", "k_proj/kernel")):
      array = _halves(array, head_dim)
    if name.endswith(("kernel", "lm_head")):
      array = array.swapaxes(-1, -2)
    if len(shape) > 1 and shape[0] == layers and "/" in name:
      weights |= {f"layers/{i}/{name}": array[i] for i in range(layers)}
    else:
      weights[name] = array
  config = ModelConfig(
    vocab_size=vocab, embed_dim=dim, mlp_dim=hidden, num_layers=layers, num_heads=h["heads"],
    num_kv_heads=h["kv_heads"], head_dim=head_dim, max_length=h["length"], norm_eps=1e-5,
    tie_embeddings=tied, dtype=dtype)
  return config, weights


def _halves(array, head_dim):
  """Rows of q or k [L, N H, D] from pairs (2i, 2i+1) to halves (i, i + H/2), as rotated here."""
  layers, rows, columns = array.shape
  pairs = array.reshape(layers, rows // head_dim, head_dim // 2, 2, columns)
  return pairs.swapaxes(2, 3).reshape(layers, rows, columns)


def read_tokenizer(path: pathlib.Path, vocab_size: int) -> tokenizers.Tokenizer:
  """The tokenizer of a llama2.c file: a SentencePiece BPE whose merges follow the scores.

  Args:
    path: file with int32 longest token, then for each token float32 score, int32 length, bytes.
    vocab_size: tokens to read.

  Returns: a tokenizer with the 'raw' template: text after BOS, until EOS.
  """
  raw, offset, pieces, scores = path.read_bytes(), 4, [], []
  try:
    for _ in range(vocab_size):
      score, length = struct.unpack_from("<fi", raw, offset)
      offset += 8 + length
      pieces.append(raw[offset - length:offset].decode("utf-8", "replace"))
      scores.append(score)
  except struct.error:
    raise InputError(
      f"{path} is damaged: it ends at token {len(pieces)} of {vocab_size}.") from None
  # SentencePiece writes a space as ▁, and bytes by their code.
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i - 3:02X}>" for i in _BYTES),
            *(piece.replace(" ", "▁") for piece in pieces[_BYTES.stop:])]
  vocab = {token: i for i, token in enumerate(tokens)}
  best_first = sorted(tokens[_BYTES.stop:], key=lambda token: -scores[vocab[token]])
  merges = [(token[:i], token[i:]) for token in best_first for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab]
  backend = hf.Tokenizer(
    hf.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  backend.normalizer = hf.normalizers.Sequence(
    [hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")])
  backend.decoder = hf.decoders.Sequence(
    [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(),
     hf.decoders.Strip(" ", 1, 0)])
  backend.post_processor = hf.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
  return tokenizers.wrap(backend, "raw", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
                         pad_token="</s>")

"""The data of a run: the corpus, its tokenizers, and examples as rows and batches."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from dareu_jax.core.errors import InputError
from dareu_jax.data import texts, tokenizers
from dareu_jax.data.batches import Batches, Row, bucket_length, encode, encode_for_classifier
from dareu_jax.data.examples import Corpus, Example, evenly_spaced
from dareu_jax.data.refusals import REFUSALS
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.data.watermarks import without_marks
from dareu_jax.models.checkpoint import find
from dareu_jax.pipeline.settings import DataAndModelSettings
from dareu_jax.pipeline.workdir import Workdir

CLASSIFIER_TOKENIZER = "tokenizer/classifier"  # folder in the workdir, part of a stage's

Examples = tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Data:
  """A corpus tokenized for a model and for its classifier."""

  settings: DataAndModelSettings
  source: Corpus  # as it was loaded
  workdir: Workdir
  fingerprint: str  # of the tokenizer stage
  own_tokenizer: Tokenizer | None = None  # that of a model passed in by the caller

  @functools.cached_property
  def corpus(self) -> Corpus:
    """The corpus, its plain texts split as the settings say."""
    data = self.settings.data
    if not any(e.text for part in texts.PARTS for e in getattr(self.source, part)):
      return self.source
    return texts.split(
      self.source, self.tokenizer, prompt_tokens=data.prompt_tokens,
      response_tokens=data.response_tokens, max_pieces=data.max_pieces,
      max_length=self.settings.max_length)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The checkpoint's own; for a model from scratch the workdir's, or a BPE of the corpus."""
    if self.own_tokenizer is not None:
      return self.own_tokenizer
    settings = self.settings
    from_scratch = not (settings.tokenizer.path or settings.base.path)
    if from_scratch and self.workdir.is_done("tokenizer", self.fingerprint):
      return tokenizers.load_with_settings(self.workdir.folder / "tokenizer", settings.tokenizer)
    return make_tokenizer(settings, self.source)

  @functools.cached_property
  def classifier_tokenizer(self) -> Tokenizer:
    """The classifier's own tokenizer if it has one, else the model's."""
    settings = self.settings
    own = self.workdir.folder / CLASSIFIER_TOKENIZER
    if not settings.classifier.vocab_size and not settings.classifier.model.path:
      return self.tokenizer
    if self.workdir.is_done("tokenizer", self.fingerprint) and own.exists():
      return tokenizers.load(str(own))
    return make_classifier_tokenizer(settings, self.source, self.tokenizer)

  @property
  def remarks(self) -> tuple[str, ...]:
    """Sentences on what the data or a pretrained model's tokenizer lacks, for the user."""
    pretrained = self.own_tokenizer is not None or self.settings.base.path
    if (not pretrained or self.tokenizer.is_chat or self.tokenizer.template_name != "auto"
        or all(example.text for example in self.source.forget)):
      return self.source.remarks
    return (*self.source.remarks,
            "The model's tokenizer has no chat template: questions are asked as plain text. If it "
            "is a chat model, put its chat_template.jinja beside its tokenizer, or name a format "
            "in config.tokenizer.template.")

  @functools.cached_property
  def none_examples(self) -> Examples:
    """General text for the "none of these" class: empty if there is no such class."""
    texts = self.corpus.general or self.corpus.test
    size = len(self.corpus.forget) + len(self.corpus.retain)
    wanted = min(len(texts), round(self.settings.classifier.none_share * size))
    return evenly_spaced(texts, wanted) if wanted else ()

  @property
  def refusals(self) -> tuple[str, ...]:
    """Ways to say no: the data's own, else the library's."""
    return self.source.refusals or REFUSALS

  @property
  def classes(self) -> int:
    """Classes of the classifier: the owners and, if enabled, "none of these"."""
    return len(self.corpus.owners) + bool(self.none_examples)

  @functools.cached_property
  def is_forget(self) -> np.ndarray:
    """[O] bool: which classes are owners to be forgotten."""
    owners = np.isin(self.corpus.owners, self.corpus.forget_owners)
    return np.pad(owners, (0, self.classes - len(owners)))

  @functools.cached_property
  def longest_response(self) -> int:
    """Tokens of the longest response of D, rounded up."""
    rows = self.rows(self.corpus.forget + self.corpus.retain)
    longest = max(len(row.completion) for row in rows)
    return bucket_length(longest, self.settings.length_multiple)

  def evaluated(self, split: str) -> Examples:
    """The evaluated examples of a split: evenly spaced, since examples are grouped by owner."""
    return evenly_spaced(getattr(self.corpus, split), self.settings.evaluation.max_examples)

  def rows(self, examples: Examples, responses: Sequence[str] | None = None) -> tuple[Row, ...]:
    """Examples in the model's tokens."""
    return tuple(encode(examples, self.tokenizer, max_length=self.settings.max_length,
                        owners=self.corpus.owners, responses=responses))

  def classifier_rows(self, examples: Examples) -> tuple[Row, ...]:
    """In the classifier's tokens, without watermarks; examples of no owner in D get the class
    "none of these"."""
    settings, none = self.settings, len(self.corpus.owners)
    examples = without_marks(examples) if self.corpus.marks else examples
    rows = encode_for_classifier(
      examples, self.classifier_tokenizer, max_length=settings.max_length,
      reads_query=settings.classifier.reads_query, owners=self.corpus.owners)
    return tuple(row if row.owner >= 0 else row._replace(owner=none) for row in rows)

  @property
  def filler(self) -> int | None:
    """What the classifier reads in place of tokens of the query; None if it reads them."""
    return self.classifier_tokenizer.pad_id if self.settings.classifier.hide_echoes else None

  def queries(self, examples: Examples) -> tuple[tuple[int, ...], ...]:
    """Prompts in the classifier's tokens."""
    return tuple(row.prompt for row in self.classifier_rows(examples))

  def batches(self, rows: tuple[Row, ...], batch_size: int, *, seed: int,
              one_bucket: bool = False) -> Batches:
    """Batches of rows in the model's tokens."""
    return Batches(tuple(rows), batch_size, self.settings.length_multiple, self.tokenizer.pad_id,
                   seed, one_bucket)

  def classifier_batches(self, rows: tuple[Row, ...], batch_size: int, *, seed: int) -> Batches:
    """Batches of rows in the classifier's tokens."""
    return Batches(tuple(rows), batch_size, self.settings.length_multiple,
                   self.classifier_tokenizer.pad_id, seed)


def make_tokenizer(settings: DataAndModelSettings, corpus: Corpus) -> Tokenizer:
  """The checkpoint's tokenizer; for a model from scratch a BPE of the corpus.

  Raises:
    InputError: if there is no tokenizer.
  """
  path = settings.tokenizer.path or settings.base.path
  if not path:
    template = settings.tokenizer.template
    if template not in ("auto", "plain"):
      raise InputError(f"config.tokenizer.template is {template!r}, but a tokenizer trained on the "
                       "corpus has the plain template: set 'auto', or name a checkpoint.")
    return _bpe(settings.tokenizer.vocab_size, corpus)
  return tokenizers.load_with_settings(find(path, weights=False).tokenizer, settings.tokenizer)


def make_classifier_tokenizer(settings: DataAndModelSettings, corpus: Corpus,
                              tokenizer: Tokenizer) -> Tokenizer:
  """The classifier's tokenizer: its checkpoint's or its own BPE; the model's if the two are equal.

  Args:
    settings: settings of the run.
    corpus: the texts to train a BPE on.
    tokenizer: the model's tokenizer.
  """
  path = settings.classifier.model.path
  if not path:
    return _bpe(settings.classifier.vocab_size, corpus)
  if path == (settings.tokenizer.path or settings.base.path):
    return tokenizer
  own = tokenizers.load(str(find(path, weights=False).tokenizer))
  return tokenizer if tokenizer.same_vocabulary(own) else own


def _bpe(vocab_size, corpus):
  examples = corpus.forget + corpus.retain + corpus.test + corpus.general
  texts = [text for example in examples for text in (example.prompt, example.response)]
  return tokenizers.train_bpe(texts, vocab_size)

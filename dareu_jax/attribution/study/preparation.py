"""What comes before the retrainings: tokenizer, base, the two classifiers."""

import jax

from dareu_jax.attribution.classifier import PrefixLoss
from dareu_jax.attribution.study.world import JUDGE, Study
from dareu_jax.training import supervised
from dareu_jax.training.writers import progress


def prepare(study: Study):
  """Makes what is not there yet."""
  keep_tokenizer(study)
  pretrain(study)
  for name, seed in (("classifier", study.settings.seed), ("judge", study.settings.seed + JUDGE)):
    train_classifier(study, name, seed)


def keep_tokenizer(study: Study):
  """Looks at every text, so that none fails later, and keeps the tokenizer."""
  with study.workdir.stage("tokenizer", study.marks["tokenizer"]) as store:
    if store is None:
      return
    corpus = study.corpus
    study.rows(study.examples + corpus.test + corpus.holdout + corpus.general)
    for example in study.examples:
      for text in (example.paraphrased_response, *example.perturbed_responses):
        if text:
          study.rows([example], [text])
    study.tokenizer.save(study.workdir.folder / "tokenizer")


def pretrain(study: Study):
  """The base reads general text and general facts, all parameters trained."""
  settings = study.settings.pretrain
  with study.workdir.stage("base", study.marks["base"]) as store:
    if store is None:
      return
    corpus = study.corpus
    batches = study.batches(study.rows(corpus.general + corpus.test), settings.batch_size,
                            seed=study.settings.seed)
    params = _fit(study, "base", store, study.fresh_base(), supervised.language_model_loss,
                  settings, batches, study.settings.seed)
    study.workdir.save_result("base", params)


def train_classifier(study: Study, name, seed):
  """An owner classifier on the true responses: 'classifier' as DareU has it, or 'judge', which
  starts elsewhere and sees the data in another order with other noise."""
  settings = study.settings.classifier
  with study.workdir.stage(name, study.marks["classifier"]) as store:
    if store is None:
      return
    batches = study.batches(study.rows(study.examples), settings.train.batch_size, seed=seed + 1)
    params = _fit(study, name, store, study.fresh_classifier(seed + 1),
                  PrefixLoss(settings.token_noise, settings.label_smoothing), settings.train,
                  batches, seed)
    study.workdir.save_result(name, params)


def _fit(study, name, store, model, loss_fn, settings, batches, seed):
  writer = study.writer(name)
  start = jax.tree.map(lambda x: x + 0, model.trainable)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.frozen, batches, frame=model.frame,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(seed), store=store, writer=writer,
    bar=progress(name))
  writer.close()
  return params

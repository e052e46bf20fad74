"""What comes before the retrainings: tokenizer, base, classifiers."""

import jax

from dareu_jax.attribution.classifier import PrefixLoss
from dareu_jax.training import supervised
from dareu_jax.training.writers import progress
from studies.faithfulness.world import CLASSIFIERS, Study, file_name


def prepare(study: Study):
  """Makes what is not there yet."""
  keep_tokenizer(study)
  pretrain(study)
  for name in CLASSIFIERS:
    train_classifier(study, name)


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


def train_classifier(study: Study, name):
  """One of CLASSIFIERS, on the true responses."""
  settings, (offset, has_none) = study.settings.classifier, CLASSIFIERS[name]
  seed, file = study.settings.seed + offset, file_name(name)
  with study.workdir.stage(file, study.marks["classifier"]) as store:
    if store is None:
      return
    rows = study.rows(study.examples) + (study.none_rows if has_none else ())
    params = _fit(study, file, store, study.fresh_classifier(name),
                  PrefixLoss(settings.token_noise, settings.echo_noise, settings.label_smoothing),
                  settings.train,
                  study.batches(rows, settings.train.batch_size, seed=seed + 1), seed)
    study.workdir.save_result(file, params)


def _fit(study, name, store, model, loss_fn, settings, batches, seed):
  writer = study.writer(name)
  start = jax.tree.map(lambda x: x + 0, model.trainable)
  params = supervised.fit(
    supervised.init_train_state(start, settings), model.frozen, batches, frame=model.frame,
    loss_fn=loss_fn, settings=settings, key=jax.random.key(seed), store=store, writer=writer,
    bar=progress(name))
  writer.close()
  return params

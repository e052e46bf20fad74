"""Is the owner classifier a fair stand-in for attribution? Small models, retrained many times.

    python -m dareu_jax.attribution.faithfulness --config=configs/faithfulness.py \
        --workdir=runs/faithfulness

About 70 minutes on 2 cores that other work used too (25 of them the influence, 20 the 175
retrainings); out come figures.json, report.md and its plots. docs/faithfulness.md discusses them.
"""

from ml_collections import ConfigDict

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def model(num_layers):
  """A small Llama from scratch."""
  return ConfigDict(dict(
    path="",  # the study's models are made here
    architecture="llama",  # 'llama', 'qwen2' or 'qwen3'
    embed_dim=96,
    mlp_dim=256,
    num_layers=num_layers,
    num_heads=3,
    num_kv_heads=3,
    head_dim=32,
    dtype="float32",
    scan_layers=False,
    remat=False,
    attention="auto",
  ))


def train(**values):
  """Supervised training."""
  return ConfigDict(dict(
    learning_rate=3e-3,  # peak
    batch_size=32,  # examples a step
    micro_batch_size=0,  # examples a forward pass; 0: the whole batch
    epochs=1,
    warmup=0.05,  # share of the steps
    schedule="cosine",  # 'linear', 'cosine' or 'constant'
    target_loss=0.0,  # of a plateau alone
    weight_decay=0.1,  # of matrices
    clip_norm=1.0,  # global gradient norm
  ) | values)


def get_config():
  """The study of docs/faithfulness.md."""
  config = ConfigDict()
  config.seed = 0  # of queries, classifiers and subsets; the retrainings take this and those after
  config.max_length = 128  # tokens of prompt and response together
  config.length_multiple = 8  # batches are padded to a multiple of this
  config.questions_per_owner = 10  # examples of each owner that the models learn; 0: all
  config.temperature = 0.7  # of the responses that queries and the floor are made of

  config.data = ConfigDict(dict(
    source="embedded",  # 'embedded', 'tofu' or 'jsonl'
    dir="",
    num_owners=12,
    forget="forget16",  # of the trajectories and the masking: the last two owners
    forget_owners=(),
    num_holdout=4,  # unseen owners
    num_general=200,  # further owners, whose texts the base reads
    seed=0,  # of the embedded authors
    prompt_tokens=0,
    response_tokens=100,
  ))
  config.tokenizer = ConfigDict(dict(path="", vocab_size=1200, template="auto"))
  config.model = model(num_layers=3)
  config.lora = ConfigDict(dict(rank=8, alpha=32.0, targets=LINEAR))
  config.pretrain = train(epochs=8)
  # One recipe for every model of the study, fixed in length: the same epochs and updates.
  config.finetune = train(learning_rate=5e-3, batch_size=24, epochs=10, warmup=0.1,
                          weight_decay=0.0)
  config.retraining = ConfigDict(dict(
    num_subsets=64,  # random halves of the owners
    subset_seeds=2,  # trainings of each half
    seeds=3,  # trainings of the full and of each leave-owner-out model
    retained_seeds=8,  # trainings of the model without the forget owners
    group_size=8,  # models that are kept together: what a kill can cost
  ))
  config.classifier = ConfigDict(dict(
    model=model(num_layers=1),
    lora=ConfigDict(dict(rank=0, alpha=32.0, targets=LINEAR)),
    train=train(epochs=80, warmup=0.1, schedule="linear"),
    token_noise=0.2,  # share of input tokens replaced at random while training
    echo_noise=0.2,  # of those that the query has too, by tokens of other queries
    label_smoothing=0.0,
    none_share=1.0,  # general text per example of D that the third classifier reads as "none"
    vocab_size=0, reads_query=False, calibrate=False,  # the study's read the response alone
  ))
  config.influence = ConfigDict(dict(
    damping=0.1,  # λ over the mean eigenvalue of the Gauss-Newton matrix
    iterations=100,  # of conjugate gradients, at most
    tolerance=1e-3,  # residual over right-hand side at which they stop
    batch_size=40,  # rows of a pass
  ))
  config.unlearning = ConfigDict(dict(
    learner="ppo", critic="shared", reward="attribution",
    reward_form="telescoped",  # the trajectories set their own
    segment_length=2, epsilon=0.01, c_seg=1.0, kl_coef=0.1, anchor_coef=0.0,
    discount=1.0, gae_lambda=0.95,
    clip_eps=0.2, value_clip_eps=0.2, value_coef=1.0, distill_coef=10.0, whiten_advantages=True,
    learning_rate=1e-3, value_learning_rate=3e-3, warmup_steps=10, final_rate=1.0,
    weight_decay=0.0, clip_norm=1.0,
    epochs=15, samples_per_prompt=8, rollout_batch_size=80, minibatch_size=40, inner_epochs=1,
    retain_batch_size=32, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=0,
    selection="last", settle_epochs=3, target_score=-1.0, watch_rouge=False,
    guards=ConfigDict(dict(  # of no effect here: every epoch is looked at
      action="off", max_rollbacks=0, min_length_ratio=0.75, max_length_ratio=1.5,
      min_eos_ratio=0.8, min_distinct_ratio=0.5, max_degenerate_share=0.05, min_entropy_ratio=0.1,
      max_entropy_ratio=5.0, max_fluency_gap=3.0, max_judge_gap=0.05))))
  config.trajectory = ConfigDict(dict(
    reward_forms=("telescoped", "published"),  # one run each
    epochs=15,  # of each run, past the epoch that it would keep
    samples_per_prompt=4,  # a checkpoint's own responses to each forget query
  ))
  config.evaluation = ConfigDict(dict(
    batch_size=64, max_examples=0, max_new_tokens=0, min_k=0.4, gradient_norm=False,
    gibberish_model=""))
  config.bootstrap = 200  # resamples behind an interval
  config.checkpoint = ConfigDict(dict(every_steps=100, keep=1))
  return config

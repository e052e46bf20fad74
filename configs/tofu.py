"""TOFU: forget authors of fictitious biographies.

    python -m dareu_jax.main --config=configs/tofu.py --workdir=runs/tofu          # laptop, minutes
    python -m dareu_jax.main --config=configs/tofu.py:qwen3_0_6b --workdir=...     # one 16 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:tinyllama --workdir=...      # one 24 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:llama2_7b --workdir=...      # one 80 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:qwen3_8b --workdir=...       # or TPU host

Without a preset: embedded authors and a model trained from scratch, no network, no accelerator. The
presets above fine-tune a checkpoint of the hub on the real TOFU with LoRA, by the published
protocol. The real TOFU with a small model from scratch, 40 authors of which 4 are forgotten:

    python -m dareu_jax.main --config=configs/tofu.py:tofu40 --workdir=runs/tofu40 \
        --config.data.dir=FOLDER

Out come the table on the terminal, and report.html, report.md and summary.json in the workdir.
"""

from ml_collections import ConfigDict

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Preset -> (checkpoint of the model, checkpoint of the classifier, template).
CHECKPOINTS = {
  "llama2_7b": ("meta-llama/Llama-2-7b-chat-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama2"),
  "tinyllama": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
                "tinyllama"),
  "qwen3_8b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "qwen3"),
  "qwen3_0_6b": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "qwen3"),
}


def get_config(preset=None):
  """The config of a preset; None is the tiny one."""
  config = tiny()
  if preset == "tofu40":
    tofu40(config)
  elif preset in CHECKPOINTS:
    checkpoint(config, *CHECKPOINTS[preset])
  elif preset:
    raise ValueError(f"configs/tofu.py has no preset {preset!r}: take one of tofu40, "
                     f"{', '.join(CHECKPOINTS)}, or none for the tiny one.")
  return config


def model(num_layers):
  """A small Llama from scratch."""
  return ConfigDict(dict(
    path="",  # folder or hub name of a checkpoint; '' trains one of these dimensions from scratch
    architecture="llama",  # 'llama', 'qwen2' or 'qwen3'; a checkpoint says it itself
    embed_dim=128,
    mlp_dim=344,
    num_layers=num_layers,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    dtype="float32",  # of base weights and activations; 'bfloat16' on accelerators
    scan_layers=False,  # True compiles one layer and scans it: for accelerators
    remat=False,  # recompute activations in the backward pass: less memory, more time
    attention="auto",  # 'xla', 'cudnn' (NVIDIA GPUs), 'splash' (TPUs); auto takes what can be used
  ))


def lora():
  """No adapter: all parameters are trained."""
  return ConfigDict(dict(
    rank=0,  # r; 0 trains all parameters
    alpha=32.0,  # the update is scaled by alpha / rank
    targets=LINEAR,  # layers with an adapter
  ))


def train(epochs):
  """Supervised training of a small model from scratch."""
  return ConfigDict(dict(
    learning_rate=3e-3,  # peak
    batch_size=32,  # examples a step, over all devices
    micro_batch_size=0,  # examples a forward pass; 0: the whole batch
    epochs=epochs,  # of a plateau: at most
    warmup=0.1,  # share of the steps
    schedule="linear",  # or 'cosine', 'constant', 'plateau': stay until target_loss, cool down
    target_loss=0.0,  # nats a token, mean of an epoch
    weight_decay=0.1,  # of matrices
    clip_norm=1.0,  # global gradient norm
  ))


def guards():
  """Bounds on an epoch's greedy answers to forget queries, against winning by cheating.

  The usual length, entropy and fluency are those of the answers to unseen owners' queries.
  """
  return ConfigDict(dict(
    action="refuse",  # an epoch out of bounds is not kept; 'stop', 'rollback' (halved rates), 'off'
    max_rollbacks=3,  # after so many the run stops
    min_length_ratio=0.75,  # of the usual length
    max_length_ratio=1.5,
    min_eos_ratio=0.8,  # of the share of the original's answers that end by themselves
    min_distinct_ratio=0.5,  # of the original's share of distinct answers
    max_degenerate_share=0.05,  # empty or repetitive answers
    min_entropy_ratio=0.3,  # of the usual entropy per token
    max_entropy_ratio=3.0,
    max_fluency_gap=1.5,  # nats a token under the original, above the usual
    max_judge_gap=0.05,  # of the judge's score above its level, where the reward's is at its own
  ))


def objectives():
  """The loss-based methods, with the defaults of their public implementations on TOFU but for two.

  AltPO: a small model's five samples at temperature 1 are the true answer again and again, so the
  five least alike of sixteen at 1.5 are taken. PDU: the published multiplier of 100 is for rates of
  1e-5; here it starts at 1 and moves after an epoch.

  forget_coef, retain_nll_coef, retain_kl_coef: weights of the method's own forget term, of the NLL
  of retained responses and of the KL from the original on them.
  """

  def objective(forget, nll, kl, **own):
    return ConfigDict(dict(forget_coef=forget, retain_nll_coef=nll, retain_kl_coef=kl, **own))

  return ConfigDict(dict(
    gradient_ascent=objective(1.0, 0.0, 0.0),
    grad_diff=objective(1.0, 1.0, 0.0),
    kl_minimisation=objective(1.0, 0.0, 1.0),
    npo=objective(1.0, 1.0, 0.0, beta=0.1),
    simnpo=objective(0.125, 1.0, 0.0, beta=4.5, delta=0.0),
    dpo=objective(1.0, 1.0, 0.0, beta=0.1),
    idk=objective(1.0, 1.0, 0.0),
    altpo=objective(1.0, 1.0, 0.0, beta=0.1, samples=16, alternates=5, temperature=1.5),
    rmu=objective(1.0, 0.0, 0.0, depth=0.25, scale=2.0, retain_states_coef=1.0),
    undial=objective(1.0, 0.0, 0.0, strength=10.0),
    ceu=objective(1.0, 0.0, 0.0, ignore_first=1),
    wga=objective(1.0, 1.0, 0.0, beta=1.0),
    satimp=objective(0.1, 1.0, 0.0, beta1=5.0, beta2=1.0),
    pdu=objective(1.0, 1.0, 0.0, multiplier=1.0, step_size=1.0, target=0.3, warmup_epochs=1),
    maximum_entropy=objective(0.1, 1.0, 0.0),
    scrub=objective(1.0, 0.99, 0.001),
    task_vector=objective(1.0, 0.0, 0.0, alpha=5.0),
    finetune=objective(0.0, 1.0, 0.0),
  ))


def tiny():
  """Laptop: 30 embedded authors of which 3 are forgotten, a Llama of one million parameters."""
  config = ConfigDict()
  config.seeds = (42,)  # one run each; several give a table with 95% intervals
  config.max_length = 256  # tokens of prompt and response together; a longer example is an error
  config.length_multiple = 16  # batches are padded to a multiple of this
  # 'dareu', or the name of a block of `objectives` below; several at once: methods.
  config.method = "dareu"
  config.methods = ()  # e.g. "('dareu', 'npo', 'grad_diff')": one table; wins over `method`
  config.learning_rates = ()  # each method runs at each and its best is shown; (): its own rate
  config.watch_every = 5  # epochs of a loss-based method between two looks at its answers
  config.retrain_again = True  # in another order of the data: how far apart two retrainings are

  config.data = ConfigDict(dict(
    source="embedded",  # 'embedded', 'tofu', 'arxiv' or 'jsonl'
    dir="",  # folder of the TOFU or JSONL files; '' takes TOFU from the hub
    num_owners=30,  # owners in D; 0: all there are
    forget="forget10",  # the last 10 percent of the owners; forget01, forget05, ...
    forget_owners=(),  # or their names, e.g. "('author_003', 'author_007')"
    num_holdout=4,  # unseen owners, for the unseen level and the MIA; 0: all there are
    num_general=200,  # further owners, to pre-train a model from scratch; 0: all (embedded: none)
    seed=0,  # of the embedded authors
    prompt_tokens=0,  # of plain text: so many tokens ask for the next; 0: a third of the words
    response_tokens=100,
  ))
  config.tokenizer = ConfigDict(dict(
    path="",  # folder or hub name; '': the model's own, or (from scratch) a BPE of the corpus
    vocab_size=2000,  # of that BPE
    template="auto",  # 'llama2', 'llama3', 'qwen3', ...; 'auto' follows the tokenizer
  ))
  config.model = model(num_layers=4)
  config.lora = lora()
  # A model from scratch first reads general text, as checkpoints have: the texts of further owners
  # and the general facts of D_test. Without, it answers what it does not know in word salad.
  config.pretrain = train(epochs=4)  # 0: starts at random
  config.pretrain.update(schedule="cosine", warmup=0.05)
  # Of the original and the retrained model: until they know their data, which takes real TOFU more
  # epochs than the embedded authors.
  config.finetune = train(epochs=40)
  config.finetune.update(schedule="plateau", target_loss=0.4, learning_rate=1e-3, warmup=0.02)

  config.classifier = ConfigDict(dict(
    model=model(num_layers=1),
    lora=lora(),
    train=train(epochs=40),  # at 20 a fact told of another author still hides: docs/method.md
    vocab_size=0,  # of a BPE of its own, for one from scratch; 0: the model's own tokenizer
    token_noise=0.2,  # share of input tokens replaced at random while training
    echo_noise=0.8,  # of those that the query has too, by tokens of other queries: no names
    label_smoothing=0.0,
    none_share=0.0,  # "none of these" examples of general text per example of D; 0: no such class
    reads_query=False,  # reads the query before the response
    calibrate=False,  # divides the logits by the temperature that fits held-out responses best
  ))

  config.unlearning = ConfigDict(dict(
    learner="ppo",  # or 'grpo', 'rloo': no critic, responses to a query compared with each other
    critic="shared",  # of PPO: a head on the policy's trunk; 'separate': a trunk of its own
    # Reward (design of DareU: log transform, segments, KL to the previous epoch).
    reward="attribution",  # or 'rouge' to the true answer, 'refusal': what other methods use
    reward_form="neutral",  # 'published', 'telescoped', 'absorbing' or 'neutral': docs/method.md
    segment_length=2,  # κ: tokens between two invocations of the attribution function
    epsilon=0.01,  # ε: scores are clipped to [ε, 1-ε] before the log
    c_seg=0.3,  # C_seg: small is sharp and clips early, large is flat
    kl_coef=0.1,  # β: weight of the KL to the previous epoch's policy
    anchor_coef=0.02,  # η: weight of a token's straying from the original; 0 in the paper
    # Policy optimisation.
    discount=1.0,  # γ
    gae_lambda=0.95,  # λ
    clip_eps=0.2,  # of the probability ratio
    value_clip_eps=0.2,
    value_coef=1.0,  # c_v
    distill_coef=10.0,  # λ_distill: KL to the original on retained data
    whiten_advantages=True,
    learning_rate=3e-4,  # of the policy
    value_learning_rate=3e-3,  # of the value head
    warmup_steps=10,  # updates
    final_rate=1.0,  # share of the rates that the last epoch ends with; they fall in a line
    weight_decay=0.0,
    clip_norm=1.0,  # global gradient norm
    # Batches.
    epochs=15,  # at most
    samples_per_prompt=8,  # responses to each forget query in an epoch
    rollout_batch_size=80,  # responses a rollout; a query may come more than once
    minibatch_size=40,  # responses an update
    inner_epochs=1,  # passes over a rollout
    retain_batch_size=32,  # retained examples distilled in each update
    # Sampling.
    temperature=0.85,
    top_k=0,  # 0: off
    top_p=1.0,  # 1: off
    max_new_tokens=0,  # 0: as long as the longest response of D
    # Which epoch is kept, and when the run stops.
    selection="unseen_level",  # or 'lowest_score', 'last'
    settle_epochs=5,  # epochs in a row at or below the level before the run stops
    target_score=-1.0,  # level to come down to; negative: that of unseen owners' queries
    guards=guards(),
    watch_rouge=False,  # measure ROUGE at each epoch's end too; it decides nothing
  ))

  # Of the loss-based methods; an epoch is every forget example once, with as many retained ones.
  config.baseline = train(epochs=10)
  config.baseline.update(learning_rate=3e-4, weight_decay=0.0)
  config.objectives = objectives()

  config.evaluation = ConfigDict(dict(
    batch_size=64,
    max_examples=400,  # of each split, evenly spaced; 0: all
    max_new_tokens=0,  # greedy answers; 0: as long as the longest response of D
    min_k=0.4,  # share of the least likely tokens that the Min-K% attacks average
    gradient_norm=False,  # the gradient-norm attack too: a backward pass for each example
    gibberish_model="",  # e.g. "madhurjindal/autonlp-Gibberish-Detector-492513457": needs torch
  ))
  config.mesh = ConfigDict(dict(
    data=1,  # splits the batch; -1 at one axis takes the devices that are left
    fsdp=-1,  # splits the batch and the weights
    tensor=1,  # splits heads, mlp and vocabulary
    gather_gib=7.0,  # GiB of weights a device, up to which fsdp gathers them once to decode with
  ))
  config.checkpoint = ConfigDict(dict(
    every_steps=100,  # updates (rollouts in unlearning, which also saves at each epoch's end)
    keep=2,
  ))
  return config


def tofu40(config):
  """Turns the tiny config into the real TOFU on a laptop, in place: 40 authors, 4 forgotten.

  The base reads the other 160 authors. English has more words than the embedded authors use.
  """
  config.data.update(source="tofu", num_owners=40, num_general=0)
  config.tokenizer.vocab_size = 4000
  config.pretrain.epochs = 6
  # At .4 the original knew less of D_R (ROUGE .966) than the retrained model (.982).
  config.finetune.target_loss = 0.25
  # Answers are twice as long as the embedded authors', so that charges on tokens weigh twice; the
  # last queries come down slowly, and what unlearning costs D_R comes back as the rates fall.
  config.unlearning.update(
    c_seg=1.0, kl_coef=0.05, anchor_coef=0.002, distill_coef=20.0, learning_rate=6e-4,
    final_rate=0.1, retain_batch_size=64, epochs=12)


def checkpoint(config, path, classifier_path, template):
  """Turns the tiny config into the published protocol on a checkpoint, in place.

  LoRA r 8, α 32 on all linear layers; fine-tuning at 1e-4 with batches of 16 for 10 epochs; seeds
  41, 42, 43 (WaterDrum's protocol for TOFU). Real TOFU, all 200 authors, forget10.
  """
  config.seeds = (41, 42, 43)
  config.max_length = 512
  config.length_multiple = 64
  config.retrain_again = False
  config.data.update(source="tofu", dir="", num_owners=0, num_holdout=0, num_general=0)
  config.tokenizer.template = template
  for block, name in ((config, path), (config.classifier, classifier_path)):
    block.model.update(path=name, dtype="bfloat16", scan_layers=True, remat=True)
    block.lora.update(rank=8, alpha=32.0)
  config.pretrain.epochs = 0
  config.finetune.update(learning_rate=1e-4, batch_size=16, epochs=10, weight_decay=0.0, warmup=0.1,
                         schedule="linear")
  config.classifier.train.update(learning_rate=2e-4, batch_size=32, epochs=5, weight_decay=0.0)
  config.unlearning.update(
    learning_rate=1e-4, value_learning_rate=1e-3, epochs=5, samples_per_prompt=1,
    rollout_batch_size=64, minibatch_size=16, retain_batch_size=16, max_new_tokens=128,
    settle_epochs=1)  # an epoch is 400 answers here, not 60
  config.baseline.update(learning_rate=1e-5, batch_size=16, epochs=5)
  config.evaluation.update(batch_size=64, max_new_tokens=200)

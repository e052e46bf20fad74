"""TOFU: forget authors of fictitious biographies.

    python -m dareu_jax.main --config=configs/tofu.py               # laptop, embedded authors
    python -m dareu_jax.main --config=configs/tofu.py:llama2_7b     # one H100 or v5e-16, hub checkpoint
"""

import ml_collections


def get_config(arg=None):
  c = ml_collections.ConfigDict
  lora = c(dict(rank=0, alpha=32.0, targets=("q_proj","k_proj","v_proj","o_proj","gate_proj","up_proj","down_proj")))
  model = c(dict(path="", architecture="llama", embed_dim=128, mlp_dim=344, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, dtype="float32", scan_layers=False, remat=False))
  cmodel = c(dict(model)); cmodel.num_layers=2
  train = dict(learning_rate=3e-3, batch_size=32, micro_batch_size=0, epochs=14, warmup=.1, schedule="linear", weight_decay=.1, clip_norm=1.0)
  return c(dict(
    seeds=(42,), max_length=64, length_multiple=16, pretrain_general=True,
    data=c(dict(source="embedded", dir="", num_owners=20, forget="forget10", forget_owners=(), num_holdout=2, seed=0)),
    tokenizer=c(dict(path="", vocab_size=2000, template="auto")),
    model=model, lora=lora, finetune=c(dict(train)),
    classifier=c(dict(model=cmodel, lora=c(dict(lora)), train=c(dict(train, epochs=10)), token_noise=.1, label_smoothing=.0)),
    unlearning=c(dict(reward_form="telescoped", segment_length=8, epsilon=.01, c_seg=3.0, kl_coef=.05,
      discount=1.0, gae_lambda=.95, clip_eps=.2, value_clip_eps=.2, value_coef=1.0, distill_coef=4.0, whiten_advantages=True,
      learning_rate=3e-4, value_learning_rate=3e-3, warmup_steps=10, weight_decay=0.0, clip_norm=1.0,
      epochs=15, samples_per_prompt=4, rollout_batch_size=40, minibatch_size=20, inner_epochs=2, retain_batch_size=32,
      temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=32, selection="unseen_level", target_score=-1.0, min_length_ratio=.7, max_degenerate_share=.05)),
    evaluation=c(dict(batch_size=64, max_examples=400, max_new_tokens=40, min_k=.4)),
    mesh=c(dict(data=1, fsdp=-1, tensor=1)),
    checkpoint=c(dict(every_steps=100, keep=2)),
  ))

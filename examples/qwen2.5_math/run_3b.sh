#!/usr/bin/env bash
# Trains Qwen2.5-3B on MATH with 3b.yaml beside this file (the CFPO paper's table 3 and system prompt).
#
#   bash examples/qwen2.5_math/run_3b.sh LOSS [key=value ...]
#
#   LOSS      cfpo, clip or dual_clip, or a loss of your own (then add policy_loss.plugins=[my_loss.py])
#   GPUS      1, 4 or 8 GPUs of this machine          default 8
#   VARIANT   base or instruct                        default base
#   COMMAND   train, or check: arithmetic and memory, starts nothing      default train
#
# Words after LOSS override everything, e.g. algorithm.iterations=8 algorithm.batch_ratio=2 trainer.total_steps=116.
# Layouts below are by the estimates of `cfpo check` for GPUs of 80 GB.
# None of them has run on a GPU yet. MATH first: .venv/bin/python examples/qwen2.5_math/prepare_math.py
set -euo pipefail

size=3b
loss=${1:?"usage: run_3b.sh LOSS [key=value ...]; LOSS is cfpo, clip or dual_clip"}
shift
gpus=${GPUS:-8}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Megatron's and vLLM's tensor parallelism, tokens of a micro-batch, memory savers, vLLM's share of the GPU.
case "$gpus" in
  1) tp=1 sequence_parallel=false rollout_tp=1 micro_batch_tokens=8192 recompute=true offload=true vllm_share=0.6 ;;
  4) tp=1 sequence_parallel=false rollout_tp=1 micro_batch_tokens=8192 recompute=false offload=false vllm_share=0.5 ;;
  8) tp=1 sequence_parallel=false rollout_tp=1 micro_batch_tokens=8192 recompute=false offload=false vllm_share=0.6 ;;
  *) echo "GPUS=$gpus has no layout here; use 1, 4 or 8, or copy a line and check it with COMMAND=check" >&2; exit 2 ;;
esac

exec ${CFPO:-cfpo} "${COMMAND:-train}" "$here/$size.yaml" \
  model.path="$model" \
  "${loss_words[@]}" \
  trainer.num_workers="$gpus" \
  actor.megatron.tensor_parallel_size=$tp \
  actor.megatron.sequence_parallel=$sequence_parallel \
  actor.megatron.recompute=$recompute \
  actor.megatron.offload=$offload \
  actor.micro_batch_tokens=$micro_batch_tokens \
  rollout.tensor_parallel_size=$rollout_tp \
  rollout.gpu_memory_utilization=$vllm_share \
  trainer.run_dir="outputs/qwen2.5_math/$size-$variant-$loss" \
  "$@"

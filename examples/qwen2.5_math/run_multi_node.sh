#!/usr/bin/env bash
# Trains Qwen2.5 on MATH over several nodes of a Ray cluster that is already up (examples/multi_node/README.md).
# Run it on one node of the cluster; code, data and outputs must be on a file system that all nodes share.
#
#   bash examples/qwen2.5_math/run_multi_node.sh SIZE LOSS [key=value ...]
#
#   SIZE      1.5b, 3b or 7b
#   LOSS      cfpo, clip or dual_clip, or a loss of your own (then add policy_loss.plugins=[my_loss.py])
#   NODES, GPUS_PER_NODE       default 2 and 8
#   TP, PP, ROLLOUT_TP         default 4, 1 and 2: tensor parallelism stays inside a node
#   RAY_ADDRESS                default auto: the cluster that this node belongs to
#   VARIANT, COMMAND           as in run_7b.sh
#
# Layouts are by the estimates of `cfpo check` for GPUs of 80 GB; none has run on a GPU yet.
set -euo pipefail

size=${1:?"usage: run_multi_node.sh SIZE LOSS [key=value ...]; SIZE is 1.5b, 3b or 7b"}
loss=${2:?"usage: run_multi_node.sh SIZE LOSS [key=value ...]; LOSS is cfpo, clip or dual_clip"}
shift 2
nodes=${NODES:-2}
gpus_per_node=${GPUS_PER_NODE:-8}
tp=${TP:-4}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "$tp" -gt 1 ]; then sequence_parallel=true; else sequence_parallel=false; fi

exec ${CFPO:-cfpo} "${COMMAND:-train}" "$here/$size.yaml" \
  model.path="$model" \
  "${loss_words[@]}" \
  trainer.ray_address="${RAY_ADDRESS:-auto}" \
  trainer.nodes="$nodes" \
  trainer.workers_per_node="$gpus_per_node" \
  actor.megatron.tensor_parallel_size="$tp" \
  actor.megatron.pipeline_parallel_size="${PP:-1}" \
  actor.megatron.sequence_parallel=$sequence_parallel \
  actor.micro_batch_tokens=16384 \
  rollout.tensor_parallel_size="${ROLLOUT_TP:-2}" \
  rollout.gpu_memory_utilization=0.6 \
  trainer.run_dir="outputs/qwen2.5_math/$size-$variant-$loss-$nodes-nodes" \
  "$@"

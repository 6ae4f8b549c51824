"""Estimated bytes on one device in each phase of a step. Formulas, not measurements: none was compared with a GPU yet.

With P parameters on the rank (its tp shard of its pp stage), e bytes a number (bf16: 2, fp32: 4) and dp replicas:

    weights      e P                                 gradients    4 P          (fp32 buffers of Megatron's DDP)
    optimizer    bf16: 12 P (fp32 master copy and two moments), fp32: 8 P; divided by dp with the distributed optimizer
                 (table of theoretical memory in Megatron-core's "Distributed Optimizer" guide: 6 + 12/d, 8 + 8/d);
                 what belongs to experts is divided by the ranks that hold the same ones, tp dp / ep
    reference    e P where the step plan has one
    kept         4 P, divided as the optimizer's, when actor.optimizer.grad_cosine keeps a gradient
    older        k e P in host memory with algorithm.weight_lag = k, and e P more while older weights are in the model
                 and the current ones in the host's: at each reshard and for the old log-probs
    activations  e tokens (4 h / s + ((2 q + 2 k) + 3 f) / tp) a layer, with h hidden, q and k the widths of queries and
                 keys, f the MLP's width, s = tp with sequence parallelism, else 1: the inputs of norms and linear maps,
                 rotated queries and keys, values, the attention's output, gate and up, and the MLP's product
                 (the counting of Korthikanti et al. 2022, section 4.1, for this layer: no dropout, and flash attention
                 keeps no scores). With k experts of width w a token, evenly used, k (2 h + 3 w) / s is in the place of
                 3 f / tp: each expert has its own copy of its tokens. With recompute: the layers' inputs, and one layer in
                 full. 1F1B keeps pp - stage micro-batches alive, most on the first stage; with c chunks a stage the layers
                 of one chunk for 2 (pp - stage - 1) + (c - 1) pp + 1 (Narayanan et al. 2021, section 2.2.2)
    head         16 bytes x chunk x V / tp (logits, their exponentials and gradients, fp32), and (4 + e) h V / tp for
                 the gradient of its weight
    vLLM         e P' of weights, with P' of its own tp; the KV cache takes the rest of gpu_memory_utilization (on a CPU
                 kv_cache_bytes); one token takes 2 e k layers / tp
    overhead     CUDA context, NCCL and fragmentation: 3 GiB assumed; a CPU process: 0.95 GiB measured

On a GPU vLLM gives its memory back while Megatron trains; on a CPU both stay. ``offload`` moves Megatron's gradients and
optimizer to the host while weights are handed over, and its weights too while vLLM generates. What then lies in the
host's memory is estimated apart; on a CPU the host's memory is the device's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cfpo_hybrid.models import ModelShape, padded_vocab_size, stage_sizes
from cfpo_hybrid.models.engine_specs import vllm_padded_vocab_size
from trainer.config import Config
from workers.config import MegatronConfig

GIB = 1024**3
GPU_OVERHEAD = 3 * GIB
CPU_OVERHEAD = int(0.95 * GIB)
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class MemoryPhase:
    """A phase of a step and what lies on the device in it, in bytes.

    Example: ``MemoryPhase("update", {"weights": 3, "gradients": 6})`` has total 9.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Phases of a step on the fullest rank, what the KV cache holds, and what lies in the host's memory beside a GPU."""

    phases: tuple[MemoryPhase, ...]
    kv_cache_bytes: int
    kv_token_bytes: int
    full_sequences: int
    """Sequences of the greatest length that the KV cache of one replica holds at one time."""
    host: MemoryPhase

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(phase.total for phase in self.phases)

    def fits(self, device: "Device") -> bool:
        """Whether all phases stay below a GPU's memory and leave room for one sequence; nothing is known of a CPU's."""
        return not device.is_gpu or (self.peak <= device.bytes and self.full_sequences >= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a worker runs on; ``bytes`` is only known, and only asked for, of a GPU."""

    is_gpu: bool
    bytes: int


def estimate_memory(config: Config, shape: ModelShape, device: Device) -> MemoryEstimate:
    """The phases of a step on one device: update, wake of vLLM's weights, generation."""
    state = _training_state(config, shape, device)
    overhead = {"overhead": GPU_OVERHEAD if device.is_gpu else CPU_OVERHEAD}
    held = rollout_parameters(shape, config.rollout.tensor_parallel_size)
    weights = {"vLLM weights": held * rollout_width(config, device)}
    cache = _kv_cache(config, weights["vLLM weights"], device)
    work = {"activations": _activations(config, shape, device), "head": _head(config, shape, device)}
    buckets = {"transfer buckets": 2 * config.rollout.bucket_bytes}
    offloads = device.is_gpu and config.actor.megatron.offload
    needed_to_hand_over = {"weights": state["weights"]} if offloads else state
    # A CPU has no sleep mode: vLLM's weights and cache stay where they are.
    always = {} if device.is_gpu else weights | cache
    kept, swapped = _older_weights(config, state["weights"])
    here = ({}, {}) if device.is_gpu else (kept, swapped)
    token_bytes = kv_token_bytes(config, shape, device)
    return MemoryEstimate(
        phases=(
            MemoryPhase("update", state | work | always | here[0] | overhead),
            MemoryPhase("wake and reshard", needed_to_hand_over | weights | always | here[1] | buckets | overhead),
            MemoryPhase("generate", ({} if offloads else state) | weights | cache | here[0] | overhead),
        ),
        kv_cache_bytes=cache["KV cache"],
        kv_token_bytes=token_bytes,
        full_sequences=cache["KV cache"] // (token_bytes * longest_sequence(config)),
        host=MemoryPhase("host memory", (_offloaded(state) if offloads else {}) | (swapped if device.is_gpu else {})),
    )


def longest_sequence(config: Config) -> int:
    """Most tokens of a prompt with its response."""
    return config.data.max_prompt_length + config.data.max_response_length


def actor_width(config: Config, device: Device) -> int:
    """Bytes of a number in the actor's weights."""
    name = config.actor.dtype
    return BYTES[("bfloat16" if device.is_gpu else "float32") if name == "auto" else name]


def rollout_width(config: Config, device: Device) -> int:
    """Bytes of a number in vLLM's weights."""
    return actor_width(config, device) if config.rollout.dtype == "auto" else BYTES[config.rollout.dtype]


def layer_parameters(shape: ModelShape, tp: int, ep: int | None = None) -> int:
    """Parameters of one decoder layer on a rank; norms and routers are not cut.

    Args:
        shape: of the model.
        tp: tensor-parallel size.
        ep: expert-parallel size of Megatron; None for vLLM, which cuts experts by tp.
    """
    qkv = (shape.query_size + 2 * shape.kv_size) * (shape.hidden_size + shape.qkv_bias)
    attention = qkv + shape.query_size * shape.hidden_size
    router = shape.experts.count * shape.hidden_size if shape.experts else 0
    mlp = shape.mlp_parameters - router
    norms = 2 * shape.hidden_size + 2 * shape.head_dim * shape.qk_norm
    if shape.experts and ep:
        return -(-attention // tp) + mlp // ep + router + norms
    return -(-(attention + mlp) // tp) + router + norms


def stage_experts(shape: ModelShape, megatron: MegatronConfig) -> list[int]:
    """Parameters of the experts on one rank of each pipeline stage of Megatron."""
    if shape.experts is None:
        return [0] * megatron.pipeline_parallel_size
    layer = 3 * shape.experts.count * shape.hidden_size * shape.experts.intermediate_size
    return [layers * layer // megatron.expert_parallel_size for layers in _stages(shape, megatron)]


def stage_parameters(shape: ModelShape, megatron: MegatronConfig) -> list[int]:
    """Parameters of one rank of each pipeline stage of Megatron.

    The first stage has the embedding and the last one the head; when they are tied, the last of several stages has a
    copy of its own.
    """
    tp, pp = megatron.tensor_parallel_size, megatron.pipeline_parallel_size
    layer = layer_parameters(shape, tp, megatron.expert_parallel_size)
    counts = [layers * layer for layers in _stages(shape, megatron)]
    embedding = padded_vocab_size(shape.vocab_size, tp) // tp * shape.hidden_size
    counts[0] += embedding
    counts[-1] += shape.hidden_size + (embedding if pp > 1 or not shape.tied_embeddings else 0)
    return counts


def rollout_parameters(shape: ModelShape, tp: int) -> int:
    """Parameters of one vLLM rank; with fewer key-value heads than ranks each head is held more than once."""
    copies = max(1, tp // shape.num_kv_heads)
    extra = 2 * shape.kv_size * (shape.hidden_size + shape.qkv_bias) * (copies - 1) // tp
    embedding = vllm_padded_vocab_size(shape.vocab_size) // tp * shape.hidden_size
    embeddings = embedding if shape.tied_embeddings else 2 * embedding
    return shape.num_layers * (layer_parameters(shape, tp) + extra) + embeddings + shape.hidden_size


def _stages(shape: ModelShape, megatron: MegatronConfig) -> tuple[int, ...]:
    return stage_sizes(shape.num_layers, megatron.pipeline_parallel_size, megatron.cut)


def _kv_cache(config: Config, weights: int, device: Device) -> dict[str, int]:
    if not device.is_gpu:
        return {"KV cache": config.rollout.kv_cache_bytes}
    return {"KV cache": max(0, int(config.rollout.gpu_memory_utilization * device.bytes) - weights)}


def _training_state(config: Config, shape: ModelShape, device: Device) -> dict[str, int]:
    """What Megatron keeps between steps on its fullest stage."""
    megatron, width = config.actor.megatron, actor_width(config, device)
    count, experts = max(
        zip(stage_parameters(shape, megatron), stage_experts(shape, megatron), strict=True)  # the fullest stage's
    )
    layout = config.train_layout
    shards, expert_shards = (
        (layout.dp, layout.dp * layout.tp // layout.ep) if megatron.distributed_optimizer else (1, 1)
    )

    def sharded(width: int) -> int:
        return width * (count - experts) // shards + width * experts // expert_shards

    state = {
        "weights": width * count,
        "gradients": 4 * count,
        "optimizer": sharded(12 if width == 2 else 8),
    }
    kept = {"kept gradient": sharded(4)} if config.actor.optimizer.grad_cosine else {}
    return state | kept | ({"reference": width * count} if config.plan.reference else {})


def _older_weights(config: Config, weights: int) -> tuple[dict[str, int], dict[str, int]]:
    """What a known weight lag keeps: all the time, and while older weights stand in the model."""
    lag = config.plan.weight_lag
    if not lag:
        return {}, {}
    return {"older weights": lag * weights}, {"older weights": (lag + 1) * weights}


def _offloaded(state: dict[str, int]) -> dict[str, int]:
    """Gradients are dropped, all else of Megatron's moves to the host."""
    return {"offloaded": sum(size for name, size in state.items() if name != "gradients")}


def _activations(config: Config, shape: ModelShape, device: Device) -> int:
    """What the backward pass of the fullest stage needs, in bytes."""
    megatron, width = config.actor.megatron, actor_width(config, device)
    tp = megatron.tensor_parallel_size
    tokens = micro_batch_tokens(config)
    cut = tp if megatron.sequence_parallel else 1
    attention = (2 * shape.query_size + 2 * shape.kv_size) // tp
    if shape.experts:
        mlp = shape.experts.per_token * (2 * shape.hidden_size + 3 * shape.experts.intermediate_size) // cut
    else:
        mlp = 3 * shape.intermediate_size // tp
    layer = width * tokens * (4 * shape.hidden_size // cut + attention + mlp)
    entry = width * tokens * shape.hidden_size // cut
    alive = max(_layers_alive(_stages(shape, megatron), megatron.cut.chunks))
    return alive * entry + layer if megatron.recompute else alive * layer


def _layers_alive(sizes: tuple[int, ...], chunks: int) -> Iterator[int]:
    """For each stage, the layers that have run forward and not yet backward, counted once for each micro-batch."""
    for stage, size in enumerate(sizes):
        later = len(sizes) - stage - 1
        passes = later + 1 if chunks == 1 else 2 * later + (chunks - 1) * len(sizes) + 1
        yield passes * (size // chunks)


def _head(config: Config, shape: ModelShape, device: Device) -> int:
    rows = padded_vocab_size(shape.vocab_size, config.actor.megatron.tensor_parallel_size)
    rows //= config.actor.megatron.tensor_parallel_size
    chunk = min(config.actor.log_prob_chunk_tokens, micro_batch_tokens(config))
    return 16 * chunk * rows + (4 + actor_width(config, device)) * shape.hidden_size * rows


def micro_batch_tokens(config: Config) -> int:
    """Most tokens of one micro-batch: the budget, or the longest sequence, which gets one of its own."""
    return max(config.actor.micro_batch_tokens, longest_sequence(config))


def kv_token_bytes(config: Config, shape: ModelShape, device: Device) -> int:
    """Bytes that the keys and values of one token take on a rank of vLLM."""
    tp = config.rollout.tensor_parallel_size
    heads = max(1, shape.num_kv_heads // tp)
    return 2 * rollout_width(config, device) * heads * shape.head_dim * shape.num_layers

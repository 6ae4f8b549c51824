"""ModelShape -> Megatron-core's GPTModel on this rank, with the project's own norm, activation and attention in it.

A rank's model is a list of chunks: mostly one, several where its pipeline stage is cut into them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from cfpo_hybrid.models import ModelShape, padded_vocab_size, pipeline_layers
from cfpo_hybrid.models.engine_specs import chunk_prefix, megatron_specs
from cfpo_hybrid.models.stages import PipelineCut
from cfpo_hybrid.resharding import ShardSpec
from workers.config import ActorConfig
from workers.megatron.attention import Kernel, PackedAttention, Rotary, choose_kernel
from workers.megatron.layers import RMSNorm, Router, SwiGLU
from workers.megatron.log_probs import Head
from workers.megatron.parallel import ParallelGroups
from workers.process import resolve_dtype


class PolicyModel(GPTModel):
    """A GPTModel whose last stage returns hidden states; logits are made where they are used, chunk by chunk."""

    rotary: Rotary

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return hidden_states

    @property
    def head_weight(self) -> Float[Tensor, "vocab_shard hidden"]:
        """Of the language-model head, on the last stage."""
        tied = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        weight = self.output_layer.weight if tied is None else tied
        assert weight is not None
        return weight


Chunks = Sequence[PolicyModel] | Sequence[DistributedDataParallel]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """All that decides what is built on a rank."""

    shape: ModelShape
    actor: ActorConfig
    groups: ParallelGroups
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that compute; master weights and gradients are fp32."""
        return resolve_dtype(self.actor.dtype, device=self.device)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding over all tp ranks."""
        return padded_vocab_size(self.shape.vocab_size, self.groups.layout.tp)

    def head(self, temperature: float) -> Head:
        """The language-model head on this rank, for logits that are divided by a temperature."""
        rows = self.padded_vocab // self.groups.layout.tp
        first = self.groups.coordinate.tp * rows
        return Head(
            first_token=first,
            num_tokens=min(max(self.shape.vocab_size - first, 0), rows),
            temperature=temperature,
            chunk_tokens=self.actor.log_prob_chunk_tokens,
            tp_group=self.groups.tp,
        )

    def specs_of_rank(self, rank: int) -> list[ShardSpec]:
        """What the parameters of any rank of the training layout hold; needs no communication."""
        layout = self.groups.layout
        return megatron_specs(self.shape, layout, layout.coordinate(rank), self.actor.megatron.cut)


def build_model(recipe: ModelRecipe) -> list[PolicyModel]:
    """The chunks of this rank's pipeline stage and tensor shard, mostly one.

    Every parameter is zero (norms one) until weights are loaded. Call inside ``megatron_on(device)``.
    """
    stages = pipeline_layers(recipe.shape.num_layers, recipe.groups.layout.pp, recipe.actor.megatron.cut)
    chunks = stages[recipe.groups.coordinate.pp]
    return [_build_chunk(recipe, chunk, len(layers)) for chunk, layers in enumerate(chunks)]


def _build_chunk(recipe: ModelRecipe, chunk: int, num_layers: int) -> PolicyModel:
    shape, groups = recipe.shape, recipe.groups
    num_chunks = recipe.actor.megatron.cut.chunks
    model = PolicyModel(
        _transformer_config(recipe),
        _block_spec(recipe, num_layers),  # pyright: ignore[reportArgumentType]
        vocab_size=recipe.padded_vocab,
        max_sequence_length=shape.max_position_embeddings,
        pre_process=groups.is_first_stage and chunk == 0,
        post_process=groups.is_last_stage and chunk == num_chunks - 1,
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="none",  # rotated in PackedAttention
        vp_stage=chunk if num_chunks > 1 else None,
    )
    model.to(recipe.device)  # routers are always built on the host
    _mark_sharded(model)
    for name, parameter in model.named_parameters():
        if "layernorm" not in name:
            nn.init.zeros_(parameter)
    model.rotary = Rotary(shape, recipe.dtype, recipe.device)
    return model


def wrap_for_training(chunks: Iterable[PolicyModel], recipe: ModelRecipe) -> list[DistributedDataParallel]:
    """Adds fp32 gradient buffers and their reduction over dp. Call inside ``megatron_on(device)``."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=recipe.actor.megatron.distributed_optimizer,
        # Ranks may have different numbers of micro-batches, even none; reduction waits until all are done.
        overlap_grad_reduce=False,
    )
    return [DistributedDataParallel(chunk.config, config, chunk) for chunk in chunks]


def unwrapped(chunk: nn.Module) -> PolicyModel:
    """The model inside its data-parallel wrapper."""
    inner = chunk.module if isinstance(chunk, DistributedDataParallel) else chunk
    assert isinstance(inner, PolicyModel)
    return inner


def named_parameters(chunks: Chunks) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all chunks under the names of their shard specs."""
    for number, chunk in enumerate(chunks):
        for name, parameter in unwrapped(chunk).named_parameters():
            yield chunk_prefix(number, len(chunks)) + name, parameter


def _transformer_config(recipe: ModelRecipe) -> TransformerConfig:
    """Megatron-core's configuration of the model."""
    shape, megatron, layout = recipe.shape, recipe.actor.megatron, recipe.groups.layout
    recompute: dict[str, Any] = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.intermediate_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_norm_eps,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # "take the activation of the layer spec", which is ours
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=recipe.dtype,
        pipeline_dtype=recipe.dtype,
        bf16=recipe.dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        sequence_parallel=megatron.sequence_parallel and layout.tp > 1,
        use_cpu_initialization=recipe.device.type != "cuda",
        perform_initialization=False,  # weights are always loaded
        variable_seq_lengths=True,  # micro-batches differ in length...
        moe_token_dispatcher_type="alltoall",  # ...which Megatron-core allows only with this, experts or not
        calculate_per_token_loss=True,  # our loss is normalised already: neither the schedule nor DDP may rescale it
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        **(recompute if megatron.recompute else {}),
        **_stages(megatron.cut, layout.pp),
        **_mixture(shape, layout.ep),
    )


def _stages(cut: PipelineCut, pp: int) -> dict[str, Any]:
    """The part of the configuration that is about the layers of each stage."""
    stages: dict[str, Any] = {
        "num_layers_in_first_pipeline_stage": cut.first,
        # Of two stages one says it all; Megatron-core divides by the number of stages between them.
        "num_layers_in_last_pipeline_stage": None if pp == 2 and cut.first else cut.last,
    }
    if cut.chunks > 1:
        stages |= {
            "virtual_pipeline_model_parallel_size": cut.chunks,
            # With two stages a batch of messages would hold two of the same pair of ranks, which nothing tells apart.
            "overlap_p2p_comm": True,
            "batch_p2p_comm": False,
        }
    return stages


def _mixture(shape: ModelShape, ep: int) -> dict[str, Any]:
    """The part of the configuration that is about experts."""
    if shape.experts is None:
        return {}
    return {
        "num_moe_experts": shape.experts.count,
        "moe_router_topk": shape.experts.per_token,
        "moe_ffn_hidden_size": shape.experts.intermediate_size,
        # A softmax over the chosen experts' logits is a softmax over all of them, rescaled to sum to one.
        "moe_router_pre_softmax": not shape.experts.normalised,
        "moe_router_load_balancing_type": "none",
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": 1,
    }


def _block_spec(recipe: ModelRecipe, num_layers: int) -> TransformerBlockSubmodules:
    layer = _layer_spec(recipe.shape, choose_kernel(recipe.actor.attention, recipe.device, recipe.dtype))
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)  # pyright: ignore[reportArgumentType]


def _layer_spec(shape: ModelShape, kernel: Kernel) -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,  # pyright: ignore[reportArgumentType]
        core_attention=partial(PackedAttention, kernel=kernel),  # pyright: ignore[reportArgumentType]
        linear_proj=RowParallelLinear,
        q_layernorm=RMSNorm if shape.qk_norm else None,  # pyright: ignore[reportArgumentType]
        k_layernorm=RMSNorm if shape.qk_norm else None,  # pyright: ignore[reportArgumentType]
    )
    mlp = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear, activation_func=SwiGLU)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
            pre_mlp_layernorm=RMSNorm,
            mlp=_mixture_spec(mlp) if shape.experts else ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
        ),
    )


def _mixture_spec(expert: MLPSubmodules) -> ModuleSpec:
    experts = ModuleSpec(module=SequentialMLP, submodules=expert)
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=experts, router=Router))


def _mark_sharded(model: nn.Module) -> None:
    """Says of every sharded weight that it is: without, the gradient norm counts only the first tp rank's part.

    Megatron-core leaves these marks to its initialisation, which is skipped. It also takes experts for ordinary weights
    where ep is 1, and would not sum their gradients over tp ranks, which send them different tokens.
    """
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding) and module.weight is not None:
            set_tensor_model_parallel_attributes(module.weight, True, 0, 1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(module.weight, True, 1, 1)
        if isinstance(module, SequentialMLP):
            for weight in module.parameters():
                # "Reduce over the ranks that hold this expert."
                weight.allreduce = False  # pyright: ignore[reportAttributeAccessIssue]

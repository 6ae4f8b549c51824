"""Tiny policies for tests: built in any layout from one Hugging Face state dict, and read back into one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from tiny_model import checkpoint_tensors, tiny_model
from torch import Tensor

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.models import model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto, partition_rows
from cfpo_hybrid.resharding.shard_spec import ShardSpec
from workers.config import ActorConfig, MegatronConfig, OptimizerConfig
from workers.megatron.policy import MegatronPolicy

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One layout to run the same mini-batches in."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    micro_batch_tokens: int = 10_000
    recompute: bool = False
    bf16: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    first_stage_layers: int | None = None
    chunks: int = 1
    grad_cosine: bool = False
    share_prompts: bool = True

    def actor(self) -> ActorConfig:
        return ActorConfig(
            lr=1e-2,
            micro_batch_tokens=self.micro_batch_tokens,
            log_prob_chunk_tokens=16,
            dtype="bfloat16" if self.bf16 else "auto",
            megatron=MegatronConfig(
                tensor_parallel_size=self.tp,
                pipeline_parallel_size=self.pp,
                expert_parallel_size=self.ep,
                sequence_parallel=self.sequence_parallel,
                distributed_optimizer=self.distributed_optimizer,
                recompute=self.recompute,
                first_stage_layers=self.first_stage_layers,
                virtual_pipeline_parallel_size=self.chunks,
            ),
            # The gradient of a key bias is zero but for rounding; with the usual eps AdamW would turn that rounding into
            # steps of full size.
            optimizer=OptimizerConfig(adam_eps=1e-3, clip_grad=0.5, grad_cosine=self.grad_cosine),
        )


def build_policy(case: Case, **options: Any) -> MegatronPolicy:
    """This rank's policy with the weights of ``tiny_model(**case.model)``."""
    model = tiny_model(**case.model)
    layout = ParallelLayout.of_world(dist.get_world_size(), tp=case.tp, pp=case.pp, ep=case.ep)
    settings: dict[str, Any] = {"seed": 1, "total_optimizer_steps": 10, "temperature": 0.7} | options
    policy = MegatronPolicy(
        model_shape(model.config.to_dict()), case.actor(), layout, rank=dist.get_rank(), device=CPU, **settings
    )
    write_weights(policy, checkpoint_tensors(model))
    return policy


def write_weights(policy: MegatronPolicy, weights: Weights) -> None:
    """Fills the local parameters from whole Hugging Face tensors."""
    parameters = policy.parameters_by_name()
    specs = policy.specs()
    assert {spec.name: spec.shape for spec in specs} == {name: tuple(p.shape) for name, p in parameters.items()}
    for spec in specs:
        for piece in spec.pieces:
            parameters[spec.name][piece.local.slices] = weights[piece.hf_name][piece.hf.slices]
    policy.weights_changed()


def whole_weights(ranks: Iterable[tuple[Sequence[ShardSpec], Weights]], like: Weights) -> Weights:
    """Whole Hugging Face tensors from (specs, local parameters) of all ranks; copies must agree."""
    whole = {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}
    for specs, parameters in ranks:
        for spec in specs:
            for piece in spec.pieces:
                part = parameters[spec.name][piece.local.slices]
                seen = whole[piece.hf_name][piece.hf.slices]
                torch.testing.assert_close(part, torch.where(seen.isnan(), part, seen), rtol=1e-6, atol=1e-7)
                whole[piece.hf_name][piece.hf.slices] = part
    return whole


def mini_batch(rows: int = 7, seed: int = 0, vocab: int = 101, by_token: bool = False) -> DataProto:
    """Rows of uneven length, two or three to a prompt; log-probs before the update are not those of the model, so ratios
    differ from 1. Advantages are one a row or one a token."""
    generator = torch.Generator().manual_seed(seed)
    group_ids = torch.arange(rows) * 3 // 7
    prompt_lengths = torch.randint(1, 9, (rows,), generator=generator)[group_ids]
    response_lengths = torch.randint(1, 13, (rows,), generator=generator)
    mask = torch.arange(12) < response_lengths.unsqueeze(1)
    mask[0, 0] = False  # a token inside the response that does not count
    noise = torch.randn(rows, 12, generator=generator)
    return DataProto(
        {
            "prompts": torch.randint(vocab, (rows, 8), generator=generator)[group_ids],
            "group_ids": group_ids,
            "prompt_lengths": prompt_lengths,
            "responses": torch.randint(vocab, (rows, 12), generator=generator),
            "response_lengths": response_lengths,
            "response_mask": mask,
            "old_log_probs": noise * 0.1 - 5.0,
            "ref_log_probs": noise * 0.2 - 5.0,
            "rollout_log_probs": noise * 0.1 - 5.0 + 0.1 * noise.roll(1, dims=1),
            "advantages": torch.randn((rows, 12) if by_token else (rows,), generator=generator),
        }
    )


def objective(**options: Any) -> PolicyObjective:
    """CFPO with KL and an entropy bonus, so that every path to the gradient is used."""
    settings: dict[str, Any] = {"kl_coef": 0.1, "entropy_coef": 0.05} | options
    return PolicyObjective(loss=build_policy_loss("cfpo"), **settings)


def rows_of_rank(batch: DataProto, policy: MegatronPolicy) -> DataProto:
    """This dp rank's share of a mini-batch."""
    place = policy.groups
    return batch.take(partition_rows(batch, place.layout.dp)[place.coordinate.dp])

"""Which transformer layers each pipeline stage holds, in global layer numbers. Pure.

8 layers, 2 stages             0 1 2 3 | 4 5 6 7
the same in 2 chunks a stage   0 1, 4 5 | 2 3, 6 7    (virtual pipeline: the model passes through the stages twice)
"""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cfpo_hybrid.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineCut:
    """How layers are cut into stages; by default equally, and each stage in one piece.

    Args:
        first: layers of the first stage, when stages are uneven.
        last: layers of the last stage, when stages are uneven.
        chunks: equal pieces of each stage, which are as many rounds through the stages apart (Narayanan et al. 2021,
            "Efficient large-scale language model training on GPU clusters using Megatron-LM", section 2.2.2).
    """

    first: int | None = None
    last: int | None = None
    chunks: int = 1


EQUAL_STAGES = PipelineCut()


def stage_sizes(num_layers: int, stages: int, cut: PipelineCut = EQUAL_STAGES) -> tuple[int, ...]:
    """Layers of each stage, as Megatron-core cuts them.

    The first and the last stage take what is asked for; the others share the rest equally.

    Raises:
        ConfigError: the layers do not divide, a stage would be empty, or one stage is asked to be uneven or in chunks.
    """
    sizes = _one_stage(num_layers, cut) if stages == 1 else _several_stages(num_layers, stages, cut)
    if any(size % cut.chunks for size in sizes):
        common = math.gcd(*sizes)
        legal = [chunks for chunks in range(1, common + 1) if common % chunks == 0]
        raise ConfigError(
            f"pipeline stages of {_listed(sorted(set(sizes)))} layers cannot be cut into {cut.chunks} chunks each; "
            f"chunks that divide every stage: {_listed(legal)}"
        )
    return sizes


def pipeline_layers(num_layers: int, stages: int, cut: PipelineCut = EQUAL_STAGES) -> tuple[tuple[range, ...], ...]:
    """The layers of each chunk of each stage, ``[stage][chunk]``; arguments and errors are :func:`stage_sizes`'s."""
    of_a_round = [size // cut.chunks for size in stage_sizes(num_layers, stages, cut)]
    bounds = accumulate(of_a_round * cut.chunks, initial=0)
    in_order = [range(start, stop) for start, stop in pairwise(bounds)]
    return tuple(tuple(in_order[stage::stages]) for stage in range(stages))


def _one_stage(num_layers: int, cut: PipelineCut) -> tuple[int, ...]:
    if (cut.first or num_layers) != num_layers or (cut.last or num_layers) != num_layers:
        raise ConfigError(f"one pipeline stage holds all {num_layers} layers; leave first and last out")
    if cut.chunks != 1:
        raise ConfigError(f"{cut.chunks} chunks a stage are for several pipeline stages, and there is one; use 1 chunk")
    return (num_layers,)


def _several_stages(num_layers: int, stages: int, cut: PipelineCut) -> tuple[int, ...]:
    middle_stages = stages - (cut.first is not None) - (cut.last is not None)
    left = num_layers - (cut.first or 0) - (cut.last or 0)
    divides = left == 0 if middle_stages == 0 else left % middle_stages == 0
    sizes = [left // middle_stages if middle_stages else 0] * stages
    if cut.first is not None:
        sizes[0] = cut.first
    if cut.last is not None:
        sizes[-1] = cut.last
    if not divides or min(sizes) < 1:
        raise ConfigError(
            f"{num_layers} layers cannot be cut into {stages} pipeline stages with first={cut.first}, last={cut.last}; "
            f"{_advice(num_layers, stages)}"
        )
    return tuple(sizes)


def _advice(num_layers: int, stages: int) -> str:
    legal = [size for size in range(1, num_layers + 1) if num_layers % size == 0]
    equal = f"stages that divide the layers equally: {_listed(legal)}"
    share, rest = divmod(num_layers, stages)
    if rest == 0 or share < 1 or stages < 2:
        return equal
    # Middle stages of `share + 1` layers shrink the last one; of `share` layers they make it longer.
    return f"{equal}; or keep {stages} stages with last={num_layers - (stages - 1) * share}"


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))

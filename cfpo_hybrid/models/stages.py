"""Which transformer layers each pipeline stage holds, in global layer numbers. Pure."""

from cfpo_hybrid.errors import ConfigError


def pipeline_layers(
    num_layers: int, stages: int, first: int | None = None, last: int | None = None
) -> tuple[range, ...]:
    """Cuts the layers into contiguous stages, as Megatron-core does.

    The first and the last stage take what is asked for; the others share the rest equally.

    Args:
        num_layers: layers of the whole model.
        stages: pipeline-parallel size.
        first: layers of the first stage, when stages are uneven.
        last: layers of the last stage, when stages are uneven.

    Raises:
        ConfigError: the layers do not divide, a stage would be empty, or one stage is asked to be uneven.
    """
    if stages == 1:
        if (first or num_layers) != num_layers or (last or num_layers) != num_layers:
            raise ConfigError(f"one pipeline stage holds all {num_layers} layers; leave first and last out")
        return (range(num_layers),)
    middle_stages = stages - (first is not None) - (last is not None)
    left = num_layers - (first or 0) - (last or 0)
    divides = left == 0 if middle_stages == 0 else left % middle_stages == 0
    middle = left // middle_stages if middle_stages else 0
    counts = [middle] * stages
    if first is not None:
        counts[0] = first
    if last is not None:
        counts[-1] = last
    if not divides or min(counts) < 1:
        raise ConfigError(
            f"{num_layers} layers cannot be cut into {stages} pipeline stages with first={first}, last={last}; "
            f"{_advice(num_layers, stages)}"
        )
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


def _advice(num_layers: int, stages: int) -> str:
    legal = [size for size in range(1, num_layers + 1) if num_layers % size == 0]
    equal = f"stages that divide the layers equally: {', '.join(map(str, legal))}"
    share, rest = divmod(num_layers, stages)
    if rest == 0 or share < 1 or stages < 2:
        return equal
    # Middle stages of `share + 1` layers shrink the last one; of `share` layers they make it longer.
    return f"{equal}; or keep {stages} stages with last_stage_layers={num_layers - (stages - 1) * share}"

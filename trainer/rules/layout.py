"""Rules about ranks: what divides the world, the model's heads and its layers."""

from collections.abc import Iterator
from dataclasses import replace

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import ModelShape, stage_sizes
from cfpo_hybrid.models.engine_specs import check_divides, check_experts_divide, check_rollout_divides
from trainer.config import Config
from trainer.config.problem import Problem, count, divisors, listing, nearest_multiples

TP = "actor.megatron.tensor_parallel_size"
PP = "actor.megatron.pipeline_parallel_size"
VPP = "actor.megatron.virtual_pipeline_parallel_size"
EP = "actor.megatron.expert_parallel_size"
FIRST = "actor.megatron.first_stage_layers"
LAST = "actor.megatron.last_stage_layers"
SP = "actor.megatron.sequence_parallel"
CP = "actor.megatron.context_parallel_size"
ROLLOUT_TP = "rollout.tensor_parallel_size"
WORLD = "trainer.num_workers"
NODES = "trainer.nodes"
PER_NODE = "trainer.workers_per_node"


def nodes(config: Config) -> Iterator[Problem]:
    """num_workers = nodes x workers_per_node, where more than one of them is given."""
    trainer = config.trainer
    if trainer.num_workers is None or trainer.nodes < 1:
        return
    if trainer.workers_per_node is not None and trainer.num_workers != trainer.nodes * trainer.workers_per_node:
        product = trainer.nodes * trainer.workers_per_node
        yield Problem(
            (WORLD, NODES, PER_NODE),
            f"{WORLD}={trainer.num_workers} is not {NODES}={trainer.nodes} x {PER_NODE}={trainer.workers_per_node} = "
            f"{product}; leave {WORLD} out or set it to {product}",
        )
    elif trainer.num_workers % trainer.nodes:
        legal = nearest_multiples(trainer.num_workers, trainer.nodes)
        yield Problem(
            (WORLD, NODES),
            f"{WORLD}={trainer.num_workers} cannot be spread evenly over {NODES}={trainer.nodes}; "
            f"nearest numbers of workers: {listing(legal)}",
        )


def train_replicas(config: Config) -> Iterator[Problem]:
    """tp x pp x cp divides the world."""
    megatron, world = config.actor.megatron, config.trainer.world_size
    tp, pp, cp = megatron.tensor_parallel_size, megatron.pipeline_parallel_size, megatron.context_parallel_size
    if min(tp, pp, cp, world) < 1 or world % (tp * pp * cp) == 0:
        return
    fitting = [size for size in divisors(world) if world % (size * pp * cp) == 0]
    advice = f"; with {count(world, 'worker')} {TP} can be {listing(fitting)}" if fitting else ""
    sizes = f"{TP}={tp} x {PP}={pp}" + (f" x {CP}={cp}" if cp > 1 else "")
    yield Problem(
        (WORLD, NODES, PER_NODE, TP, PP, CP),
        f"{count(world, 'worker')} cannot be divided into model replicas of {sizes} = {tp * pp * cp} ranks; "
        f"nearest numbers of workers: {listing(nearest_multiples(world, tp * pp * cp))}{advice}",
    )


def rollout_replicas(config: Config) -> Iterator[Problem]:
    """The rollout's tp divides the world."""
    tp, world = config.rollout.tensor_parallel_size, config.trainer.world_size
    if min(tp, world) < 1 or world % tp == 0:
        return
    yield Problem(
        (WORLD, NODES, PER_NODE, ROLLOUT_TP),
        f"{count(world, 'worker')} cannot be divided into vLLM replicas of {ROLLOUT_TP}={tp} ranks; "
        f"with {count(world, 'worker')} it can be {listing(divisors(world))}",
    )


def expert_groups(config: Config) -> Iterator[Problem]:
    """ep divides the ranks of a stage."""
    megatron, world = config.actor.megatron, config.trainer.world_size
    tp, pp, ep = megatron.tensor_parallel_size, megatron.pipeline_parallel_size, megatron.expert_parallel_size
    cp = megatron.context_parallel_size
    if min(tp, pp, cp, ep, world) < 1 or world % (tp * pp * cp) or world // pp % ep == 0:
        return
    yield Problem(
        (WORLD, NODES, PER_NODE, PP, EP),
        f"{EP}={ep} does not divide the {world // pp} ranks of a pipeline stage ({world} workers / {PP}={pp}); "
        f"it can be {listing(divisors(world // pp))}",
    )


def context_parallel(config: Config) -> Iterator[Problem]:
    """No engine here splits a sequence over ranks; a plan alone may, where weights are copies as over dp."""
    size = config.actor.megatron.context_parallel_size
    if size > 1:
        yield Problem(
            (CP,),
            f"{CP}={size}: training does not split sequences over ranks; set it to 1 (cfpo reshard-plan takes it)",
        )


def sequence_parallel(config: Config) -> Iterator[Problem]:
    """Sequence parallelism splits over tp, so it needs more than one tp rank."""
    megatron = config.actor.megatron
    if megatron.sequence_parallel and megatron.tensor_parallel_size == 1:
        yield Problem((SP, TP), f"{SP}=true needs {TP} of at least 2, which is 1; raise it or set {SP}=false")


def heads(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """Heads, key-value heads and the intermediate size divide by either engine's tp.

    Megatron-core needs key-value heads that divide tp or are divided by it ("num_query_groups must be a multiple or
    divisor" in its TransformerConfig); vLLM replicates key-value heads by the same rule. Megatron pads the vocabulary
    until it divides; vLLM's padding does not know of tp.
    """
    train, rollout = config.actor.megatron.tensor_parallel_size, config.rollout.tensor_parallel_size
    try:
        check_divides(shape, max(train, 1), "Megatron")
    except ModelError as error:
        yield Problem((TP,), f"{TP}={train}: {error}")
    try:
        check_rollout_divides(shape, max(rollout, 1))
    except ModelError as error:
        yield Problem((ROLLOUT_TP,), f"{ROLLOUT_TP}={rollout}: {error}")


def experts(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """The experts divide by ep, and tp ranks route tokens of their own (Megatron-core's MoELayer asks for it)."""
    megatron = config.actor.megatron
    try:
        check_experts_divide(shape, max(megatron.expert_parallel_size, 1))
    except ModelError as error:
        yield Problem((EP,), f"{EP}={megatron.expert_parallel_size}: {error}")
    if shape.experts and megatron.tensor_parallel_size > 1 and not megatron.sequence_parallel:
        yield Problem(
            (SP, TP),
            f"a mixture of experts with {TP}={megatron.tensor_parallel_size} needs {SP}=true; set it, or {TP}=1",
        )


def stages(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """The layers divide over the pipeline stages, and those of each stage over its chunks."""
    pp, cut = config.actor.megatron.pipeline_parallel_size, config.actor.megatron.cut
    try:
        stage_sizes(shape.num_layers, max(pp, 1), replace(cut, chunks=max(cut.chunks, 1)))
    except ConfigError as error:
        chunks = f", {VPP}={cut.chunks}" if cut.chunks > 1 else ""
        ends = f" (first: {FIRST}, last: {LAST})" if "first" in str(error) else ""
        yield Problem((PP, VPP, FIRST, LAST), f"{PP}={pp}{chunks}: {error}{ends}")


RULES = (nodes, train_replicas, rollout_replicas, expert_groups, context_parallel, sequence_parallel)
MODEL_RULES = (heads, experts, stages)

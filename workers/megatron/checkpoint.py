"""A policy on disk: weights, optimizer, schedule and random state. Nothing in it can run code.

    policy.json                    layout that wrote it, optimizer steps taken, kept versions of the weights
    state-rank3.safetensors        fp32 masters and AdamW's moments that a rank wrote, by rectangles of Hugging Face
                                   tensors, and with algorithm.weight_lag the weights of the last rollout steps; a tensor
                                   is named kind, Hugging Face name and rectangle, e.g.
                                   exp_avg/model.layers.0.self_attn.q_proj.weight[0:64, 0:128]
    state.index.json               for every Hugging Face name the rectangles there are, and the file that holds each
    random-rank3.safetensors       random state of a rank

A checkpoint resumes under any layout, with the distributed optimizer or without: each rank reads the rectangles that its
own shards hold. Under the layout that wrote it everything is restored bit for bit. Under another one so are weights and
optimizer, but random states belong to ranks, so they are seeded anew from the run's seed and the step. The weights that
compute are the fp32 masters cast to their dtype, as after every optimizer step, and are not stored a second time.
"""

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.resharding import Piece, Rectangle, ShardSpec
from cfpo_hybrid.resharding.shard_spec import range_rectangles
from workers.megatron.build import ModelRecipe
from workers.megatron.host_memory import LaggedWeights
from workers.megatron.optimizer import MOMENTS, OptimizerShard, PolicyOptimizer
from workers.megatron.parallel import random_state, restore_random_state, seed_anew

logger = logging.getLogger(__name__)

MASTER = "master"
DESCRIPTION_FILE = "policy.json"
INDEX_FILE = "state.index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyState:
    """What a checkpoint holds of a rank, as live objects.

    Args:
        recipe: what the model was built from.
        parameters: weights of the local shard by name, written in place when a checkpoint is loaded.
        lagged: weights of earlier rollout steps, where the rollout lags behind.
        at_rest: where the numbers of any of these tensors lie while the model sleeps.
        seed: of the run.
    """

    recipe: ModelRecipe
    parameters: Mapping[str, Tensor]
    optimizer: PolicyOptimizer
    lagged: LaggedWeights
    at_rest: Callable[[Tensor], Tensor]
    seed: int

    @property
    def rank(self) -> int:
        """This process's."""
        return self.recipe.groups.rank

    @property
    def layout(self) -> dict[str, int]:
        """Sizes of the axes, as a checkpoint writes them."""
        return asdict(self.recipe.groups.layout)

    @property
    def specs(self) -> dict[str, ShardSpec]:
        """What this rank's parameters hold, by name."""
        return {spec.name: spec for spec in self.recipe.specs_of_rank(self.rank)}


def save_policy(directory: Path, state: PolicyState) -> None:
    """Writes this rank's files, of a model that sleeps or not; collective over the world.

    Call inside ``megatron_on(device)``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rank = state.rank
    rows = _write_parts(directory, rank, _parts_to_write(state))
    save_file(random_state(), directory / _random_file(rank))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(rows, gathered if rank == 0 else None)
    if rank == 0:
        index: dict[str, list[list[Any]]] = defaultdict(list)
        for hf_name, *place in itertools.chain.from_iterable(gathered):
            index[hf_name].append(place)
        description = {
            "layout": state.layout,
            "distributed_optimizer": state.recipe.actor.megatron.distributed_optimizer,
            "steps_taken": state.optimizer.steps_taken,
            "kept_weights": state.lagged.steps,
        }
        (directory / INDEX_FILE).write_text(json.dumps(index) + "\n", encoding="utf-8")
        (directory / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_policy(directory: Path, state: PolicyState) -> None:
    """Restores what :func:`save_policy` wrote under any layout, into a model that is awake.

    Call inside ``megatron_on(device)``.

    Raises:
        DataError: files are missing, or hold another model.
    """
    with torch.no_grad(), StateFiles(directory) as files:
        written = json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        specs = state.specs
        for spec in specs.values():
            _fill(files, MASTER, spec, state.parameters[spec.name])
        for shard in state.optimizer.shards():
            _load_shard(files, specs[shard.name], shard, written["steps_taken"])
        for steps in range(min(written.get("kept_weights", 0), state.lagged.lag), 0, -1):
            for name, values in state.lagged.make_room().items():
                _fill(files, _lagged_kind(steps), specs[name], values)
    state.optimizer.steps_taken = written["steps_taken"]
    _load_random_state(directory, state, written)


@dataclass(frozen=True, slots=True)
class HeldPart:
    """A rectangle of a Hugging Face tensor and a live view of its values."""

    hf_name: str
    area: Rectangle
    values: Tensor


def held_parts(shape: tuple[int, ...], pieces: Iterable[Piece], values: Tensor, first: int = 0) -> Iterator[HeldPart]:
    """What a stretch of a flattened local parameter holds, as views; padding is left out.

    Args:
        shape: of the local parameter.
        pieces: what the parameter holds, or those pieces of it that are wanted.
        values: consecutive elements of the parameter, of any shape, in contiguous memory.
        first: index of their first in the flattened parameter.
    """
    pieces, flat = list(pieces), values.view(-1)
    offset = 0
    for block in range_rectangles(shape, first, first + flat.numel()):
        view = flat[offset : offset + block.volume].view(block.size)
        offset += block.volume
        for piece in pieces:
            common = block.intersect(piece.local)
            if common is not None:
                area = common.moved(piece.local_start, piece.hf.start)
                yield HeldPart(piece.hf_name, area, view[_within(common, block)])


class StateFiles:
    """What a checkpoint holds, read rectangle by rectangle; a file is opened when something of it is first needed.

    Raises:
        DataError: there is no index.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        index = directory / INDEX_FILE
        if not index.is_file():
            raise DataError(f"{directory} holds no policy checkpoint ({INDEX_FILE} is missing)")
        self._stored: dict[str, list[tuple[str, Rectangle]]] = {
            name: [(file, Rectangle(tuple(start), tuple(size))) for file, start, size in places]
            for name, places in json.loads(index.read_text(encoding="utf-8")).items()
        }

    def __enter__(self) -> "StateFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fill(self, kind: str, part: HeldPart) -> None:
        """Reads the values of a part into its view, cast to its dtype; only their bytes are read.

        Raises:
            DataError: a part of the rectangle is in no file, or a file is missing.
        """
        missing = [part.area]
        for file, stored in self._stored.get(part.hf_name, ()):
            common = stored.intersect(part.area)
            if common is not None:
                found = self._opened(file).get_slice(_key(kind, part.hf_name, stored))
                part.values[_within(common, part.area)].copy_(found[_within(common, stored)])
                missing = [rest for area in missing for rest in area.minus(common)]
        if missing:
            raise DataError(
                f"the checkpoint in {self._directory} has no {part.hf_name}{missing[0]}; it is damaged or of another "
                "model: resume from another one"
            )

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            path = self._directory / file
            if not path.is_file():
                raise DataError(f"the checkpoint in {self._directory} lacks {file}; resume from another one")
            self._open[file] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[file]


def _fill(files: StateFiles, kind: str, spec: ShardSpec, values: Tensor, first: int = 0) -> None:
    values.zero_()  # what no piece covers is padding
    for part in held_parts(spec.shape, spec.pieces, values, first):
        files.fill(kind, part)


def _load_shard(files: StateFiles, spec: ShardSpec, shard: OptimizerShard, steps_taken: int) -> None:
    if shard.has_master:
        _fill(files, MASTER, spec, shard.master.data, shard.first)
    moments = {name: torch.empty_like(shard.master) for name in MOMENTS} if steps_taken else {}
    for name, values in moments.items():
        _fill(files, name, spec, values, shard.first)
    shard.restore(moments, steps_taken)


def _load_random_state(directory: Path, state: PolicyState, written: Mapping[str, Any]) -> None:
    if written["layout"] != state.layout:
        seed_anew(state.seed, written["steps_taken"])
        if state.rank == 0:
            logger.warning(
                "the checkpoint in %s was written under %s and goes on under %s: weights and optimizer are the same, "
                "random states are seeded anew from seed %d and optimizer step %d",
                *(directory, written["layout"], state.layout, state.seed, written["steps_taken"]),
            )
        return
    file = directory / _random_file(state.rank)
    if not file.is_file():
        raise DataError(f"the checkpoint in {directory} lacks {file.name}; resume from another one")
    restore_random_state(load_file(file))


def _parts_to_write(state: PolicyState) -> dict[str, list[HeldPart]]:
    """What this rank writes, so that each element is written once.

    Norms are on all tensor-parallel ranks, a tied head is on two stages, and everything is on all data-parallel ranks:
    the first rank that holds a piece writes it, or with the distributed optimizer it and its peers what each steps.
    """
    specs, first_holder = state.specs, _first_holders(state)
    parts: dict[str, list[HeldPart]] = {}
    for shard in state.optimizer.shards():
        spec, writers = specs[shard.name], {state.rank, *shard.peers}
        pieces = [piece for piece in spec.pieces if first_holder[piece.hf_name, piece.hf] in writers]
        lagged = {_lagged_kind(steps): weights[shard.name] for steps, weights in state.lagged.by_steps().items()}
        stretch = slice(shard.first, shard.first + shard.master.numel())
        kinds = {MASTER: shard.master.data} | shard.moments
        kinds |= {kind: values.view(-1)[stretch] for kind, values in lagged.items()}
        for kind, values in kinds.items():
            parts.setdefault(kind, []).extend(held_parts(spec.shape, pieces, state.at_rest(values), shard.first))
    return parts


def _first_holders(state: PolicyState) -> dict[tuple[str, Rectangle], int]:
    """The lowest rank that holds each piece that this rank holds."""
    mine = {(piece.hf_name, piece.hf) for spec in state.specs.values() for piece in spec.pieces}
    first: dict[tuple[str, Rectangle], int] = {}
    for rank in range(state.rank + 1):
        held = ((piece.hf_name, piece.hf) for spec in state.recipe.specs_of_rank(rank) for piece in spec.pieces)
        for key in held:
            if key in mine:
                first.setdefault(key, rank)
    return first


def _write_parts(directory: Path, rank: int, parts: Mapping[str, Sequence[HeldPart]]) -> list[list[Any]]:
    """Writes this rank's file.

    Args:
        directory: of the checkpoint.
        rank: this process's.
        parts: by kind; every kind has the same rectangles.

    Returns:
        Rows of the index: Hugging Face name, file, start and size of each rectangle.
    """
    file = f"state-rank{rank}.safetensors"
    tensors = {
        _key(kind, part.hf_name, part.area): part.values.detach().to("cpu", copy=True).contiguous()
        for kind, held in parts.items()
        for part in held
    }
    save_file(tensors, directory / file)
    held = next(iter(parts.values()), ())
    return [[part.hf_name, file, list(part.area.start), list(part.area.size)] for part in held]


def _lagged_kind(steps: int) -> str:
    return f"{steps}_steps_ago"


def _random_file(rank: int) -> str:
    return f"random-rank{rank}.safetensors"


def _key(kind: str, hf_name: str, area: Rectangle) -> str:
    return f"{kind}/{hf_name}{area}"


def _within(part: Rectangle, frame: Rectangle) -> tuple[slice, ...]:
    return part.moved(frame.start, (0,) * len(frame.start)).slices

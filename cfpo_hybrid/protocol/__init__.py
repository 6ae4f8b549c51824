"""The batch that travels between the stages: its schema, the batch itself, its split over workers, its files."""

from cfpo_hybrid.protocol.batch import DataProto
from cfpo_hybrid.protocol.columns import JsonValue, Values
from cfpo_hybrid.protocol.partition import balanced_partition
from cfpo_hybrid.protocol.schema import SCHEMA, Column
from cfpo_hybrid.protocol.serialization import from_bytes, load, save, to_bytes

__all__ = [
    "SCHEMA",
    "Column",
    "DataProto",
    "JsonValue",
    "Values",
    "balanced_partition",
    "from_bytes",
    "load",
    "save",
    "to_bytes",
]

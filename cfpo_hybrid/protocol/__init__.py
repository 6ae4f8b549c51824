"""The batch that travels between the stages: its schema, the batch itself, its partition over workers, its files."""

from cfpo_hybrid.protocol.batch import DataProto
from cfpo_hybrid.protocol.partition import partition_rows
from cfpo_hybrid.protocol.schema import SCHEMA, ColumnSpec, JsonValue
from cfpo_hybrid.protocol.serialization import from_bytes, load, save, to_bytes

__all__ = [
    "SCHEMA",
    "ColumnSpec",
    "DataProto",
    "JsonValue",
    "from_bytes",
    "load",
    "partition_rows",
    "save",
    "to_bytes",
]

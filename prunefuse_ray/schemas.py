"""The columns of every table in a run directory."""

from __future__ import annotations

import pyarrow as pa

CLASS = pa.int64()
"""`Task.label_type` where a label is the number of a class."""


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of whatever size and however large."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def hardness_schema(id_type: str) -> pa.Schema:
    """How hard the labeled samples were for the network that selects (`training/coreset.py`)."""
    return pa.schema([("id", arrow_type(id_type)), ("forgetting", pa.float32()), ("el2n", pa.float32())])


def selected_schema(id_type: str) -> pa.Schema:
    return pa.schema([("id", arrow_type(id_type)), ("score", pa.float32()), ("rank", pa.int64())])


def held_back_schema(id_type: str) -> pa.Schema:
    """Samples that are like no labeled one, by falling distance from the nearest: `held_back.parquet`."""
    return pa.schema([("id", arrow_type(id_type)), ("distance", pa.float64())])


def labels_schema(id_type: str, label: pa.DataType = CLASS) -> pa.Schema:
    """label: `Task.label_type`, here and below."""
    return pa.schema([("id", arrow_type(id_type)), ("label", label), ("source", pa.string())])


def unknown_schema(id_type: str) -> pa.Schema:
    """Samples that people looked at, and of which nobody could tell the label: `unknown.parquet`."""
    return pa.schema([("id", arrow_type(id_type))])


def doubts_schema(id_type: str, label: pa.DataType = CLASS) -> pa.Schema:
    """The labeled samples by rising probability of their label under the proxy: `doubts.parquet`."""
    return pa.schema(
        [
            ("id", arrow_type(id_type)),
            ("label", label),
            ("label_probability", pa.float32()),
            ("guess", label),
            ("probability", pa.float32()),
        ]
    )


REJECTED = pa.schema([("id", pa.string()), ("reason", pa.string())])


LEFT_OUT = pa.schema([("set", pa.string()), ("name", pa.string()), ("reason", pa.string())])
"""What lies in the pool or a held-out set and gives no sample: `left_out.parquet`. set: the setting that names it."""

DIGESTS = pa.schema([("id", pa.string()), ("digest", pa.int64())])
"""A digest of each sample's bytes; null where there is no sample."""

HELD_OUT = pa.schema([("set", pa.string()), *DIGESTS])
"""The contents of test and validation set, which a large pool is compared with while it is scored:
`pool/held-out.parquet`."""

MATCHES = pa.schema([("id", pa.string()), ("row", pa.int64())])
"""A sample of the pool, and the row of HELD_OUT that has its content."""


def arrow_type(id_type: str) -> pa.DataType:
    return {"int64": pa.int64(), "string": pa.string()}[id_type]


POOL_FILES = pa.schema([("file", pa.string()), ("bytes", pa.int64())])


INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int64()),
        ("root", pa.int32()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
"""root: number of the directory that `file` is relative to; offset: null where the sample is the whole file."""


def annotations_schema(id_type: pa.DataType, label: pa.DataType = CLASS) -> pa.Schema:
    """One row per label that a person gave: `annotations.parquet`."""
    return pa.schema(
        [
            ("id", id_type),
            ("label", label),
            ("annotator", pa.string()),
            ("source", pa.string()),
            ("time", pa.timestamp("us", tz="UTC")),
        ]
    )


def request_schema(id_type: pa.DataType, label: pa.DataType = CLASS) -> pa.Schema:
    """The samples of a round in the order of their rank, with the proxy's guess (null in round 0)."""
    return pa.schema(
        [
            ("id", id_type),
            ("rank", pa.int64()),
            ("score", pa.float32()),
            ("guess", label),
            ("probability", pa.float32()),
        ]
    )


def agreement_schema(id_type: pa.DataType, label: pa.DataType = CLASS) -> pa.Schema:
    """How the annotators of a sample agreed: `agreement.parquet`."""
    return pa.schema(
        [
            ("id", id_type),
            ("label", label),
            ("annotators", pa.int64()),
            ("agreement", pa.float32()),
            ("tie", pa.bool_()),
        ]
    )

"""Indexes: what of them passes the driver."""

import pyarrow as pa

from prunefuse_ray.data.index import HEAD_ROWS, _head


def test_of_large_samples_the_driver_gets_few():
    assert _head(pa.table({"sample": ["x"] * 1000})).num_rows == HEAD_ROWS
    assert _head(pa.table({"sample": ["x" * 2**18] * 100})).num_rows in (3, 4)
    assert _head(pa.table({"sample": pa.array([], pa.string())})).num_rows == 0

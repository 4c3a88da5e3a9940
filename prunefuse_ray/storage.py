"""Small files on any filesystem that pyarrow speaks, each written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from prunefuse_ray.errors import LedgerError


@dataclass(frozen=True)
class Place:
    """A directory: a pyarrow filesystem and a path in it. Children by `/`."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, where: str) -> Place:
        """The place of a local path or a URI (s3://, gs://, file://)."""
        if "://" in where:
            fs, path = pafs.FileSystem.from_uri(where)
        else:
            fs, path = pafs.LocalFileSystem(), os.path.abspath(where)
        return cls(fs, path.rstrip("/"))

    def __truediv__(self, name: str) -> Place:
        return Place(self.fs, posixpath.join(self.path, name))

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type != pafs.FileType.NotFound

    def files(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """The files below this directory in the order of their paths; none where it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return sorted(
            (i for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File), key=lambda i: i.path
        )

    def read_bytes(self) -> bytes:
        with self.fs.open_input_stream(self.path) as stream:
            return stream.readall()

    def write_bytes(self, data: bytes) -> None:
        """Write the file whole: on a local disk under another name, synchronised, then renamed; an object store's
        upload becomes visible only when it is complete."""
        parent = posixpath.dirname(self.path)
        self.fs.create_dir(parent, recursive=True)
        if not self.local:
            with self.fs.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        temporary = posixpath.join(parent, f".{self.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def delete(self) -> None:
        """Remove the file or the directory with everything in it; nothing happens where there is none."""
        info = self.fs.get_file_info(self.path)
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(self.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(self.path)

    def read_json(self) -> Any:
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise LedgerError(
                f"{self.path}: not valid JSON ({error}); restore the file or start under another --run.name"
            ) from error

    def write_json(self, value: Any) -> None:
        self.write_bytes((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def read_table(self, schema: pa.Schema) -> pa.Table:
        """A Parquet file with exactly this schema; LedgerError otherwise."""
        try:
            table = pq.read_table(pa.BufferReader(self.read_bytes()))
        except pa.ArrowInvalid as error:
            raise LedgerError(
                f"{self.path}: not a readable Parquet file ({error}); restore it or start under another --run.name"
            ) from error
        if not table.schema.equals(schema):
            raise LedgerError(
                f"{self.path}: has columns {table.schema.names} of types "
                f"{[str(t) for t in table.schema.types]}, expected {schema.names} of "
                f"{[str(t) for t in schema.types]}"
            )
        return table

    def write_table(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.write_bytes(buffer.getvalue())

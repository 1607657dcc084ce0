"""The readers of `rosbags`, for bags that they refuse: mcap files that were cut, metadata that name no storage, and
chunks that are damaged, which are left out."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.reader import DirectoryReader
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS, ChunkInfo, McapReader, Msg, msgsrc

_Messages = Generator[tuple[Connection, int, bytes], None, None]

MCAP_MAGIC = b"\x89MCAP0\r\n"
_FOOTER = 0x02
_DATA_END = 0x0F


class _McapReader(McapReader):
    """Reads a file without its end, as a recorder that was killed leaves it, as far as its records are whole."""

    is_cut = False

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> _Messages:
        """All messages of the connections by time. Chunks that can't be read are left out; ``damage``: why."""
        assert start is None and stop is None
        self.damage: list[Exception] = []
        if not self.chunks:
            yield from super().messages(connections)
            return
        by_id = {connection.id: connection for connection in connections}
        for time, offset, connection, data in heapq.merge(*(self._chunk(chunk, by_id) for chunk in self.chunks)):
            if offset and connection is not None and data is not None:  # else it marks a chunk's begin
                yield connection, time, data

    def _chunk(self, chunk: ChunkInfo, by_id: dict[int, Connection]) -> Iterator[Msg]:
        assert self.bio is not None
        try:
            yield from msgsrc(chunk, by_id, chunk.message_start_time, chunk.message_end_time + 1, self.bio)
        except Exception as error:  # whatever the decompressors and struct say
            self.damage.append(error)

    def _open(self) -> None:
        assert self.bio is not None
        self.bio.seek(0, 2)
        size = self.bio.tell()
        self.bio.seek(max(0, size - len(MCAP_MAGIC)))
        if size < 4 * len(MCAP_MAGIC) or self.bio.read() == MCAP_MAGIC:
            self.bio.seek(0)
            super()._open()
            return
        self.is_cut = True
        self.bio.seek(0)
        if self.bio.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            raise ReaderError("File magic is invalid.")
        self.data_start = len(MCAP_MAGIC)
        self.data_end = self._end_of_records(size)
        self.meta_scan()
        assert self.statistics is not None
        counts = self.statistics.channel_message_counts
        self.connections = [c._replace(msgcount=counts.get(c.id, 0)) for c in self.connections]
        if self.statistics.message_count == 0:
            raise ReaderError("no message is whole")
        first, last = self.statistics.start_time, self.statistics.end_time
        self.metadata = self.metadata._replace(
            duration=last - first + 1,
            start_time=first,
            end_time=last + 1,
            message_count=self.statistics.message_count,
        )

    def _end_of_records(self, size: int) -> int:
        """Position behind the last record (uint8 kind, uint64 size, data) of messages that is whole."""
        assert self.bio is not None
        position = self.data_start
        while position + 9 <= size:
            self.bio.seek(position)
            kind, length = struct.unpack("<BQ", self.bio.read(9))
            if kind in (_FOOTER, _DATA_END) or position + 9 + length > size:
                break
            position += 9 + length
        return position


class _FolderReader(DirectoryReader):
    """Where the metadata name no storage, the files tell it. Compressed messages that are damaged are left out."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        kinds: dict[str, Any] = {**DirectoryReader.STORAGE_PLUGINS, "mcap": _McapReader}
        self.STORAGE_PLUGINS = {**kinds, "": kinds["sqlite3" if any(path.glob("*.db3*")) else "mcap"]}
        self.damage: list[Exception] = []

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> _Messages:
        """All messages of the connections, file after file."""
        self.damage = []
        is_compressed = self.metadata.compression_mode == "message"
        if is_compressed:
            self.metadata = self.metadata._replace(compression_mode=None)
        for connection, time, data in super().messages(connections, start, stop):
            try:
                whole = DECOMPRESSORS["zstd"](data, 0) if is_compressed else data
            except Exception as error:  # whatever zstd says
                self.damage.append(error)
                continue
            yield connection, time, whole


class BagReader(Reader):
    """A rosbag2 folder or file. ``damage``: errors of what the latest `messages` left out."""

    STORAGE_PLUGINS = {**Reader.STORAGE_PLUGINS, "dir": _FolderReader, ".mcap": _McapReader}

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    @property
    def is_cut(self) -> bool:
        """Whether a file of the bag, which is open, lacks its end."""
        return any(getattr(one, "is_cut", False) for one in (self.storage, *self._files()))

    @property
    def damage(self) -> list[Exception]:
        """Why chunks were left out."""
        return [error for one in (self.storage, *self._files()) for error in getattr(one, "damage", [])]

    def _files(self) -> list[Any]:
        return getattr(self.storage, "storages", [])


class SoundRosbag1Reader(Rosbag1Reader):
    """Leaves out chunks and messages that can't be read; ``damage``: why. A bag without its index can't be read at all:
    ``is_cut`` is false."""

    is_cut = False

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> _Messages:
        """All messages by time."""
        assert not connections and start is None and stop is None
        self.damage: list[Exception] = []
        bad_chunks: set[int] = set()
        indexes = self.indexes
        first = self.connections[:1]
        try:
            for entry in heapq.merge(*indexes.values()):
                if entry.chunk_pos in bad_chunks:
                    continue
                # One message at a time, for behind an error rosbags gives no other.
                self.indexes = {connection.id: [entry] for connection in first}
                try:
                    yield from super().messages(first)
                except Exception as error:  # whatever the decompressors and struct say
                    self.damage.append(error)
                    if self.current_chunk[0] != entry.chunk_pos:
                        bad_chunks.add(entry.chunk_pos)
                        self.current_chunk = -1, BytesIO()
        finally:
            self.indexes = indexes

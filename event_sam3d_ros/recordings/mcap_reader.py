"""The mcap reader of `rosbags`, for files that it refuses: those without their end, and those that are damaged.

Format: mcap.dev/spec. A file is a row of records: uint8 kind, uint64 size, content.
"""

from __future__ import annotations

import heapq
import io
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS, ChunkInfo, McapReader, Msg, msgsrc

Messages = Generator[tuple[Connection, int, bytes], None, None]

MCAP_MAGIC = b"\x89MCAP0\r\n"
_HEAD = struct.Struct("<BQ")
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _LAST_KIND = 0x03, 0x04, 0x05, 0x06, 0x0F
# Of a message: channel, number, times of logging and publishing. Of a chunk: first and last time, uncompressed size,
# checksum, length of the compression's name.
_OF_MESSAGE, _OF_CHUNK = struct.Struct("<HIQQ"), struct.Struct("<QQQII")
# Where a record that holds messages may begin: its size has less than 32 bits.
_MAY_BEGIN = re.compile(rb"[\x03-\x08][\0-\xff]{4}\0{4}")


class BoundedFile(io.BufferedReader):
    """Never makes room for more than the file has, whatever size is asked for."""

    def __init__(self, path: Any) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Up to so many bytes, all of them without a size."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


class SoundMcapReader(McapReader):
    """Where the index, which is the end of a file, is missing or damaged, all records that are whole are found by going
    through the file. ``salvaged``: why, empty for a file in order. ``damage``: errors of what the latest `messages`
    left out."""

    salvaged = ""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.damage: list[Exception] = []
        self._loose: list[tuple[int, int, int, int]] = []  # messages outside chunks: time, begin, end, channel

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Messages:
        """All messages of the connections by time. Chunks that can't be read are left out."""
        assert start is None and stop is None
        self.damage = []
        if not self.chunks and not self.salvaged:
            yield from super().messages(connections)
            return
        by_id = {connection.id: connection for connection in connections}
        sources = [self._chunk(chunk, by_id) for chunk in self.chunks]
        for time, offset, connection, data in heapq.merge(
            self._outside(by_id), *sources, key=lambda one: one.timestamp
        ):
            if offset and connection is not None and data is not None:  # else it marks a chunk's begin
                yield connection, time, data

    def _chunk(self, chunk: ChunkInfo, by_id: dict[int, Connection]) -> Iterator[Msg]:
        assert self.bio is not None
        try:
            yield from msgsrc(chunk, by_id, chunk.message_start_time, chunk.message_end_time + 1, self.bio)
        except Exception as error:  # whatever the decompressors and struct say
            self.damage.append(error)

    def _outside(self, by_id: dict[int, Connection]) -> Iterator[Msg]:
        assert self.bio is not None
        for time, begin, end, channel in self._loose:
            if channel in by_id:
                self.bio.seek(begin)
                yield Msg(time, begin, by_id[channel], self.bio.read(end - begin))

    def _open(self) -> None:
        assert self.bio is not None
        self.bio.close()
        self.bio = BoundedFile(self.path)
        if self.bio.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            raise ReaderError("File magic is invalid.")
        self.bio.seek(max(0, self.bio.seek(0, 2) - len(MCAP_MAGIC)))
        is_whole = self.bio.read() == MCAP_MAGIC
        self.bio.seek(0)
        if is_whole:
            try:
                super()._open()
                if all(self._kind(chunk.chunk_start_offset) == _CHUNK for chunk in self.chunks):
                    return
            except Exception as error:  # whatever a reader of damaged bytes says
                if "Profile" in str(error):
                    raise
        self.salvaged = "is damaged" if is_whole else "is cut"
        for found in (self.schemas, self.channels, self.chunks, self.connections, self._loose):
            found.clear()
        self._salvage()

    def _kind(self, position: int) -> int:
        assert self.bio is not None
        self.bio.seek(position)
        return int.from_bytes(self.bio.read(1), "little")

    def _salvage(self) -> None:
        """Index what is whole."""
        assert self.bio is not None
        definitions: dict[bytes, None] = {}
        counts: Counter[int] = Counter()
        with mmap.mmap(self.bio.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for kind, begin, end in _records(data, len(MCAP_MAGIC)):
                if kind in (_SCHEMA, _CHANNEL):
                    definitions[data[begin - _HEAD.size : end]] = None
                elif kind == _MESSAGE:
                    channel, _, time, _ = _OF_MESSAGE.unpack_from(data, begin)
                    counts[channel] += 1
                    self._loose.append((time, begin + _OF_MESSAGE.size, end, channel))
                elif kind == _CHUNK:
                    self._add_chunk(data, begin, end, definitions, counts)
        self._loose.sort()
        self._define(sorted(definitions))
        self.connections = [c._replace(msgcount=counts[c.id]) for c in self.connections]
        known = {connection.id for connection in self.connections}
        count = sum(counts[channel] for channel in known)
        if count == 0:
            raise ReaderError("no message is whole")
        times = [time for time, *_ in self._loose]
        times += [time for chunk in self.chunks for time in (chunk.message_start_time, chunk.message_end_time)]
        first, last = min(times), max(times)
        self.metadata = self.metadata._replace(
            duration=last - first + 1, start_time=first, end_time=last + 1, message_count=count
        )

    def _add_chunk(
        self, data: mmap.mmap, begin: int, end: int, definitions: dict[bytes, None], counts: Counter[int]
    ) -> None:
        """A compressed chunk, where it can be read."""
        _, _, size, _, length = _OF_CHUNK.unpack_from(data, begin)
        place = begin + _OF_CHUNK.size
        compression = data[place : place + length].decode()
        place += length + 8
        try:
            content = DECOMPRESSORS[compression](data[place:end], size)
        except Exception:  # whatever the decompressors say; the messages are missing then
            return
        found: Counter[int] = Counter()
        times = []
        for kind, inner, behind in _records(content, 0):
            if kind in (_SCHEMA, _CHANNEL):
                definitions[content[inner - _HEAD.size : behind]] = None
            elif kind == _MESSAGE:
                channel, _, time, _ = _OF_MESSAGE.unpack_from(content, inner)
                found[channel] += 1
                times.append(time)
        if times and len(content) == size:
            counts += found
            offset = begin - _HEAD.size
            self.chunks.append(
                ChunkInfo(
                    min(times), max(times), offset, end - offset, {}, 0, compression, end - place, size, dict(found)
                )
            )

    def _define(self, records: list[bytes]) -> None:
        """Schemas and channels of their records, of which those of schemas come first."""
        file = self.bio
        try:
            for record in records:
                self.bio = io.BytesIO(record)
                self.data_start, self.data_end = 0, len(record)
                try:
                    self.meta_scan()
                except Exception:  # one that is damaged, and its messages are of no known type
                    continue
        finally:
            self.bio = file


def _records(data: mmap.mmap | bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Kind, begin and end of the content of all records that are whole; those in chunks without compression are given
    instead of their chunk. Behind damage from where a record may begin that another one follows. Of records that no
    other follows, which may lie in one another, not more is given than the data have bytes."""
    rest = len(data)
    while position < len(data):
        record = _record(data, position)
        if record is None:
            position = _next(data, position + 1)
            continue
        kind, begin, end = record
        if kind == _CHUNK and begin == end:
            position = begin
            continue
        if end == len(data) or _record(data, end):
            yield record
            position = end
            continue
        # Where bytes are missing, the next record begins inside this one.
        rest -= end - begin
        if rest >= 0:
            yield record
        position = _next(data, begin)


def _record(data: mmap.mmap | bytes, position: int) -> tuple[int, int, int] | None:
    """Kind, begin and end of the content of the record at a position, if it can be one. Of a chunk without compression
    both are where its records begin."""
    if position + _HEAD.size > len(data):
        return None
    kind, size = _HEAD.unpack_from(data, position)
    begin = position + _HEAD.size
    end = begin + size
    if kind == _CHUNK and size < _OF_CHUNK.size + 8:
        return None
    if kind == _CHUNK and begin + _OF_CHUNK.size + 8 <= len(data):
        first, last, uncompressed, _, length = _OF_CHUNK.unpack_from(data, begin)
        place = begin + _OF_CHUNK.size
        if length > 4 or data[place : place + length].decode(errors="replace") not in DECOMPRESSORS:
            return None
        if size != _OF_CHUNK.size + length + 8 + int.from_bytes(data[place + length : place + length + 8], "little"):
            return None
        if length == 0:
            return kind, place + 8, place + 8
    if not 0 < kind <= _LAST_KIND or end > len(data) or (kind == _MESSAGE and size < _OF_MESSAGE.size):
        return None
    return kind, begin, end


def _next(data: mmap.mmap | bytes, position: int) -> int:
    """Where the next record begins, the end of the data if none does."""
    while (match := _MAY_BEGIN.search(data, position)) is not None:
        position = match.start()
        record = _record(data, position)
        if record is not None and (record[2] == len(data) or _record(data, record[2]) is not None):
            return position
        position += 1
    return len(data)

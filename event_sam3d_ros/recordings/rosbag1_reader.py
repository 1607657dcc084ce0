"""The reader of `rosbags` for ROS 1 bags, for those that it refuses: without index, cut, or damaged.

Format: wiki.ros.org/Bags/Format/2.0. A bag is a row of records: uint32 size and fields "name=value" of the header,
uint32 size and data. Chunks hold the messages, and each connection before its first.
"""

from __future__ import annotations

import heapq
import mmap
from collections import Counter, defaultdict
from collections.abc import Collection
from contextlib import suppress
from io import BytesIO

from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader, ReaderError
from rosbags.rosbag1.reader import (
    Chunk,
    ChunkInfo,
    Header,
    IndexData,
    RecordType,
    decompressors,
    read_bytes,
    read_uint32,
)

from event_sam3d_ros.recordings.mcap_reader import BoundedFile, Messages

_LONGEST_HEADER = 256  # bytes; those of chunks and messages


class SoundRosbag1Reader(Reader):
    """Leaves out chunks and messages that can't be read; ``damage``: why. Where the index is missing or damaged, it is
    made anew of all chunks that are whole; ``salvaged``: why, empty for a bag in order."""

    salvaged = ""

    def open(self) -> None:
        """Open the bag and read, or make, its index."""
        try:
            super().open()
            self._use_bounded_file()
            return
        except Exception as error:  # whatever a reader of damaged bytes says
            if "not supported" in str(error):
                raise
            self.salvaged = "has no index" if "not indexed" in str(error) else "is cut or damaged"
        try:
            self._use_bounded_file()
            self._reindex()
        except BaseException:
            self.close()
            raise

    def _use_bounded_file(self) -> None:
        if self.bio is not None:
            self.bio.close()
        self.bio = BoundedFile(self.path)

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Messages:
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

    def _reindex(self) -> None:
        """Fill what `open` reads from a bag's index."""
        assert self.bio is not None
        connections: dict[int, Connection] = {}
        indexes: dict[int, list[IndexData]] = defaultdict(list)
        with mmap.mmap(self.bio.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.bio.readline()
            position = self.bio.tell()
            while position < len(data):
                self.bio.seek(position)
                try:
                    header = Header.read(self.bio)
                    kind = header.get_uint8("op")
                    size = read_uint32(self.bio)
                except Exception:  # no record
                    position = _next(data, position + 1, RecordType.CHUNK)
                    continue
                begin = self.bio.tell()
                end = min(begin + size, len(data))
                is_sound = True
                if kind == RecordType.CHUNK:
                    is_sound = self._index_chunk(header, position, begin, end, connections, indexes)
                # Where bytes are missing, the next record begins inside this one.
                position = end if is_sound else _next(data, begin, RecordType.CHUNK)
        self.connections = [one._replace(msgcount=len(indexes[one.id])) for one in connections.values()]
        self.indexes = {one.id: sorted(indexes[one.id]) for one in self.connections}
        if not any(self.indexes.values()):
            raise ReaderError("no message is whole")

    def _index_chunk(
        self,
        header: Header,
        position: int,
        begin: int,
        end: int,
        connections: dict[int, Connection],
        indexes: dict[int, list[IndexData]],
    ) -> bool:
        """Add the messages of a chunk, and their connections. Whether all of it is as it should be."""
        assert self.bio is not None
        try:
            decompress = decompressors[header.get_string("compression")]
            content = decompress(read_bytes(self.bio, end - begin))
        except Exception:  # whatever the decompressors say
            return False
        file, self.bio = self.bio, BytesIO(content)
        times, counts, offset, is_sound = [], Counter[int](), 0, True
        try:
            while offset < len(content):
                self.bio.seek(offset)
                try:
                    record = Header.read(self.bio)
                    kind = record.get_uint8("op")
                    if kind not in (RecordType.CONNECTION, RecordType.MSGDATA):
                        return False  # behind missing bytes the chunk's end is that of others
                    read_bytes(self.bio, read_uint32(self.bio))
                    end_of_record = self.bio.tell()
                    number = record.get_uint32("conn")
                    if kind == RecordType.MSGDATA:
                        entry = IndexData(record.get_time("time"), position, offset)
                        indexes[number].append(entry)
                        counts[number] += 1
                        times.append(entry.time)
                    elif number not in connections:
                        self.bio.seek(offset)
                        connections[number] = self.read_connection()
                    offset = end_of_record
                except Exception:  # no record
                    is_sound = False
                    offset = _next(content, offset + 1, RecordType.MSGDATA)
            return is_sound
        finally:
            self.bio = file
            if times:
                self.chunks[position] = Chunk(end - begin, begin, decompress)
                self.chunk_infos.append(ChunkInfo(position, min(times), max(times) + 1, dict(counts)))


def _next(data: mmap.mmap | bytes, position: int, kind: RecordType) -> int:
    """Where the next record of a kind begins, the end of the data if none does."""
    while (at := data.find(b"op=" + bytes([kind]), position)) >= 0:
        for begin in range(max(position, at - _LONGEST_HEADER), at - 7):
            with suppress(Exception):  # no header begins here
                Header.read(BytesIO(data[begin : begin + _LONGEST_HEADER]), kind)
                return begin
        position = at + 1
    return len(data)

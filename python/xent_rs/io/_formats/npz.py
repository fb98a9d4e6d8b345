"""``.npz``: a zip file of ``.npy`` files. The reference is APPNOTE.TXT of PKWARE."""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import replace
from typing import IO

from . import Choose, Layout, npy, unique

MAGIC = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def find(file: IO[bytes], choose: Choose) -> Layout:
    """Find the array that `choose` names, in its member or, if that is not compressed, in the file."""
    if not zipfile.is_zipfile(file):  # by its end, where the directory is
        file.seek(0)
        begin = file.read(8)
        if begin.startswith(MAGIC):
            raise ValueError("truncated; expected a directory of its arrays at the end, as .npz files have")
        raise ValueError(f"does not begin as a .npz file does (begins with {begin!r})")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        before = min((member.header_offset for member in members), default=0)
        if before > 0:
            raise ValueError(
                f"{before} bytes precede the zip archive; expected none "
                "(a second numpy.savez into the same file leaves another archive there)"
            )
        arrays = unique(
            [
                (member.filename.removesuffix(".npy"), member)
                for member in members
                if member.filename.endswith(".npy")
            ]
        )
        member = arrays[choose(list(arrays))]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"compressed with method {member.compress_type}; expected deflate or none")
        with archive.open(member) as stream:
            layout = npy.header(stream)
        available = member.file_size - layout.offset
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return npy.alone(replace(layout, member=member.filename), available)
        start = _stored_member_start(file, member)
        layout = replace(layout, offset=start + layout.offset)
        return npy.alone(layout, min(available, os.fstat(file.fileno()).st_size - layout.offset))


def _stored_member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Position in the file of the bytes of a member that is not compressed."""
    file.seek(member.header_offset)
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != MAGIC:
        raise ValueError("damaged (no local header)")
    return member.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)

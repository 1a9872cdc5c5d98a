# SPDX-License-Identifier: GPL-2.0-or-later
"""What the standard library cannot compress yet."""

import pyarrow


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    contents: bytes = sink.getvalue().to_pybytes()
    return contents

"""llama.cpp's logits: what ``llama-perplexity --kl-divergence-base FILE`` writes (or ``--save-all-logits``).

Little-endian, without a version and, by custom, with the suffix ``.kld``::

    "_logits_"  int32 n_ctx, n_vocab, n_chunk  int32 tokens[n_chunk][n_ctx]
    record[n_chunk][n_ctx - 1 - n_ctx / 2]

with a record for each position from ``n_ctx / 2`` on whose next token is in the chunk::

    float32 scale, minimum  uint16 quantized[n_vocab, and one more where that is odd]

The log-probability of a class is ``minimum + scale * quantized``. What is more than 16 (in ik_llama.cpp 24)
below the largest is stored as if it were 16 below, so that the probabilities of a row add up to a little more
than 1. The log-probabilities are given as they are; as logits they are normalized by every softmax.

The reference is ``tools/perplexity/perplexity.cpp`` of llama.cpp.
"""

from __future__ import annotations

import os
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from . import Choose, Layout, packed

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8s3i")
_TOKEN = np.dtype("<i4")


def find(file: IO[bytes], choose: Choose) -> Layout:
    """Find the logits, their targets or all tokens."""
    start = file.read(_HEADER.size)
    if not start.startswith(MAGIC):
        raise ValueError(f"does not begin as a .kld file of llama.cpp does (begins with {start[:8]!r})")
    if len(start) < _HEADER.size:
        raise ValueError(f"truncated; {_HEADER.size} bytes of header expected, {len(start)} found")
    _, context, classes, chunks = _HEADER.unpack(start)
    if context < 1 or classes < 1 or chunks < 0:
        raise ValueError(
            f"says that it has {chunks} chunks of {context} tokens and {classes} classes; "
            "expected positive numbers"
        )
    first = context // 2
    scored = context - 1 - first
    record_bytes = 8 + 2 * (classes + classes % 2)
    records = _HEADER.size + chunks * context * _TOKEN.itemsize
    expected = records + chunks * scored * record_bytes
    found = os.fstat(file.fileno()).st_size
    if found != expected:
        raise ValueError(
            f"{'truncated; ' if found < expected else ''}{expected} bytes expected for {chunks} chunks of "
            f"{context} tokens and {classes} classes, {found} found"
        )
    token_strides = packed((chunks, context), _TOKEN.itemsize)
    layouts = {
        "logits": Layout(
            records,
            (chunks, scored, classes),
            np.dtype(np.float32),
            packed((chunks, scored), record_bytes),
            record=_record(classes, record_bytes),
        ),
        # The target of a position is the token after it.
        "targets": Layout(
            _HEADER.size + (first + 1) * _TOKEN.itemsize, (chunks, scored), _TOKEN, token_strides
        ),
        "tokens": Layout(_HEADER.size, (chunks, context), _TOKEN, token_strides),
    }
    return layouts[choose(list(layouts))]


def _record(classes: int, itemsize: int) -> np.dtype[Any]:
    """Return what the classes of a position are stored as."""
    return np.dtype(
        {
            "names": ["scale", "minimum", "quantized"],
            "formats": ["<f4", "<f4", ("<u2", (classes,))],
            "offsets": [0, 4, 8],
            "itemsize": itemsize,
        }
    )


def decoded(records: NDArray[Any], classes: slice) -> NDArray[np.float32]:
    """Return the log-probabilities of some classes, in float32 as llama.cpp computes them."""
    quantized = records["quantized"][..., classes]
    scale, minimum = records["scale"][..., None], records["minimum"][..., None]
    found: NDArray[np.float32] = np.multiply(scale, quantized, dtype=np.float32)
    found += minimum
    return found

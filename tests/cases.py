"""The inputs: dtypes, lengths around the lane counts, distributions of logits."""

import functools

import numpy as np
from ml_dtypes import bfloat16

from .bounds import FORMATS, half_ulp
from .oracle import Softmax

DTYPES = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32, np.float64)]
SHORT = range(1, 131)
AROUND_BLOCKS = [255, 256, 257, 511, 512, 513, 4095, 4096, 4097]
LONG = [32000, 128256]

# From 17 on the classic float32 loss is 0. exp is subnormal from 87.3 on, 0 from 104 (float64: 708 and 745).
PEAKS = [0, 1, 5, 10, 17, 30, 60, 87, 88, 95, 103, 104, 120, 200, 708, 740, 746]


def distributions(classes, dtype):
    """{name: logits of one row}, all finite but for the masked classes."""
    random = np.random.default_rng(classes)
    normal = random.standard_normal(classes)
    largest = FORMATS[dtype][2]
    rows = {
        "N(0, 1)": normal,
        "4 N(0, 1)": 4 * normal,
        "10 N(0, 1)": 10 * normal,
        "tiny": 1e-3 * random.uniform(-1, 1, classes),
        "subnormal": random.integers(-9, 9, classes) * 2.0 ** (FORMATS[dtype][1] - FORMATS[dtype][0] + 1),
        "ascending": np.sort(4 * normal),
        "descending": -np.sort(4 * normal),
        "all equal": np.full(classes, 1.5),
        "all the largest": np.full(classes, largest),
        "over the whole range": largest * random.uniform(-1, 1, classes),
        "half masked": np.where(random.permutation(classes) < classes // 2, -np.inf, normal),
        "all but one masked": np.where(np.arange(classes) == classes // 2, normal, -np.inf),
    }
    for offset in (1e4, -1e4, 1e8, -1e8, 0.9 * largest, -0.9 * largest):
        rows[f"offset {offset:g}"] = offset + normal * (2 * half_ulp(offset, dtype) + 1)
    for peak in PEAKS:
        rows[f"peak {peak}"] = np.where(np.arange(classes) == classes // 3, float(peak), 0.0)
    with np.errstate(over="ignore"):
        rows = {name: row.astype(dtype) for name, row in rows.items()}
    return {name: row for name, row in rows.items() if "masked" in name or np.isfinite(row).all()}


FEW = ["N(0, 1)", "10 N(0, 1)", "ascending", "descending", "peak 17", "peak 95", "half masked"]


@functools.cache
def batch(classes, dtype, temperature=1.0):
    """(logits, the oracle's softmax, names): a row of each distribution, or of a few where rows are long."""
    rows = distributions(classes, dtype)
    if classes > 1000:
        rows = {name: rows[name] for name in FEW}
    logits = np.stack(list(rows.values()))
    logits.flags.writeable = False
    return logits, Softmax(logits, temperature), list(rows)


def targets_of(softmax):
    """The largest class, the smallest, and any."""
    anything = np.random.default_rng(softmax.classes).integers(0, softmax.classes, len(softmax.rows))
    return {"largest": softmax.top, "smallest": softmax.gaps.argmax(axis=1), "any": anything}

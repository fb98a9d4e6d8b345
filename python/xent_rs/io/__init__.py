"""Arrays in ``.npy``, ``.npz``, ``.safetensors`` and ``.kld`` files, larger than memory if need be.

`open_array` reads and checks the headers of one file, or of several that make one array. The numbers stay in
the files, memory-mapped, until `row_blocks` walks over them, or slices of the array are asked for. Only the
compressed members of an ``.npz`` have no place in the file to map: they are decompressed block by block, or,
where the blocks are not in the order of the file, once into a temporary file. `row_blocks` also takes arrays
of Zarr, h5py, Dask, xarray, and whatever else has a shape, a dtype and slicing; `paired_row_blocks` walks
over the logits of two models together.

A file must not shrink while it is in use: as with every memory map, reading numbers that are no longer there
ends the process (SIGBUS).

Examples
--------
>>> import numpy as np
>>> from xent_rs import Evaluator, io
>>> np.savez("batch.npz", logits=np.zeros((6, 4), np.float32), targets=np.arange(6) % 4)
>>> logits, targets = io.open_array("batch.npz:logits"), io.open_array("batch.npz:targets")
>>> evaluator = Evaluator()
>>> for position, some_logits, some_targets in io.row_blocks(logits, targets, max_bytes=64):
...     evaluator.update(some_logits, some_targets)
>>> evaluator.result().perplexity
4.0
"""

from ._open import open_array
from ._rows import SlicedArray, paired_row_blocks, row_blocks
from ._stored import ArrayFileError, StoredArray

__all__ = ["ArrayFileError", "SlicedArray", "StoredArray", "open_array", "paired_row_blocks", "row_blocks"]

# SPDX-License-Identifier: Apache-2.0
"""Writes the Arrow files beside this script, which PyArrowFilesTest reads. Needs pyarrow and numpy.

Every file holds the same two batches of three rows: `sequence_id` s0 s1 s2, `query` with one, no
and two tensors [2, 4] of consecutive numbers from zero, `note` with a null in the middle."""
import pathlib

import numpy as np
import pyarrow as pa

HERE = pathlib.Path(__file__).parent
OFFSETS = np.array([0, 1, 1, 3], np.int32)


def tensor_column(dtype, canonical=True):
    values = np.arange(24)
    if dtype == "bfloat16":
        flat = pa.array((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    else:
        flat = pa.array(values.astype(dtype))
    storage = pa.FixedSizeListArray.from_arrays(flat, 8)
    if canonical:
        storage = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, [2, 4]), storage)
    array = pa.ListArray.from_arrays(pa.array(OFFSETS), storage)
    metadata = {"dtype": "bfloat16"} if dtype == "bfloat16" else None
    return array, pa.field("query", array.type, metadata=metadata)


def batch(dtype, canonical=True, ids=None):
    array, field = tensor_column(dtype, canonical)
    ids = ids if ids is not None else pa.array(["s0", "s1", "s2"])
    note = pa.array([1, None, 3], pa.int64())
    schema = pa.schema([pa.field("sequence_id", ids.type), field, pa.field("note", pa.int64())])
    return pa.record_batch([ids, array, note], schema=schema)


def write(name, record, stream=False, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(HERE / name), record.schema, options=options) as writer:
        writer.write_batch(record)
        writer.write_batch(record)


tail = pa.concat_batches([batch("float16"), batch("float16")])
write("float16.arrow", batch("float16"))
write("float32.arrow", batch("float32"))
write("bfloat16.arrow", batch("bfloat16"))
write("plain.arrow", batch("float16", canonical=False))
write("lz4.arrow", batch("float16"), compression="lz4")
write("zstd.arrow", batch("float16"), compression="zstd")
write("stream.arrows", batch("float16"), stream=True)
write("stream-zstd.arrows", batch("float16"), stream=True, compression="zstd")
write("sliced.arrow", tail.slice(3))
write("dictionary.arrow", batch("float16", ids=pa.array(["s0", "s1", "s2"]).dictionary_encode()))
write("view.arrow", batch("float16", ids=pa.array(["s0", "s1", "s2"], pa.string_view())))

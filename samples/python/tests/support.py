# SPDX-License-Identifier: Apache-2.0
"""What several tests use."""

import contextlib
import io

import pyarrow as pa

from broadhead_samples import produce


def quietly(function, *args):
    """Calls a command's main without its output; returns (exit code, output)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = function(*args)
    return code, out.getvalue()


def write_output(path, rows, dtype="float32", shift=0.0):
    """Writes ResultRows as a result file, one row a batch, every value moved by `shift`."""
    batches = []
    for row in rows:
        field, output = produce.tensor_list([row.output + shift], row.output.shape[1:], dtype, "output")
        ids, layers = pa.array([row.sequence_id]), pa.array([row.layer])
        schema = pa.schema([("sequence_id", ids.type), ("layer", pa.utf8()), field])
        batches.append(pa.RecordBatch.from_arrays([ids, layers, output], schema=schema))
    produce.write_ipc(path, batches)

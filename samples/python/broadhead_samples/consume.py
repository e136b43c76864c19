# SPDX-License-Identifier: Apache-2.0
"""Reads result batches into NumPy, row by row, bfloat16 and float8_e4m3fn output included.

Example::

    from broadhead_samples.consume import read_rows

    for row in read_rows("out.arrow"):
        print(row.sequence_id, row.layer, row.output.shape)    # [n_q, num_heads, head_size] float32
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa

from broadhead_samples import command_line, dtypes

EXAMPLE = """\
example:
  broadhead-consume out.arrow --limit 5
  broadhead-consume results/ --npz results.npz
"""

#: dtype label -> NumPy's name of the stored elements
_STORED = {label: np.dtype(storage).name for label, (storage, _) in dtypes.STORAGE.items()}
_STORED["float64"] = "float64"


@dataclasses.dataclass
class ResultRow:
    """One row of a result batch: one sequence's step of one layer."""

    sequence_id: Any
    layer: str
    #: [n_q, num_heads, head_size] float32; float8 output is not multiplied by output_scale
    output: np.ndarray
    lse: np.ndarray | None  #: [n_q, num_heads] float32, or None
    dtype: str  #: element type of the stored output
    columns: dict  #: columns passed through


def files_of(path, sub_folders=False):
    """The Arrow IPC files of a path: itself, or those of a folder in the order of their names.

    Hidden and in-progress files (names that start with '.' or '_' or contain '.tmp-') are left out. With
    `sub_folders` those of its sub-folders are there too: results of one job may be in several folders, and
    the names of the files tell which came first.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")

    def visible(file):
        parts = file.relative_to(path).parts
        return file.is_file() and not any(p[0] in "._" or ".tmp-" in p for p in parts)

    files = path.rglob("*") if sub_folders else path.iterdir()
    return sorted(filter(visible, files), key=lambda file: (file.name, file.relative_to(path).parts))


def read_batches(path, sub_folders=False):
    """Yields the record batches of an Arrow IPC file or stream, or of a folder of them."""
    for file in files_of(path, sub_folders):
        with pa.memory_map(str(file)) as source:
            try:
                yield from _batches(source)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{file}: expected an Arrow IPC file or stream: {error}") from error


def _batches(source):
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
    else:
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def require_columns(batch, *needed):
    """Raises ValueError unless the batch has these columns."""
    for name in needed:
        if name not in batch.schema.names:
            raise ValueError(f"expected a column '{name}', got {', '.join(batch.schema.names)}")


def tensor_rows(batch, name):
    """Column list<tensor[...]> or list<fixed_size_list> -> ([array [n, ...] float32 per row], dtype label).

    A null list is an empty one. Lists may start above offset zero.
    """
    column, field = batch.column(name), batch.schema.field(name)
    values = column.values if pa.types.is_list(field.type) else column
    if isinstance(values.type, pa.FixedShapeTensorType):
        shape, values = tuple(values.type.shape), values.storage
    elif pa.types.is_fixed_size_list(values.type):
        shape = (values.type.list_size,)
    if values is column or not pa.types.is_fixed_size_list(values.type):
        raise ValueError(f"column {name}: expected a list of tensors, got {field.type}")
    logical = (field.metadata or {}).get(b"dtype", b"").decode()
    width = int(np.prod(shape))
    flat = values.values.to_numpy(zero_copy_only=False)
    flat = flat[values.offset * width : (values.offset + len(values)) * width]
    label = logical or str(flat.dtype)
    if flat.dtype.name != _STORED.get(label):
        meant = f" of dtype {logical}" if logical else ""
        raise ValueError(f"column {name}: expected a tensor of floats, got {field.type}{meant}")
    tensors = flat.reshape(-1, *shape)
    if label != "float64":
        tensors = dtypes.decode(tensors, label)
    offsets, valid = column.offsets.to_numpy(), column.is_valid().to_numpy(zero_copy_only=False)
    ends = np.where(valid, offsets[1:], offsets[:-1])
    return [tensors[a:b] for a, b in zip(offsets[:-1], ends, strict=True)], label


def read_rows(path, column="output"):
    """Yields a ResultRow for every row of the result batches at `path`, those of sub-folders included."""
    for batch in read_batches(path, sub_folders=True):
        names = batch.schema.names
        try:
            require_columns(batch, "sequence_id", column)
            outputs, dtype = tensor_rows(batch, column)
            lse = tensor_rows(batch, "lse")[0] if "lse" in names else [None] * batch.num_rows
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        others = {n: batch.column(n) for n in names if n not in ("sequence_id", "layer", column, "lse")}
        layers = batch.column("layer").to_pylist() if "layer" in names else [""] * batch.num_rows
        for r, sequence_id in enumerate(batch.column("sequence_id").to_pylist()):
            passed = {name: values[r].as_py() for name, values in others.items()}
            yield ResultRow(sequence_id, layers[r], outputs[r], lse[r], dtype, passed)


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    parser = command_line.parser(
        "broadhead-consume",
        "Prints the rows of result batches and can save them as NumPy arrays.",
        EXAMPLE,
    )
    parser.add_argument("result", help="Arrow IPC file or stream, or a folder of them")
    parser.add_argument("--limit", type=int, default=10, help="rows to print")
    parser.add_argument(
        "--npz", help="write every row's output to this .npz file, under the key layer/sequence/nth"
    )
    args = parser.parse_args(argv)
    arrays, seen, count, tokens = {}, {}, 0, 0
    for row in read_rows(args.result):
        if not count:
            title = f"{'sequence':>12} {'layer':<28} {'output':<18} {'dtype':<14} {'mean |x|':>9}"
            print(f"{title}  passed through")
        nth = seen[(row.sequence_id, row.layer)] = seen.get((row.sequence_id, row.layer), -1) + 1
        if count < args.limit:
            mean = float(np.abs(row.output).mean()) if row.output.size else 0.0
            what = f"{list(row.output.shape)!s:<18} {row.dtype:<14} {mean:>9.4f}  {row.columns}"
            print(f"{row.sequence_id!s:>12} {row.layer:<28} {what}")
        if args.npz:
            arrays[f"{row.layer}/{row.sequence_id}/{nth}"] = row.output
        count, tokens = count + 1, tokens + len(row.output)
    if not count:
        raise ValueError(f"{args.result}: expected result rows, got none")
    print(f"{count} rows, {len(seen)} sequence and layer pairs, {tokens} tokens")
    if args.npz:
        np.savez(args.npz, **arrays)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

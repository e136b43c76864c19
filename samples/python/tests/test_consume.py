# SPDX-License-Identifier: Apache-2.0
"""Tests of reading batches."""

import pathlib
import tempfile
import unittest

import numpy as np
import pyarrow as pa

from broadhead_samples import consume, dtypes, produce
from support import quietly, write_output


class ConsumeTest(unittest.TestCase):
    """Rows and files."""

    def test_slices_and_nulls_read_right(self):
        rng = np.random.default_rng(0)
        rows = [rng.standard_normal((n, 2, 4)).astype(np.float32) for n in (3, 0, 2, 5)]
        builder = produce.StepBatchBuilder("float32", "a")
        for i, row in enumerate(rows):
            builder.add(i, query=row, key=None if i == 1 else row, value=None if i == 1 else row, seq_len=9)
        batch = builder.build()
        for start in range(4):
            part = batch.slice(start)
            for name in ("query", "key"):
                got, dtype = consume.tensor_rows(part, name)
                self.assertEqual(dtype, "float32")
                for want, row in zip(rows[start:], got, strict=True):
                    np.testing.assert_array_equal(want, row)
        self.assertTrue(batch.column("key")[1].as_py() is None)

    def test_tensors_of_every_storage_read_right(self):
        values = np.arange(8.0).reshape(4, 2)
        for dtype in (*dtypes.STORAGE, "float64"):
            stored = values if dtype == "float64" else dtypes.encode(values, dtype)
            tensors = pa.FixedSizeListArray.from_arrays(pa.array(stored.flatten()), 2)
            lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), tensors.slice(1))
            logical = dtypes.STORAGE.get(dtype, (None, None))[1]
            field = pa.field("lse", lists.type, metadata={"dtype": logical} if logical else None)
            batch = pa.RecordBatch.from_arrays([lists], schema=pa.schema([field]))
            rows, label = consume.tensor_rows(batch, "lse")
            self.assertEqual(label, dtype)
            for row, expected in zip(rows, ([[2, 3]], [[4, 5], [6, 7]]), strict=True):
                np.testing.assert_array_equal(row, expected)

    def test_columns_that_are_no_tensors_are_refused(self):
        def lists(elements):
            return pa.array([[elements]], pa.list_(pa.list_(pa.infer_type(elements), 2)))

        single = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
        for column, dtype, message in (
            (single, None, "expected a list of tensors, got fixed_size_list<item: float"),
            (pa.array([1.0]), None, "expected a list of tensors, got double"),
            (pa.array([[1.0]]), None, "expected a list of tensors, got list<item: double"),
            (lists([1, 2]), None, "expected a tensor of floats, got list"),
            (lists([1.0, 2.0]), "bfloat16", "expected a tensor of floats, got list.* of dtype bfloat16"),
            (lists([1.0, 2.0]), "x", "expected a tensor of floats, got list.* of dtype x"),
        ):
            field = pa.field("output", column.type, metadata={"dtype": dtype} if dtype else None)
            batch = pa.RecordBatch.from_arrays([column], schema=pa.schema([field]))
            with self.subTest(message), self.assertRaisesRegex(ValueError, f"column output: {message}"):
                consume.tensor_rows(batch, "output")

    def test_rows_have_what_passed_through(self):
        field, output = produce.tensor_list([np.ones((2, 1, 4)), None], (1, 4), "float16", "output")
        lse = pa.array([[[0.5], [1.5]], []], pa.list_(pa.list_(pa.float32(), 1)))
        columns = {"sequence_id": pa.array([7, 8]), "step": pa.array([3, None]), "lse": lse}
        schema = pa.schema([*(pa.field(name, column.type) for name, column in columns.items()), field])
        batch = pa.RecordBatch.from_arrays([*columns.values(), output], schema=schema)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "r.arrow")
            for kind in ("file", "stream"):
                produce.write_ipc(path, [batch, batch], kind)
                first, second, *more = consume.read_rows(path)
                self.assertEqual((first.sequence_id, first.layer, first.dtype), (7, "", "float16"))
                self.assertEqual((first.columns, second.columns), ({"step": 3}, {"step": None}))
                self.assertEqual((first.output.shape, second.output.shape), ((2, 1, 4), (0, 1, 4)))
                np.testing.assert_array_equal(first.lse, [[0.5], [1.5]])
                self.assertEqual(second.lse.shape, (0, 1))
                self.assertEqual([row.sequence_id for row in more], [7, 8])
            produce.write_ipc(path, [batch.drop_columns(["output"])])
            with self.assertRaisesRegex(ValueError, "r.arrow: expected a column 'output', got sequence_id, "):
                list(consume.read_rows(path))

    def test_files_are_read_in_the_order_of_the_other_commands(self):
        with tempfile.TemporaryDirectory() as folder:
            names = ["step-10.arrow", "b/step-11.arrow", "step-2.arrow", ".hidden", "_side", "c.arrow.tmp-1"]
            for name in reversed(names):
                path = pathlib.Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.touch()
            for sub_folders, expected in ((False, [names[0], names[2]]), (True, names[:3])):
                found = consume.files_of(folder, sub_folders)
                self.assertEqual([str(file.relative_to(folder)) for file in found], expected)

    def test_the_command_prints_and_saves(self):
        with tempfile.TemporaryDirectory() as folder:
            result, saved = str(pathlib.Path(folder, "r.arrow")), str(pathlib.Path(folder, "r.npz"))
            ones = np.ones((2, 1, 4), np.float32)
            rows = [consume.ResultRow(5, "a", value, None, "float32", {}) for value in (ones, 2 * ones)]
            rows.append(consume.ResultRow(6, "a", ones[:0], None, "float32", {}))
            write_output(result, rows, "bfloat16")
            code, text = quietly(consume.main, [result, "--limit", "2", "--npz", saved])
            self.assertEqual(code, 0)
            title, first, second, end = text.splitlines()
            self.assertRegex(title, r" sequence layer +output +dtype +mean \|x\|  passed through\Z")
            self.assertRegex(first, r" 5 a +\[2, 1, 4\] +bfloat16 +1.0000  {}\Z")
            self.assertRegex(second, r" 5 a .* 2.0000  {}\Z")
            self.assertEqual(end, "3 rows, 2 sequence and layer pairs, 4 tokens")
            arrays = np.load(saved)
            self.assertEqual(list(arrays), ["a/5/0", "a/5/1", "a/6/0"])
            np.testing.assert_array_equal(arrays["a/5/1"], 2 * ones)
            saved = pathlib.Path(saved)
            saved.unlink()
            self.assertEqual(len(quietly(consume.main, [result])[1].splitlines()), 5)
            self.assertFalse(saved.exists())


if __name__ == "__main__":
    unittest.main()

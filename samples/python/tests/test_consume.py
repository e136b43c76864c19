# SPDX-License-Identifier: Apache-2.0
"""Tests of reading batches."""

import pathlib
import tempfile
import unittest

import numpy as np

from broadhead_samples import consume, produce
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

    def test_consume_prints_and_saves(self):
        with tempfile.TemporaryDirectory() as folder:
            result, saved = str(pathlib.Path(folder, "r.arrow")), str(pathlib.Path(folder, "r.npz"))
            rows = [consume.ResultRow(5, "a", np.ones((2, 1, 4), np.float32), None, "float32", {})]
            write_output(result, rows, "bfloat16")
            code, text = quietly(consume.main, [result, "--npz", saved])
            self.assertEqual(code, 0)
            self.assertIn("1 rows, 1 sequence and layer pairs, 2 tokens", text)
            np.testing.assert_array_equal(np.load(saved)["a/5/0"], np.ones((2, 1, 4)))


if __name__ == "__main__":
    unittest.main()

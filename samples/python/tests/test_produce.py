# SPDX-License-Identifier: Apache-2.0
"""Tests of building and writing step batches."""

import pathlib
import tempfile
import unittest

import numpy as np

from broadhead_samples import produce


class StepBatchBuilderTest(unittest.TestCase):
    """Columns of a batch."""

    def test_wrong_shapes_are_explained(self):
        builder = produce.StepBatchBuilder()
        builder.add(1, query=np.zeros((2, 2, 4))).add(2, query=np.zeros((2, 3, 4)))
        with self.assertRaisesRegex(
            ValueError, r"column query, row 1: expected \[n, 2, 4\], got \[2, 3, 4\]"
        ):
            builder.build()
        with self.assertRaisesRegex(ValueError, "row 0: slot_mapping has 1 entries for 2 keys"):
            zeros = np.zeros((2, 1, 4))
            produce.StepBatchBuilder().add(1, key=zeros, value=zeros, slot_mapping=[1])

    def test_values_that_would_be_changed_are_refused(self):
        query = np.zeros((1, 2, 4))
        for columns, message in (
            ({"slot_mapping": [1.5], "key": query, "value": query}, "slot_mapping, row 0: expected integers"),
            ({"block_table": [[1]]}, "block_table, row 0: expected integers"),
            ({"seq_len": 1.5}, "seq_len, row 0: expected integers"),
            ({"seq_len": 2**31}, "seq_len, row 0: expected int32, got 2147483648"),
            (
                {"slot_mapping": np.array([2**63], np.uint64), "key": query, "value": query},
                "slot_mapping, row 0: expected int64, got 9223372036854775808",
            ),
            ({"block_table": [7, -(2**31) - 1]}, "block_table, row 0: expected int32, got -2147483649"),
            ({"token_ids": [2**64 - 1]}, "token_ids, row 0: expected int64, got 18446744073709551615"),
            ({"sequence_id": 2**63}, "sequence_id, row 0: expected int64, got 9223372036854775808"),
            (
                {"sequence_group": np.uint64(2**63)},
                "sequence_group, row 0: expected int64, got 9223372036854775808",
            ),
            (
                {"parent_sequence_id": "a"},
                "parent_sequence_id, row 0: expected int64 as in sequence_id, got 'a'",
            ),
            ({"query": query[0]}, r"query: expected \[n, heads, head_size\], got \[2, 4\]"),
            ({"sequence_id": 1.5}, "sequence_id: expected integers in all rows, or text in all"),
            ({"sequence_id": None}, "sequence_id: expected integers in all rows, or text in all"),
        ):
            row = {"sequence_id": 1, "query": query, **columns}
            with self.subTest(message), self.assertRaisesRegex(ValueError, f"column {message}"):
                produce.StepBatchBuilder().add(**row).build()


class WriteTest(unittest.TestCase):
    """Files of batches."""

    def test_files_are_complete_or_absent(self):
        one, other = (
            produce.StepBatchBuilder(dtype).add(1, query=np.zeros((1, 2, 4))).build()
            for dtype in ("float16", "float32")
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "steps.arrow")
            for bad in ([], [one, other]):
                with self.assertRaises(ValueError):
                    produce.write_ipc(path, bad)
                self.assertEqual(list(path.parent.iterdir()), [])
            produce.write_ipc(path, [one])
            self.assertEqual(list(path.parent.iterdir()), [path])


class BlockAllocatorTest(unittest.TestCase):
    """Blocks of sequences."""

    def test_blocks_are_distinct_and_come_back(self):
        blocks = produce.BlockAllocator(num_blocks=4, block_size=16, seed=1)
        slots = np.concatenate([blocks.append("a", 17), blocks.append("b", 16), blocks.append("a", 1)])
        self.assertEqual(len(set(slots.tolist())), 34)
        self.assertEqual(list(blocks.table("a")), [slots[0] // 16, slots[16] // 16])
        with self.assertRaisesRegex(ValueError, "all 4 blocks"):
            blocks.append("c", 17)
        blocks.free("a")
        self.assertEqual(len(blocks.append("c", 16)), 16)


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: Apache-2.0
"""Tests of building and writing step batches."""

import concurrent.futures
import contextlib
import io
import os
import pathlib
import tempfile
import unittest

import numpy as np
import pyarrow as pa

from broadhead_samples import consume, jobfile, produce
from support import quietly


class StepBatchBuilderTest(unittest.TestCase):
    """Columns of a batch."""

    def test_columns_have_the_types_of_the_step_format(self):
        tensors = np.ones((2, 1, 4))
        builder = produce.StepBatchBuilder("bfloat16", "a")
        row = {"query": tensors[:1], "key": tensors, "value": tensors, "seq_len": 2, "slot_mapping": [0, -1]}
        row |= {"block_table": np.array([0], np.uint16), "position": [1], "token_ids": [5, 6]}
        builder.add("s", **row, end_of_sequence=True, parent_sequence_id="r", sequence_group=3, note="x")
        builder.add("t", seq_len=0)
        self.assertEqual(len(builder), 2)
        batch = builder.build()
        self.assertEqual(
            {field.name: (str(field.type), field.nullable) for field in batch.schema},
            {
                "sequence_id": ("string", False),
                "layer": ("string", False),
                **dict.fromkeys(("query", "key", "value"), (str(self.tensor_list("uint16")), True)),
                "seq_len": ("int32", False),
                "slot_mapping": ("list<item: int64 not null>", False),
                "block_table": ("list<item: int32 not null>", False),
                "position": ("list<item: int32 not null>", False),
                "token_ids": ("list<item: int64 not null>", False),
                "end_of_sequence": ("bool", False),
                "parent_sequence_id": ("string", True),
                "sequence_group": ("int64", True),
                "note": ("string", True),
            },
        )
        self.assertEqual(batch.schema.field("query").metadata, {b"dtype": b"bfloat16"})
        plain = batch.drop_columns(["query", "key", "value"]).to_pylist()
        first = {"sequence_id": "s", "layer": "a", "seq_len": 2, "slot_mapping": [0, -1], "block_table": [0]}
        first |= {"position": [1], "token_ids": [5, 6], "end_of_sequence": True, "parent_sequence_id": "r"}
        self.assertEqual(plain[0], {**first, "sequence_group": 3, "note": "x"})
        lists = {name: [] for name in ("slot_mapping", "block_table", "position", "token_ids")}
        nulls = dict.fromkeys(("parent_sequence_id", "sequence_group", "note"))
        second = {"sequence_id": "t", "layer": "a", "seq_len": 0, "end_of_sequence": False}
        self.assertEqual(plain[1], {**second, **lists, **nulls})
        self.assertEqual(batch.column("key").is_valid().to_pylist(), [True, False])

    @staticmethod
    def tensor_list(elements):
        """The type list<tensor[1, 4]> of such elements."""
        tensor = pa.fixed_shape_tensor(pa.type_for_alias(elements), (1, 4))
        return pa.list_(pa.field("item", tensor, nullable=False))

    def test_sizes_are_those_of_the_arrays_or_the_given_ones(self):
        builder = produce.StepBatchBuilder("float16").add(1, query=None, key=None, value=None)
        with self.assertRaisesRegex(
            ValueError, r"column query: no row has any, so build\(\) needs its sizes"
        ):
            builder.build()
        batch = builder.build(num_heads=3, num_kv_heads=1, head_size=4)
        shapes = {name: batch.schema.field(name).type.value_type.shape for name in ("query", "key")}
        self.assertEqual(shapes, {"query": [3, 4], "key": [1, 4]})
        batch = builder.add(2, query=np.zeros((0, 2, 8))).build(num_kv_heads=1, head_size=8)
        self.assertEqual(batch.schema.field("query").type.value_type.shape, [2, 8])
        stored = np.arange(8, dtype=np.uint16).reshape(1, 2, 4)
        batch = produce.StepBatchBuilder("bfloat16").add(1, query=stored).build()
        np.testing.assert_array_equal(batch.column("query").flatten().storage.flatten(), range(8))

    def test_keys_and_values_belong_together(self):
        zeros = np.zeros((2, 1, 4))
        for key, value in ((zeros, None), (None, zeros), (zeros, zeros[:1])):
            with self.assertRaisesRegex(ValueError, "row 0: key and value must have the same number"):
                produce.StepBatchBuilder().add(1, key=key, value=value)
        with self.assertRaisesRegex(ValueError, "dtype: expected float32, float16 or bfloat16, got int8"):
            produce.StepBatchBuilder("int8")

    def test_extreme_integers_are_kept(self):
        row = {"seq_len": 2**31 - 1, "slot_mapping": [], "block_table": [2**31 - 1, -(2**31)]}
        batch = produce.StepBatchBuilder().add(-(2**63), **row, query=np.zeros((1, 1, 1))).build()
        self.assertEqual(batch.column("seq_len")[0].as_py(), 2**31 - 1)
        self.assertEqual(batch.column("block_table")[0].as_py(), [2**31 - 1, -(2**31)])
        self.assertEqual(batch.column("sequence_id")[0].as_py(), -(2**63))

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

    def test_kinds_and_compressions(self):
        batch = produce.StepBatchBuilder().add(1, query=np.zeros((200, 2, 4))).build()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "steps.arrow")
            sizes = {}
            for kind in ("file", "stream"):
                for compression in (None, "lz4", "zstd"):
                    produce.write_ipc(path, iter([batch, batch]), kind, compression)
                    self.assertEqual(path.read_bytes()[:6] == b"ARROW1", kind == "file")
                    sizes[kind, compression] = path.stat().st_size
                    self.assertEqual(list(consume.read_batches(path)), [batch, batch])
                self.assertLess(sizes[kind, "lz4"], sizes[kind, None] / 2)
                self.assertLess(sizes[kind, "zstd"], sizes[kind, "lz4"])
            with self.assertRaisesRegex(ValueError, "kind: expected file or stream, got feather"):
                produce.write_ipc(path, [batch], "feather")

    def test_pipes_are_written_to(self):
        batch = produce.StepBatchBuilder().add(1, query=np.zeros((1, 2, 4))).build()
        with tempfile.TemporaryDirectory() as folder:
            pipe = pathlib.Path(folder, "pipe")
            os.mkfifo(pipe)
            with concurrent.futures.ThreadPoolExecutor() as reader:
                read = reader.submit(pipe.read_bytes)
                produce.write_ipc(pipe, [batch], "stream")
                self.assertEqual(list(pa.ipc.open_stream(read.result())), [batch])
            self.assertTrue(pipe.is_fifo())

    def test_each_schema_has_a_file(self):
        wide, narrow = (
            produce.StepBatchBuilder().add(1, query=np.zeros((1, heads, 4))).build() for heads in (4, 2)
        )
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            self.assertEqual(produce.write_steps(folder, "one", [wide, wide]), folder / "one.arrow")
            self.assertEqual(produce.write_steps(folder, "one", [narrow]), folder / "one.arrow")
            self.assertEqual(list(consume.read_batches(folder / "one.arrow")), [narrow])
            both = produce.write_steps(folder, "both", [wide, narrow, wide])
            self.assertEqual(both, folder / "both")
            self.assertEqual([file.name for file in sorted(both.iterdir())], ["00.arrow", "01.arrow"])
            self.assertEqual(list(consume.read_batches(both)), [wide, wide, narrow])
            for stem, batches, there in (
                ("both", [wide], "both"),
                ("both", [wide, narrow], "both"),
                ("one", [wide, narrow], "one.arrow"),
            ):
                with self.assertRaisesRegex(FileExistsError, f"{there} is there from an earlier run"):
                    produce.write_steps(folder, stem, batches)


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

    def test_tables_are_as_long_as_they_must_be(self):
        blocks = produce.BlockAllocator(num_blocks=3, block_size=16)
        self.assertEqual((blocks.length("a"), list(blocks.table("a"))), (0, []))
        self.assertEqual(blocks.append("a", 16).tolist(), list(range(16)))
        self.assertEqual((blocks.length("a"), list(blocks.table("a"))), (16, [0]))
        self.assertEqual(blocks.append("a", 0).tolist(), [])
        self.assertEqual(blocks.append("a", 2).tolist(), [16, 17])
        blocks.free("a")
        blocks.free("b")
        self.assertEqual((blocks.length("a"), list(blocks.table("a"))), (0, []))
        self.assertEqual(blocks.append("b", 17)[[0, 16]].tolist(), [0, 16], "blocks come back in order")

    def test_the_seed_shuffles(self):
        orders = [produce.BlockAllocator(100, 1, seed).append("a", 100).tolist() for seed in (None, 1, 1, 2)]
        self.assertEqual(orders[0], list(range(100)))
        self.assertEqual(orders[1], orders[2])
        self.assertNotIn(orders[1], (orders[0], orders[3]))
        self.assertEqual(sorted(orders[1]), orders[0])


class DemoTest(unittest.TestCase):
    """What the command writes."""

    def made(self, options):
        """The job, and for each row: layer, sequence and a dict of the other columns."""
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(quietly(produce.main, [folder, *options.split()])[0], 0)
            job = jobfile.load_job(pathlib.Path(folder, "job.yaml"))
            rows = []
            for batch in consume.read_batches(pathlib.Path(folder, "steps.arrow")):
                columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                for name in {"query", "key", "value"} & columns.keys():
                    columns[name] = consume.tensor_rows(batch, name)[0]
                rows += [{name: values[r] for name, values in columns.items()} for r in range(len(batch))]
            return job, rows

    def test_the_job_has_the_given_options(self):
        job, _ = self.made(
            "--steps 2 --layers 2 --heads 4 --kv-heads 4 --head-size 32 --block-size 32 --num-blocks 99 "
            "--scale 0.5 --sliding-window 9 --logits-soft-cap 3 --alibi --kv-cache-dtype fp8 --k-scale 2 "
            "--v-scale 4 --output-scale 0.25 --rope neox --rotary-dim 16 --share-kv --return-lse"
        )
        layer = {"name": "model.layers.0.self_attn", "num_heads": 4, "num_kv_heads": 4, "head_size": 32}
        layer |= {"scale": 0.5, "sliding_window": 9, "logits_soft_cap": 3, "output_scale": 0.25}
        layer |= {"k_scale": 2, "v_scale": 4, "alibi_slopes": [0.25, 0.0625, 0.015625, 0.003906]}
        layer |= {"kv_cache_dtype": "fp8", "return_lse": True}
        layer["rope"] = {"rotary_dim": 16, "max_position": 4096, "base": 10000.0, "is_neox": True}
        target = {"name": "model.layers.1.self_attn", "kv_sharing_target_layer_name": layer["name"]}
        kv_cache = {"block_size": 32, "num_blocks": 99, "dtype": "auto"}
        self.assertEqual(job, {"kv_cache": kv_cache, "layers": [layer, {**layer, **target}]})
        job, _ = self.made("--steps 2 --layers 1 --sinks --attn-type encoder --rope gptj")
        layer = {"name": "model.layers.0.self_attn", "num_heads": 8, "num_kv_heads": 2, "head_size": 64}
        layer |= {"attn_type": "encoder", "sinks": job["layers"][0]["sinks"]}
        layer["rope"] = {"rotary_dim": 64, "max_position": 4096, "base": 10000.0, "is_neox": False}
        self.assertEqual(job["layers"], [layer])
        self.assertEqual(len(set(layer["sinks"])), 8)

    def test_prompts_come_in_chunks_and_then_single_tokens(self):
        _, rows = self.made("--sequences 4 --steps 12 --max-prompt 20 --chunk 8 --layers 2 --string-ids")
        self.assertEqual(
            {row["layer"] for row in rows}, {"model.layers.0.self_attn", "model.layers.1.self_attn"}
        )
        begins = []
        for sequence in {row["sequence_id"] for row in rows}:
            self.assertRegex(sequence, r"\Aseq-[0-3]\Z")
            for layer in ("model.layers.0.self_attn", "model.layers.1.self_attn"):
                own = [row for row in rows if (row["sequence_id"], row["layer"]) == (sequence, layer)]
                steps = [row["step"] for row in own]
                self.assertEqual(steps, list(range(steps[0], 12)))
                counts = [len(row["query"]) for row in own]
                self.assertEqual([row["seq_len"] for row in own], np.cumsum(counts).tolist())
                prompt = next(i for i, n in enumerate(counts) if n < 8)
                self.assertEqual(counts[:prompt], [8] * prompt)
                self.assertEqual(set(counts[prompt + 1 :]), {1})
                self.assertLessEqual(sum(counts[: prompt + 1]), 21)
                for row in own:
                    ends = np.arange(row["seq_len"] - len(row["query"]), row["seq_len"])
                    slots = np.array(row["block_table"])[ends // 16] * 16 + ends % 16
                    self.assertEqual(row["slot_mapping"], slots.tolist())
                    self.assertEqual(len(row["key"]), len(row["query"]))
                begins.append(steps[0])
        self.assertEqual(len(begins), 8)
        self.assertLess(max(begins), 6)
        self.assertGreater(len(set(begins)), 1)

    def test_encoders_have_no_cache_and_cross_attention_writes_once(self):
        _, rows = self.made("--attn-type encoder_only --sequences 3 --steps 4")
        self.assertEqual({row["seq_len"] - len(row["key"]) for row in rows}, {0})
        self.assertFalse({"slot_mapping", "block_table"} & set(rows[0]))
        for managed in ("", "--managed"):
            _, rows = self.made(f"--attn-type encoder_decoder --sequences 3 --steps 4 --layers 1 {managed}")
            for sequence in (1000, 1001, 1002):
                first, *more = [row for row in rows if row["sequence_id"] == sequence]
                self.assertGreater(first["seq_len"], 0)
                self.assertEqual(len(first["key"]), first["seq_len"])
                self.assertEqual({(row["seq_len"], len(row["key"])) for row in more}, {(first["seq_len"], 0)})
                self.assertEqual("block_table" in first, not managed)

    def test_managed_sequences_end_fork_and_begin_alike(self):
        _, rows = self.made("--managed --beams 2 --shared-prefix 9 --sequences 2 --steps 9 --max-prompt 20")
        layer = [row for row in rows if row["layer"] == "model.layers.0.self_attn"]
        self.assertEqual({row["step"] for row in layer if row["end_of_sequence"]}, {8})
        self.assertNotIn("slot_mapping", layer[0])
        ids, prefixes, forks = {}, set(), 0
        for row in layer:
            sequence, parent = row["sequence_id"], row["parent_sequence_id"]
            self.assertEqual(row["sequence_group"], (sequence - 1000) % 2)
            if parent is not None:
                forks += 1
                self.assertEqual(sequence, parent + 2)
                ids[sequence] = ids[parent][: row["seq_len"] - len(row["key"])]
            ids.setdefault(sequence, [])
            ids[sequence] = ids[sequence] + row["token_ids"]
            self.assertEqual(len(ids[sequence]), row["seq_len"])
            prefixes.add(tuple(ids[sequence][:9]))
        self.assertEqual(forks, 2)
        self.assertEqual(len(prefixes), 1)
        keys = {}  # tokens of one id have one key
        for row in layer:
            for token, key in zip(row["token_ids"], row["key"], strict=True):
                np.testing.assert_array_equal(key, keys.setdefault(token, key))
        self.assertGreater(len(keys), 9)
        _, plain = self.made("--managed --sequences 1 --steps 3")
        self.assertFalse({"token_ids", "parent_sequence_id", "sequence_group"} & set(plain[0]))

    def test_layers_that_share_have_keys_only_to_rotate(self):
        for rope in ("", "--rope neox"):
            _, rows = self.made(f"--share-kv --sequences 2 --steps 3 --layers 2 {rope}")
            for row in rows:
                writes = row["layer"].endswith("0.self_attn") or bool(rope)
                self.assertEqual(len(row["key"]), len(row["query"]) if writes else 0)
                if rope:
                    expected = range(row["seq_len"] - len(row["query"]), row["seq_len"])
                    self.assertEqual(row["position"], list(expected))

    def test_options_that_do_not_fit_are_refused(self):
        for options, message in (
            ("--beams 2", "--beams and --shared-prefix need --managed, and decoder layers"),
            ("--shared-prefix 3", "--beams and --shared-prefix need --managed, and decoder layers"),
            ("--managed --beams 2 --attn-type encoder", "--beams and --shared-prefix need --managed, and"),
            ("--rope neox --attn-type encoder_decoder", "--rope needs as many keys as queries"),
        ):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as told:
                produce.main(["folder", *options.split()])
            self.assertIn(message, told.getvalue())


if __name__ == "__main__":
    unittest.main()

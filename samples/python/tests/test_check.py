# SPDX-License-Identifier: Apache-2.0
"""Tests of the reference and of the comparison with it."""

import contextlib
import io
import math
import pathlib
import tempfile
import unittest

import numpy as np
import pyarrow as pa

from broadhead_samples import check, consume, jobfile, produce
from broadhead_samples.rope import rotate
from support import quietly, write_output

FEATURES = [
    "",
    "--dtype float32 --sliding-window 20 --alibi",
    "--dtype bfloat16 --logits-soft-cap 5 --sinks --return-lse",
    "--kv-cache-dtype fp8 --k-scale 0.037 --v-scale 0.011 --dtype bfloat16",
    "--rope gptj --rotary-dim 32 --share-kv",
    "--attn-type encoder --sliding-window 7 --sinks",
    "--attn-type encoder_decoder --string-ids",
    "--format stream --compression zstd",
    "--managed --compression lz4",
    "--managed --beams 2 --shared-prefix 20 --layers 3",
    "--managed --share-kv --string-ids",
]


def batch_of(*rows, dtype="float32", layer=None):
    """A step batch of rows, each a dict with the arguments of `StepBatchBuilder.add`."""
    builder = produce.StepBatchBuilder(dtype, layer)
    for row in rows:
        builder.add(**row)
    return builder.build()


def row_of(sequence_id, tokens, rng, heads=2, kv_heads=1, size=32, **columns):
    """A row of so many random tokens."""
    query = rng.standard_normal((tokens, heads, size))
    key, value = rng.standard_normal((2, tokens, kv_heads, size))
    return {"sequence_id": sequence_id, "query": query, "key": key, "value": value, **columns}


def attend_in_loops(layer, query, key, value):
    """What `check.attend` computes, one product at a time."""
    n, heads, size = query.shape
    decoder = layer.get("attn_type", "decoder") == "decoder"
    output, lse = np.zeros(query.shape), np.full((n, heads), -np.inf)
    for i in range(n):
        for h in range(heads):
            head = h * layer["num_kv_heads"] // heads
            place, total = i + (len(key) - n if decoder else 0), 0.0
            if "sinks" in layer:
                total = math.exp(layer["sinks"][h])
            for j in range(len(key)):
                hidden = decoder and j > place
                if hidden or abs(j - place) >= layer.get("sliding_window", math.inf):
                    continue
                score = layer.get("scale", 1 / math.sqrt(size)) * float(query[i, h] @ key[j, head])
                if layer.get("logits_soft_cap"):
                    score = layer["logits_soft_cap"] * math.tanh(score / layer["logits_soft_cap"])
                if "alibi_slopes" in layer:
                    score += layer["alibi_slopes"][h] * (j - place)
                total += math.exp(score)
                output[i, h] += math.exp(score) * value[j, head]
            if total:
                output[i, h] /= total
                lse[i, h] = math.log(total)
    return output, lse


class AttendTest(unittest.TestCase):
    """One row."""

    def test_options_mean_what_the_step_format_says(self):
        rng = np.random.default_rng(0)
        for options in (
            {},
            {"scale": 0.7},
            {"sliding_window": 1},
            {"sliding_window": 3},
            {"logits_soft_cap": 1.5, "alibi_slopes": [0.5, 0.25, -0.1, 0]},
            {"logits_soft_cap": 0, "sinks": [1.0, -0.5, 0, 3]},
        ):
            for kind in ("decoder", "encoder", "encoder_only", "encoder_decoder"):
                layer = {"num_heads": 4, "num_kv_heads": 2, "attn_type": kind, **options}
                for queries, keys in ((5, 5), (2, 7), (7, 2), (1, 0), (0, 3)):
                    with self.subTest(layer=layer, queries=queries, keys=keys):
                        query = rng.standard_normal((queries, 4, 8))
                        key, value = rng.standard_normal((2, keys, 2, 8))
                        output, lse = check.attend(layer, query, key, value, keys)
                        expected, expected_lse = attend_in_loops(layer, query, key, value)
                        np.testing.assert_allclose(output, expected, atol=1e-12)
                        np.testing.assert_allclose(lse, expected_lse, atol=1e-12)

    def test_large_scores_do_not_overflow(self):
        query = np.full((1, 1, 1), 1e4)
        key, value = np.array([[[1.0]], [[2.0]]]), np.array([[[3.0]], [[4.0]]])
        output, lse = check.attend({"num_kv_heads": 1, "scale": 1}, query, key, value, 2)
        self.assertEqual((output.item(), lse.item()), (4, 2e4))


class ReferenceTest(unittest.TestCase):
    """Layers, caches and sequences."""

    def test_result_does_not_depend_on_chunking(self):
        layer = {"name": "a", "num_heads": 4, "num_kv_heads": 2, "head_size": 32, "sliding_window": 9}
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal((40, h, 32)) for h in (4, 2, 2))
        outputs = []
        for chunk in (40, 7, 1):
            reference = check.Reference({"kv_cache": {"block_size": 16}, "layers": [layer]})
            blocks = produce.BlockAllocator(8, 16, seed=chunk)
            rows = []
            for at in range(0, 40, chunk):
                part = slice(at, min(at + chunk, 40))
                slots = blocks.append("s", len(k[part]))
                row = {"query": q[part], "key": k[part], "value": v[part], "seq_len": part.stop}
                row |= {"slot_mapping": slots, "block_table": blocks.table("s")}
                rows.append(reference.step(batch_of({"sequence_id": "s", **row}))[0].output)
            outputs.append(np.concatenate(rows))
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-12)
        np.testing.assert_allclose(outputs[0], outputs[2], atol=1e-12)

    def test_rows_without_queries_update_the_cache(self):
        layer = {"name": "a", "num_heads": 4, "num_kv_heads": 2, "head_size": 32}
        rng = np.random.default_rng(0)
        query, key, value = (rng.standard_normal((8, heads, 32)) for heads in (4, 2, 2))
        outputs = []
        for parts in ((slice(0, 8),), (slice(0, 5), slice(5, 8))):
            reference = check.Reference({"layers": [layer]})
            for part in parts:
                now = query[part] if part.stop == 8 else query[:0]
                builder = produce.StepBatchBuilder()
                builder.add(1, query=now, key=key[part], value=value[part], seq_len=part.stop)
                row = reference.step(builder.build())[0]
                self.assertEqual(row.output.shape, now.shape)
                self.assertEqual(row.lse.shape, now.shape[:2])
                rows = check.keyed([row])
                self.assertEqual(check.Comparison().run(rows, rows).problems, [])
            outputs.append(row.output[-3:])
        np.testing.assert_array_equal(outputs[0], outputs[1])

    def test_batches_without_rows_have_no_results(self):
        layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32}
        builder = produce.StepBatchBuilder(layer="a").add(1, query=np.zeros((2, 2, 32)))
        reference = check.Reference({"layers": [layer]})
        self.assertEqual(reference.step(builder.build().slice(0, 0)), [])

    def test_caches_store_their_type_and_scales(self):
        rng = np.random.default_rng(0)
        for pool, own, stored in (
            ("auto", {}, "float16"),
            ("fp8_e5m2", {}, "float8_e5m2"),
            ("fp8", {"kv_cache_dtype": "bfloat16"}, "bfloat16"),
            ("auto", {"kv_cache_dtype": "fp8", "k_scale": 0.02, "v_scale": 0.5}, "float8_e4m3fn"),
        ):
            layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32, **own}
            reference = check.Reference({"kv_cache": {"dtype": pool}, "layers": [layer]})
            row = row_of(1, 3, rng)
            result = reference.step(batch_of(row, dtype="float16"))[0]
            query, key, value = (check.quantize(row[name], "float16") for name in ("query", "key", "value"))
            k_scale, v_scale = own.get("k_scale", 1), own.get("v_scale", 1)
            key = check.quantize((key / k_scale).astype(np.float32), stored) * k_scale
            value = check.quantize((value / v_scale).astype(np.float32), stored) * v_scale
            np.testing.assert_allclose(result.output, attend_in_loops(layer, query, key, value)[0], atol=1e-5)
            self.assertEqual((result.sequence_id, result.layer, result.dtype), (1, "", "float16"))

    def test_rotations_come_before_the_cache_and_are_rounded(self):
        rope = {"rotary_dim": 32, "max_position": 99}
        layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32, "rope": rope}
        row = row_of(1, 3, np.random.default_rng(0), position=[5, 6, 7])
        found = check.Reference({"layers": [layer]}).step(batch_of(row, dtype="bfloat16"))[0]
        query, key, value = (check.quantize(row[name], "bfloat16") for name in ("query", "key", "value"))
        query, key = (check.quantize(rotate(x, row["position"], rope), "bfloat16") for x in (query, key))
        np.testing.assert_allclose(found.output, attend_in_loops(layer, query, key, value)[0], atol=1e-12)

    def test_encoders_see_the_keys_of_their_row(self):
        layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32, "attn_type": "encoder"}
        reference = check.Reference({"layers": [layer]})
        for columns in ({}, {"seq_len": 1, "block_table": [7]}):
            row = row_of(1, 3, np.random.default_rng(0), **columns)
            query, key, value = (check.quantize(row[name], "float32") for name in ("query", "key", "value"))
            expected = attend_in_loops(layer, query, key, value)[0]
            np.testing.assert_allclose(reference.step(batch_of(row))[0].output, expected, atol=1e-12)

    def test_cross_attention_sees_all_keys_that_came(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        for layer in layers:
            layer["attn_type"] = "encoder_decoder"
        layers[1]["kv_sharing_target_layer_name"] = "a"
        reference = check.Reference({"layers": layers})
        row = row_of(1, 5, np.random.default_rng(0))
        first = {**row, "query": row["query"][:2]}
        second = {"sequence_id": 1, "query": row["query"][2:]}
        alone = {"sequence_id": 1, "query": first["query"]}  # the sharing layer has no keys of its own
        parts = ((first, "a"), (alone, "b"), (second, "a"), (second, "b"))
        found = [reference.step(batch_of(part, layer=name))[0] for part, name in parts]
        query, key, value = (check.quantize(row[name], "float32") for name in ("query", "key", "value"))
        expected = attend_in_loops(layers[0], query, key, value)[0]
        for parts in (found[::2], found[1::2]):
            np.testing.assert_allclose(np.concatenate([part.output for part in parts]), expected, atol=1e-12)

    def test_negative_slots_are_skipped_and_others_begin_as_zeros(self):
        cache = check.Cache(16, 1, 2)
        pair = np.arange(1.0, 7).reshape(3, 1, 2)
        cache.write([33, -1, 35], pair, -pair)
        key, value = cache.gather([2, 7], 17)
        np.testing.assert_array_equal(key[:4, 0], [[0, 0], [1, 2], [0, 0], [5, 6]])
        np.testing.assert_array_equal(value, -key)
        self.assertEqual(np.count_nonzero(key), 4)
        self.assertEqual(cache.gather([], 0)[0].shape, (0, 1, 2))

    def test_batches_without_queries_fill_the_cache(self):
        layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32}
        row = row_of(1, 3, np.random.default_rng(0))
        keys = {name: row[name] for name in ("sequence_id", "key", "value")}
        queries = {name: row[name] for name in ("sequence_id", "query")}
        apart, together = (check.Reference({"layers": [layer]}) for _ in range(2))
        filled = apart.step(batch_of(keys, dtype="bfloat16"))[0]
        self.assertEqual((filled.output.shape, filled.dtype), ((0, 2, 32), "bfloat16"))
        found = apart.step(batch_of(queries, dtype="bfloat16"))[0].output
        expected = together.step(batch_of(row, dtype="bfloat16"))[0].output
        np.testing.assert_array_equal(found, expected)

    def test_layers_that_share_read_what_the_first_one_wrote(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        layers[1]["kv_sharing_target_layer_name"] = "a"
        rng = np.random.default_rng(0)
        for columns in ({}, {"seq_len": 3, "slot_mapping": [0, 1, 2], "block_table": [0]}):
            reference = check.Reference({"layers": layers})
            row = row_of(1, 3, rng, **columns)
            first = reference.step(batch_of(row, layer="a"))[0]
            other = {**row, "key": row["key"] + 1, "value": row["value"] + 1}
            second = reference.step(batch_of(other, layer="b"))[0]
            np.testing.assert_array_equal(first.output, second.output)
            self.assertEqual((first.layer, second.layer), ("a", "b"))
        with self.assertRaisesRegex(ValueError, "layer 'b': expected to share with an earlier .*, got 'a'"):
            check.Reference({"layers": layers[::-1]})

    def test_a_sharing_layer_sees_what_it_has_come_to(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        layers[1]["kv_sharing_target_layer_name"] = "a"
        reference = check.Reference({"layers": layers})
        rng = np.random.default_rng(0)
        row, later = row_of(1, 3, rng), row_of(1, 2, rng)
        for each in (row, later):
            reference.step(batch_of(each, layer="a"))
        query, key, value = (check.quantize(row[name], "float32") for name in ("query", "key", "value"))
        expected = attend_in_loops(layers[1], query, key, value)[0]
        found = reference.step(batch_of(row, layer="b"))[0].output
        np.testing.assert_allclose(found, expected, atol=1e-12)

    def test_a_sharing_layer_that_was_left_out_goes_on_at_seq_len(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        layers[1]["kv_sharing_target_layer_name"] = "a"
        rng = np.random.default_rng(0)
        prompt, last = row_of(1, 5, rng, seq_len=5), row_of(1, 2, rng, seq_len=7)
        external = (
            {**prompt, "slot_mapping": range(5), "block_table": [0]},
            {**last, "slot_mapping": range(5, 7), "block_table": [0]},
        )
        found = []
        for fill, row in ((prompt, last), external):
            reference = check.Reference({"layers": layers})
            reference.step(batch_of({**fill, "query": row["query"][:0]}, layer="a"))
            reference.step(batch_of(row, layer="a"))
            found.append(reference.step(batch_of(row, layer="b"))[0].output)
        np.testing.assert_array_equal(found[0], found[1])

    def test_a_seq_len_that_does_not_fit_a_managed_sequence_is_told(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "abcd"]
        layers[1]["kv_sharing_target_layer_name"] = "a"
        layers[2]["attn_type"] = layers[3]["attn_type"] = "encoder_decoder"
        layers[3]["kv_sharing_target_layer_name"] = "c"
        rng = np.random.default_rng(0)
        row, more = row_of(1, 3, rng, seq_len=3), row_of(1, 2, rng, seq_len=5)
        for name, before, wrong, message in (
            ("a", "", 4, r"1 has 4, expected 3 \(0 tokens in the cache and 3 new ones\)"),
            ("a", "a", 2, r"1 has 2, expected 5 \(3 tokens in the cache and 2 new ones\)"),
            ("b", "ab", 4, r"1 has 4, expected 5 \(3 tokens in the cache and 2 new ones\)"),
            ("b", "ab", 5, "1 has 3 tokens in the cache that layer b reads, expected 5"),
            ("c", "", 0, r"1 has 0, expected 3 \(0 tokens in the cache and 3 new ones\)"),
            ("d", "c", 5, r"1 has 5, expected 3 \(3 tokens in the cache and 0 new ones\)"),
            ("a", "a", None, "column seq_len: row 0 is null"),
        ):
            with self.subTest(message):
                reference = check.Reference({"layers": layers})
                for each in before:
                    reference.step(batch_of(row, layer=each))
                batch = batch_of(more if before else row, layer=name)
                batch = self.with_column(batch, "seq_len", pa.array([wrong], pa.int32()))
                with self.assertRaisesRegex(ValueError, message):
                    reference.step(batch)

    def test_a_sequence_that_ended_begins_anew(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        layers[1]["kv_sharing_target_layer_name"] = "a"
        reference, fresh = (check.Reference({"layers": layers}) for _ in range(2))
        rng = np.random.default_rng(0)
        ended = row_of(1, 3, rng, end_of_sequence=True)
        anew = [row_of(1, n, rng, end_of_sequence=False) for n in (2, 4)]
        for name in "ab":
            reference.step(batch_of(ended, layer=name))
        for name in "ab":  # layer b comes to the new tokens after all of them were written
            for row in anew:
                found, expected = (each.step(batch_of(row, layer=name))[0] for each in (reference, fresh))
                np.testing.assert_array_equal(found.output, expected.output)

    def test_a_sequence_ends_in_all_layers(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "abc"]
        layers[2]["kv_sharing_target_layer_name"] = "a"
        rng = np.random.default_rng(0)
        row, anew = (row_of(1, n, rng, end_of_sequence=False) for n in (3, 2))
        nothing = {**row_of(1, 0, rng), "end_of_sequence": True, "seq_len": 3}
        last = {**row, "end_of_sequence": True}
        for ending in (
            [(row, "abc"), (nothing, "a")],  # a row without tokens ends it everywhere
            [(row, "abc"), (nothing, "abc")],
            [(row, "ab"), (last, "c")],  # the other layers have as many tokens
            [(last, "abc")],
        ):
            reference, fresh = (check.Reference({"layers": layers}) for _ in range(2))
            for each, names in ending:
                for name in names:
                    reference.step(batch_of(each, layer=name))
            for name in "bac":
                found, expected = (each.step(batch_of(anew, layer=name))[0] for each in (reference, fresh))
                np.testing.assert_array_equal(found.output, expected.output)

    def test_an_id_does_not_begin_again_before_its_sequence_has_ended_in_all_layers(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        reference = check.Reference({"layers": layers})
        rng = np.random.default_rng(0)
        last, anew = row_of(1, 3, rng, end_of_sequence=True), row_of(1, 2, rng, end_of_sequence=False)
        padding = {**row_of(1, 0, rng), "end_of_sequence": False}
        reference.step(batch_of(last, layer="a"))
        reference.step(batch_of(padding, layer="a"))
        with self.assertRaisesRegex(ValueError, "sequence 1 has ended in layer a and not in all others"):
            reference.step(batch_of(anew, layer="a"))
        reference.step(batch_of(last, layer="b"))
        reference.step(batch_of(anew, layer="a"))

    def test_the_last_rows_need_not_bring_tokens(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "ab"]
        reference = check.Reference({"layers": layers})
        row = row_of(1, 3, np.random.default_rng(0), end_of_sequence=False)
        last = {**row, "key": row["key"][:0], "value": row["value"][:0], "end_of_sequence": True}
        for each in (row, last):
            found = [reference.step(batch_of(each, layer=name))[0].output for name in "ab"]
            np.testing.assert_array_equal(found[0], found[1])

    def test_forks_have_what_their_parent_had_before_in_all_layers(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "abc"]
        layers[2]["kv_sharing_target_layer_name"] = "a"
        rng = np.random.default_rng(0)
        reference, alone = (check.Reference({"layers": layers}) for _ in range(2))
        prompt, rest, more = (row_of(1, n, rng, parent_sequence_id=None) for n in (4, 2, 1))
        tail = row_of(2, 2, rng, parent_sequence_id=1)
        for name in "abc":
            reference.step(batch_of(prompt, layer=name))
            alone.step(batch_of(prompt, layer=name))
        for name in "abc":  # the parent goes on in the batch of the fork, and has been ahead in layer a
            forked = reference.step(batch_of(rest, tail, layer=name))[1]
            expected = alone.step(batch_of({**tail, "sequence_id": 1}, layer=name))[0]
            np.testing.assert_array_equal(forked.output, expected.output)
        for name in "abc":
            following = reference.step(batch_of({**more, "sequence_id": 2}, layer=name))[0]
            expected = alone.step(batch_of(more, layer=name))[0]
            np.testing.assert_array_equal(following.output, expected.output)

    def test_wrong_batches_are_told(self):
        layers = [{"name": name, "num_heads": 2, "num_kv_heads": 1, "head_size": 32} for name in "abe"]
        layers[1]["rope"] = {"rotary_dim": 32, "max_position": 99}
        layers[2]["attn_type"] = "encoder"
        rng = np.random.default_rng(0)
        row = row_of(1, 3, rng)
        external = {**row, "seq_len": 3, "slot_mapping": [0, 1, 2], "block_table": [0]}
        batch = batch_of(external, layer="a")
        for wrong, message in (
            (batch_of(row, layer="c"), "column layer: 'c' is not a layer"),
            (batch_of(row), "expected a column 'layer'"),
            (batch_of(row, layer="b"), "expected a column 'position'"),
            (
                batch_of({**row, "position": [1, 2]}, layer="b"),
                "row 0: .* 3 tokens, got 2 positions and 3 keys",
            ),
            (
                batch_of({**row, "query": row["query"][:2], "position": [1, 2]}, layer="b"),
                "row 0: .* 2 tokens, got 2 positions and 3 keys",
            ),
            (batch.drop_columns(["query", "key", "value"]), "expected a column 'query'"),
            (batch.drop_columns(["key"]), "expected a column 'key'"),
            (batch_of(row, layer="e").drop_columns(["query"]), "expected a column 'query'"),
            (batch_of(row, layer="e").drop_columns(["key", "value"]), "expected a column 'key'"),
            (batch.drop_columns(["slot_mapping"]), "expected a column 'slot_mapping'"),
            (batch.rename_columns(["layer", "layer", *batch.schema.names[2:]]), "different names, got layer"),
            (
                batch_of({**external, "seq_len": 17}, layer="a"),
                "seq_len: 17, expected 0 to what 1 blocks hold",
            ),
            (batch_of({**external, "seq_len": -1}, layer="a"), "seq_len: -1, expected 0 to"),
            (
                self.with_column(batch, "seq_len", pa.array([None], pa.int32())),
                "seq_len: None, expected 0 to",
            ),
            (self.with_slots(batch, [[0, None, 2]]), "column slot_mapping: expected no nulls inside lists"),
            (self.with_slots(batch, [[0, 1]]), "column slot_mapping: 2 entries, expected 3"),
        ):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                check.Reference({"layers": layers}).step(wrong)

    @staticmethod
    def with_column(batch, name, column):
        """The batch with another column in the place of one."""
        return batch.set_column(batch.schema.get_field_index(name), name, column)

    def with_slots(self, batch, slots):
        """The batch with another column slot_mapping."""
        return self.with_column(batch, "slot_mapping", pa.array(slots, pa.list_(pa.int64())))


class ComparisonTest(unittest.TestCase):
    """Results beside what is expected."""

    def test_every_feature_compares_equal_with_itself_and_not_when_moved(self):
        for options in FEATURES:
            with self.subTest(options), tempfile.TemporaryDirectory() as folder:
                small = f"--sequences 3 --steps 5 --max-prompt 20 --head-size 32 {options}"
                self.assertEqual(quietly(produce.main, [folder, *small.split()])[0], 0)
                job, steps = str(pathlib.Path(folder, "job.yaml")), str(pathlib.Path(folder, "steps.arrow"))
                rows = list(check.reference_rows(jobfile.load_job(job), steps))
                result = str(pathlib.Path(folder, "result.arrow"))
                write_output(result, rows)
                self.assertEqual(quietly(check.main, ["--job", job, "--steps", steps, result])[0], 0)
                write_output(result, rows, shift=0.1)
                code, text = quietly(check.main, ["--job", job, "--steps", steps, result])
                self.assertEqual(code, 1)
                self.assertIn("error 0.", text)
                write_output(result, rows[1:])
                code, text = quietly(check.main, ["--job", job, "--steps", steps, result])
                self.assertEqual(code, 1)
                self.assertIn("missing in the result", text)

    def test_the_tolerance_is_the_given_one(self):
        with tempfile.TemporaryDirectory() as folder:
            result, expected = (str(pathlib.Path(folder, name)) for name in ("r.arrow", "e.arrow"))
            row = consume.ResultRow(5, "a", np.ones((2, 1, 4), np.float32), None, "float32", {})
            write_output(result, [row], shift=1e-6)
            field, output = produce.tensor_list([row.output], (1, 4), "float32", "expected")
            schema = pa.schema([("sequence_id", pa.int64()), ("layer", pa.utf8()), field])
            batch = pa.RecordBatch.from_arrays([pa.array([5]), pa.array(["a"]), output], schema=schema)
            produce.write_ipc(expected, [batch])
            compare = ["--expected", expected, result]
            self.assertEqual(quietly(check.main, compare)[0], 0)
            self.assertEqual(quietly(check.main, [*compare, "--tolerance", "0"])[0], 1)
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                check.main([*compare, "--tolerance", "nan"])

    @staticmethod
    def row(output, dtype="float32", lse=None, layer="a"):
        """A row of sequence 5 with one token and one head."""
        lse = None if lse is None else np.array([[lse]])
        return consume.ResultRow(5, layer, np.array([[output]], np.float64), lse, dtype, {})

    def compare(self, expected, *results, layers=None, tolerance=None):
        """The problems of results that have the key of `expected`, the first of them or further ones."""
        expected, results = check.keyed([expected]), check.keyed(results)
        return check.Comparison(layers, tolerance).run(expected, results).problems

    def test_errors_are_relative_to_large_values_only(self):
        for expected, got, error in (
            ([0.5, 0], [0.5, 0.25], 0.25),
            ([0.5, -8], [1.5, -8], 0.125),
            ([np.inf, 1], [np.inf, 2], 1),
            ([-np.inf, np.nan], [-np.inf, 2], np.inf),
            ([np.inf], [1], np.inf),
            ([], [], 0),
        ):
            self.assertEqual(check.error_of(np.array(expected), np.array(got)), error)

    def test_each_type_has_a_tolerance(self):
        for dtype, tolerance in check.TOLERANCE.items():
            self.assertLessEqual(tolerance, 0.07)
            for factor, found in ((0.9, 0), (1.1, 1)):
                problems = self.compare(self.row([0.5]), self.row([0.5 + factor * tolerance], dtype))
                self.assertEqual(len(problems), found, (dtype, factor))

    def test_lse_is_compared_with_the_tolerance_of_the_tensors(self):
        for want, got, tolerance, found in (
            (1, 1.001, None, 0),
            (1, 1.003, None, 1),
            (1, 1.001, 0, 1),
            (1, None, None, 0),
            (None, 1, None, 0),
            (-np.inf, -np.inf, None, 0),
        ):
            problems = self.compare(
                self.row([2], "float16", want), self.row([2], lse=got), tolerance=tolerance
            )
            self.assertEqual(len(problems), found, (want, got, tolerance))
            if found:
                self.assertRegex(problems[0], "sequence 5, layer 'a', its row 0: lse error .* is above")

    def test_fp8_results_are_scaled_and_saturate(self):
        layers = {"a": {"output_scale": 0.5}}
        for expected, got, layer in (([3.0, 1000, -300], [6, 448, -448], "a"), ([1], [2], "")):
            expected, got = self.row(expected, layer=layer), self.row(got, "float8_e4m3fn", layer=layer)
            self.assertEqual(self.compare(expected, got, layers=layers), [])
        self.assertEqual(len(self.compare(self.row([225.0]), self.row([448], "float8_e4m3fn"))), 1)
        self.assertEqual(self.compare(self.row([1000.0]), self.row([1000.0])), [])

    def test_rows_that_are_not_both_there_are_told(self):
        problems = self.compare(self.row([1]), self.row([1, 2]))
        self.assertRegex(problems[0], r"its row 0: expected shape \(1, 1\), got \(1, 2\)")
        problems = self.compare(self.row([1]), self.row([1]), self.row([1]))
        self.assertEqual(problems, ["sequence 5, layer 'a', its row 1: not expected"])
        self.assertRegex(self.compare(self.row([1]))[0], "its row 0: missing in the result")

    def test_the_report_counts_by_layer(self):
        expected = [self.row([1, 1], layer=layer) for layer in "abbbbbbbb"]
        result = [
            self.row([1, 1.5 if i > 1 else 1], lse=0, layer=row.layer) for i, row in enumerate(expected)
        ]
        comparison = check.Comparison().run(check.keyed(expected), check.keyed(result))
        good, text = quietly(comparison.report)
        self.assertFalse(good)
        lines = text.splitlines()
        self.assertRegex(lines[0], r"layer +rows +tokens +worst +lse +allowed +dtype\Z")
        self.assertRegex(lines[1], r"a +1 +1 +0 +- +1e-05 +float32\Z")
        self.assertRegex(lines[2], r"b +8 +8 +0.5 +- +1e-05 +float32 +7 BAD\Z")
        self.assertEqual(lines[-2:], ["... and 2 more", "9 rows compared: FAILED"])
        self.assertEqual(len(lines), 3 + 5 + 2)
        good, text = quietly(check.Comparison().run({}, {}).report)
        self.assertFalse(good, "nothing was compared")
        comparison = check.Comparison().run(check.keyed(expected), check.keyed(expected))
        good, text = quietly(comparison.report)
        self.assertTrue(good)
        self.assertEqual(text.splitlines()[3:], ["9 rows compared: all agree"])
        comparison = check.Comparison().run(
            check.keyed([self.row([1, 1], lse=2), self.row([1, 1], lse=1)]),
            check.keyed([self.row([1, 1], lse=3), self.row([1])]),
        )
        good, text = quietly(comparison.report)
        self.assertRegex(text.splitlines()[1], r"a +2 +2 +0 +0.5 +1e-05 +float32 +2 BAD\Z")

    def test_options_that_do_not_fit_are_refused(self):
        for args in ([], ["--steps", "s"], ["--job", "j"], ["--job", "j", "--steps", "s", "--expected", "e"]):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as told:
                check.main([*args, "r"])
            self.assertIn("give either --job and --steps, or --expected", told.getvalue())


if __name__ == "__main__":
    unittest.main()

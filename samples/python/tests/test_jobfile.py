# SPDX-License-Identifier: Apache-2.0
"""Tests of the job file's YAML subset and of what is checked."""

import pathlib
import re
import tempfile
import unittest

from broadhead_samples import jobfile


class ParseTest(unittest.TestCase):
    """The YAML subset."""

    def test_reads_what_it_writes(self):
        for job in (
            {
                "kv_cache": {"block_size": 16, "num_blocks": 64, "dtype": "auto"},
                "layers": [
                    {"name": "a.0", "num_heads": 2, "head_size": 64, "scale": 1e-05, "sinks": [1.0, -0.5]},
                    {
                        "name": "b",
                        "num_heads": 4,
                        "rope": {"rotary_dim": 32, "rope_scaling": {"factor": 2.0}},
                    },
                ],
            },
            {"layers": [{"name": "a", "scale": 1.5e-07, "return_lse": True, "rope": {"is_neox": False}}]},
        ):
            text = jobfile.dump_job(job, "a comment: with [brackets\n\nand its end")
            self.assertTrue(text.startswith("# a comment: with [brackets\n#\n# and its end\n"))
            self.assertEqual(jobfile.parse(text), job)

    def test_numbers_and_words_are_the_same_to_every_reader(self):
        text = jobfile.dump_job({"layers": [{"scale": 1e-05, "sinks": (2e20, 1.5e-7), "return_lse": True}]})
        self.assertEqual(
            text, "layers:\n  - scale: 1.0e-05\n    sinks: [2.0e+20, 1.5e-07]\n    return_lse: true\n"
        )

    def test_reads_block_style(self):
        text = """---
# comment
layers:
- name: 'a # b'   # trailing
  sinks:
    - 1
    - 2.5
  alibi_slopes: [0.5, # 1
                 0.25]
-
  name: it's   # trailing
  sinks:
  - 1
  rope:
    base: 1.0e+4
    is_neox: TRUE
  scale:
- just, text
kv_cache: {dtype: "a]", num_blocks: -3,}
"""
        first = {"name": "a # b", "sinks": [1, 2.5], "alibi_slopes": [0.5, 0.25]}
        second = {"name": "it's", "sinks": [1], "rope": {"base": 1e4, "is_neox": True}, "scale": None}
        expected = {"layers": [first, second, "just, text"], "kv_cache": {"dtype": "a]", "num_blocks": -3}}
        self.assertEqual(jobfile.parse(text), expected)
        self.assertEqual(jobfile.parse("# nothing\n"), {})
        self.assertEqual(jobfile.parse("-\n- b\n-\n  d: 1\n"), [None, "b", {"d": 1}])
        self.assertEqual(jobfile.parse("a:\nb:\n  c:\nd: 1\n"), {"a": None, "b": {"c": None}, "d": 1})

    def test_reads_flow_style(self):
        for text, expected in {
            "[ 1 , 2 ]": [1, 2],
            "[]": [],
            "[ ]": [],
            "{ b : 1,c: [ ] }": {"b": 1, "c": []},
            "{b: , c: null}": {"b": None, "c": None},
            "['', \"\", 'b\\c', d#e, +1, -.5]": ["", "", "b\\c", "d#e", 1, -0.5],
            "[[ 1 ] , { b: '2, ]' }]": [[1], {"b": "2, ]"}],
            "": None,
        }.items():
            with self.subTest(text):
                self.assertEqual(jobfile.parse(f"a: {text}"), {"a": expected})

    def test_names_the_line_of_what_it_cannot_read(self):
        for line, message in {
            "b: &x 2": "'&' is not part of a job file",
            "b: *x": "'\\*' is not part of a job file",
            "b: |": "'|' is not part of a job file",
            "b": "expected 'key: value', got 'b'",
            "b: [1, 2": "a '\\[' or '{' is not closed",
            "b: [[1] 2]": "expected ',' or ']', got '2]'",
            "b: {c}": "expected 'key: value' in {...}, got 'c}'",
            "b: [1] 2": "unexpected '2'",
            "b: 'c": "a quote is not closed",
            'b: "c\\n"': "escapes are not part of a job file",
            "a: 2": "duplicate key 'a'",
            "b: {c: 1, c: 2}": "duplicate key 'c'",
            "\tb: 2": "tabs are not allowed in indentation",
            "  b: 2": "unexpected indentation",
            "- 2": "unexpected indentation",
        }.items():
            with self.subTest(line), self.assertRaisesRegex(ValueError, rf"\Ajob.yaml:2: {message}"):
                jobfile.parse(f"a: 1\n{line}")
        with self.assertRaisesRegex(ValueError, r"job.yaml:2: a list in a list is written in brackets"):
            jobfile.parse("a:\n- - 1")


class CheckedTest(unittest.TestCase):
    """Keys and values."""

    def test_knows_the_keys_of_the_reference_page(self):
        page = (pathlib.Path(__file__).parents[3] / "docs/reference/job-file.md").read_text(encoding="utf-8")
        sections = re.split(r"^## ", page, flags=re.M)
        keys = {s.split("`")[1]: set(re.findall(r"^\| `(\w+)`", s, re.M)) for s in sections if s[0] == "`"}
        head_sizes = re.search(r"^\| `head_size` \|([^|]+)\|", page, re.M)[1]
        self.assertEqual(tuple(map(int, re.findall(r"\d+", head_sizes))), jobfile._HEAD_SIZES)
        self.assertEqual(keys["kv_cache"], set(jobfile._KV_CACHE))
        self.assertEqual(keys["layers[]"], set(jobfile._LAYER))
        self.assertEqual(keys["layers[].rope"], set(jobfile._ROPE))
        self.assertEqual(keys["layers[].rope.rope_scaling"], set(jobfile._ROPE_SCALING))
        self.assertEqual(set(jobfile._ROPE_SCALING), {"rope_type"}.union(*jobfile.SCALING_KEYS.values()))

    def test_files_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "odd.yaml")
            path.write_text("layers: [{name: ä, num_heads: 1, head_size: 32}]", encoding="utf-8")
            self.assertEqual(jobfile.load_job(path)["layers"][0]["name"], "ä")
            path.write_text("layer: 1")
            with self.assertRaisesRegex(ValueError, "odd.yaml: expected a mapping with a non-empty list"):
                jobfile.load_job(path)
            path.write_bytes(b"layers: \xff")
            with self.assertRaisesRegex(ValueError, "odd.yaml: expected text in UTF-8, got other bytes"):
                jobfile.load_job(path)

    def test_null_counts_as_absent(self):
        self.assertEqual(
            self.layer("scale: null, attn_type: null, sinks: null, rope: null"),
            {"name": "a", "num_heads": 4, "head_size": 32, "num_kv_heads": 4},
        )

    def test_every_key_is_taken_as_it_is(self):
        scaling = "{rope_type: llama3, factor: 8, original_max_position_embeddings: 64, low_freq_factor: 1.5}"
        layer = self.layer(
            "scale: 1, sliding_window: 3, alibi_slopes: [0.5, 1, -2.5, 0], sinks: [], attn_type: encoder, "
            "kv_cache_dtype: fp8, k_scale: 0.5, kv_sharing_target_layer_name: b, return_lse: true, "
            f"rope: {{rotary_dim: 32, max_position: 9, base: 5.0e5, is_neox: false, rope_scaling: {scaling}}}"
        )
        scaling = {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 64}
        rope = {"rotary_dim": 32, "max_position": 9, "base": 5e5, "is_neox": False}
        expected = {"name": "a", "num_heads": 4, "head_size": 32, "num_kv_heads": 4, "scale": 1}
        expected |= {
            "sliding_window": 3,
            "alibi_slopes": [0.5, 1, -2.5, 0],
            "sinks": [],
            "attn_type": "encoder",
        }
        expected |= {"kv_cache_dtype": "fp8", "k_scale": 0.5, "kv_sharing_target_layer_name": "b"}
        expected |= {
            "return_lse": True,
            "rope": {**rope, "rope_scaling": {**scaling, "low_freq_factor": 1.5}},
        }
        self.assertEqual(layer, expected)

    def test_defaults_and_least_values_are_right(self):
        job = jobfile.checked(
            jobfile.parse("layers: [{name: a, num_heads: 1, num_kv_heads: 1, head_size: 32}]")
        )
        self.assertEqual(job["kv_cache"], {})
        self.assertEqual(self.layer("rope: {rotary_dim: 2, max_position: 1}")["rope"]["rotary_dim"], 2)
        for size in (16, 544):
            self.assertEqual(
                jobfile.checked({"kv_cache": {"block_size": size}, **job})["layers"], job["layers"]
            )

    def test_wrong_jobs_are_named(self):
        layers = [{"name": "a", "num_heads": 4, "head_size": 32}]
        for job, message in (
            ([], "expected a mapping with a non-empty list 'layers'"),
            ({"layers": {"a": 1}}, "expected a mapping with a non-empty list 'layers'"),
            ({"layers": []}, "expected a mapping with a non-empty list 'layers'"),
            ({"layers": ["a"]}, r"layers\[0\]: expected a mapping, got 'a'"),
            ({"layers": layers, "layer": 1}, "unknown key 'layer', expected kv_cache or layers"),
            ({"layers": layers, "kv_cache": 3}, "kv_cache: expected a mapping, got 3"),
            ({"layers": layers, "kv_cache": {"block_size": 24}}, "kv_cache.block_size: .*, got 24"),
            ({"layers": layers, "kv_cache": {"block_size": 0}}, "kv_cache.block_size: .*, got 0"),
            ({"layers": [{"name": "a", "head_size": 32}]}, r"layers\[0\].num_heads: missing"),
        ):
            with self.subTest(message), self.assertRaisesRegex(ValueError, rf"\Ajob.yaml: {message}"):
                jobfile.checked(job)

    def test_wrong_values_of_a_layer_are_named(self):
        for wrong, message in {
            "scal: 1.0": "scal: unknown key",
            "scale: .nan": "scale: expected a finite number, got '.nan'",
            "scale: 1e999": "scale: expected a finite number, got inf",
            "scale: true": "scale: expected a finite number, got True",
            "sinks: [1, x]": "sinks: expected a list of finite numbers",
            "sinks: x": "sinks: expected a list of finite numbers",
            "sliding_window: [1]": "sliding_window: expected an integer",
            "attn_type: x": "attn_type: expected one of decoder, .*, got x",
            "return_lse: 1": "return_lse: expected true or false, got 1",
            "num_kv_heads: 3": "num_kv_heads: expected a number that divides 4, got 3",
            "num_kv_heads: 0": "num_kv_heads: expected a number that divides 4, got 0",
            "num_kv_heads: -4": "num_kv_heads: expected a number that divides 4, got -4",
            "rope: 3": "rope: expected a mapping, got 3",
            "rope: {rotary_dim: 8}": "rope.max_position: missing",
            "rope: {rotary_dim: 7, max_position: 9}": "rope.rotary_dim: expected an even .*, 2 to 32, got 7",
            "rope: {rotary_dim: 0, max_position: 9}": "rope.rotary_dim: .*, got 0",
            "rope: {rotary_dim: 34, max_position: 9}": "rope.rotary_dim: .*, got 34",
        }.items():
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, rf"layers\[0\].{message}"):
                self.layer(wrong)
        for key, value in (("num_heads", 0), ("head_size", 33)):
            layer = {"name": "a", "num_heads": 4, "num_kv_heads": 1, "head_size": 32, key: value}
            with self.assertRaisesRegex(ValueError, rf"layers\[0\].\w+: expected .*{value}"):
                jobfile.checked({"layers": [layer]})

    def test_wrong_scalings_are_named(self):
        yarn = "{rope_type: yarn, factor: 2, original_max_position_embeddings: 8"
        for wrong, message in {
            "{}": "rope_type: missing",
            "{rope_type: su}": "rope_type: expected one of default, linear, dynamic, llama3, yarn, got su",
            "{rope_type: default, factor: 2}": "factor: expected no such key, because rope_type default",
            "{rope_type: linear}": "factor: missing",
            "{rope_type: linear, factor: 2, mscale: 3}": "mscale: expected no such key",
            "{rope_type: yarn, factor: 2}": "original_max_position_embeddings: missing",
            f"{yarn}, mscale: 1.0}}": "mscale_all_dim: missing",
            f"{yarn}, mscale_all_dim: 1.0}}": "mscale: missing",
        }.items():
            rope = f"rope: {{rotary_dim: 32, max_position: 9, rope_scaling: {wrong}}}"
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, f"rope.rope_scaling.{message}"):
                self.layer(rope)
        rope = self.layer("rope: {rotary_dim: 32, max_position: 9, base: null, rope_scaling: null}")["rope"]
        self.assertEqual(rope, {"rotary_dim": 32, "max_position": 9})

    @staticmethod
    def layer(keys):
        """The layer with these keys, checked."""
        text = f"layers: [{{name: a, num_heads: 4, head_size: 32, {keys}}}]"
        return jobfile.checked(jobfile.parse(text))["layers"][0]


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: Apache-2.0
"""Tests of the rotary embedding."""

import unittest

import numpy as np

from broadhead_samples.rope import frequencies, rotate


def scaled(rope_type, max_position=16, base=10000.0, **scaling):
    """A rope option of 16 elements with a scaling."""
    scaling["rope_type"] = rope_type
    return {"rotary_dim": 16, "max_position": max_position, "base": base, "rope_scaling": scaling}


#: What Hugging Face transformers 5.18 computes in float32: (rope option, factor, frequencies)
CASES = (
    ({"rotary_dim": 8, "max_position": 16}, 1, [1, 0.1, 0.01, 0.001]),
    (
        scaled("linear", factor=4.0),
        1,
        [0.25, 0.07905694, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
    ),
    (
        scaled("dynamic", max_position=8192, factor=2, original_max_position_embeddings=2048),
        1,
        [1, 0.2394814, 0.05735132, 0.01373457, 0.003289174, 0.0007876959, 0.0001886385, 4.517539e-05],
    ),
    (
        scaled("llama3", base=5e5, factor=8.0, original_max_position_embeddings=8192),
        1,
        [1, 0.1939228, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 1.289173e-06],
    ),
    (
        scaled("yarn", factor=4.0, original_max_position_embeddings=8192),
        1.138629436111989,
        [1, 0.3162278, 0.1, 0.03162278, 0.008125, 0.001976424, 0.0004375, 7.905695e-05],
    ),
    (
        scaled(
            "yarn",
            factor=40.0,
            original_max_position_embeddings=4096,
            mscale=1.0,
            mscale_all_dim=0.707,
            truncate=False,
        ),
        1.0857263992561355,
        [1, 0.3162278, 0.1, 0.02771086, 0.005524063, 0.0007226382, 2.5e-05, 7.905694e-06],
    ),
    (
        scaled("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.5),
        1.5,
        [1, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
    ),
    (
        scaled("yarn", factor=1, original_max_position_embeddings=8192),
        1,
        [1, 0.3162278, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0003162278],
    ),
)


class RopeTest(unittest.TestCase):
    """Frequencies and rotations."""

    def test_frequencies_are_those_of_transformers(self):
        for rope, factor, expected in CASES:
            with self.subTest(rope):
                found, found_factor = frequencies(rope)
                np.testing.assert_allclose(found, expected, rtol=1e-6)
                self.assertAlmostEqual(found_factor, factor, places=12)

    def test_dynamic_leaves_the_trained_context_alone(self):
        rope = scaled("dynamic", max_position=512, factor=8, original_max_position_embeddings=2048)
        np.testing.assert_array_equal(frequencies(rope)[0], frequencies({"rotary_dim": 16})[0])

    def test_pairs_turn_by_their_angle_and_the_rest_stays(self):
        x = np.arange(1.0, 7).reshape(1, 1, 6)
        turned = np.exp(1j * 3 * np.array([1, 0.01]))  # position 3, frequencies of 4 elements
        for neox, pairs in ((True, [[0, 2], [1, 3]]), (False, [[0, 1], [2, 3]])):
            got = rotate(x, [3], {"rotary_dim": 4, "max_position": 9, "is_neox": neox})[0, 0]
            for pair, turn in zip(pairs, turned, strict=True):
                expected = complex(*x[0, 0, pair]) * turn
                np.testing.assert_allclose(got[pair], [expected.real, expected.imag])
            np.testing.assert_array_equal(got[4:], [5, 6])
        np.testing.assert_array_equal(x.flatten(), np.arange(1.0, 7), "the argument was changed")

    def test_the_factor_scales_cosines_and_sines(self):
        x = np.ones((1, 2, 16))
        rope = scaled("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.5)
        np.testing.assert_allclose(rotate(x, [0], rope), 1.5 * x)

    def test_scores_depend_on_distance_only(self):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((2, 1, 1, 64))
        for neox in (True, False):
            rope = {"rotary_dim": 48, "max_position": 100, "is_neox": neox}
            near = rotate(x, [3], rope) @ rotate(y, [5], rope)[0].T
            far = rotate(x, [73], rope) @ rotate(y, [75], rope)[0].T
            np.testing.assert_allclose(near, far, atol=1e-12)


if __name__ == "__main__":
    unittest.main()

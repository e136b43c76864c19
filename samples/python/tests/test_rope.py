# SPDX-License-Identifier: Apache-2.0
"""Tests of the rotary embedding."""

import unittest

import numpy as np

from broadhead_samples.rope import rotate


class RopeTest(unittest.TestCase):
    """Rotations."""

    def test_rope_keeps_lengths_and_depends_on_distance_only(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, 1, 64))
        y = rng.standard_normal((1, 1, 64))
        for neox in (True, False):
            rope = {"rotary_dim": 48, "max_position": 100, "is_neox": neox}
            near = rotate(x, [3], rope) @ rotate(y, [5], rope)[0].T
            far = rotate(x, [73], rope) @ rotate(y, [75], rope)[0].T
            np.testing.assert_allclose(near, far, atol=1e-12)


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: Apache-2.0
"""Producer, consumer, checker and model tracer for Broadhead's attention step batches.

Everything but `trace` and the peers of `bench` needs only NumPy and pyarrow. The wire format is
described in docs/reference/step-format.md.
"""

__version__ = "0.1.0"

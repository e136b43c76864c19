# SPDX-License-Identifier: Apache-2.0
"""Measures PyTorch and ONNX Runtime beside Broadhead's kernels, in one process and in turns.

The kernels are called through the C ABI (`libbroadhead.so`) and the Arrow C Data Interface, without Java.
"""

# SPDX-License-Identifier: Apache-2.0
"""Records a Hugging Face model's attention as step batches, with what the model itself computed."""

// SPDX-License-Identifier: Apache-2.0
/**
 * Jobs: what each attention layer computes and what its KV cache is, and the job file that says so.
 */
package io.broadhead.attention.job;

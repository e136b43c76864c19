// SPDX-License-Identifier: Apache-2.0
/**
 * Benchmarks: steps of the kernels beside what the machine allows and beside other libraries, in
 * turns, so that everything is measured at the same speed of the machine. Knows no Flink.
 */
package io.broadhead.job.bench;

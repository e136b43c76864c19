// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/**
 * What was opened.
 *
 * @param tier instruction set tier of the CPU kernels, or the GPU architecture
 * @param device processor or GPU name
 * @param reason why this backend and tier
 * @param threads CPU threads of one step
 */
public record EngineInfo(String backend, String tier, String device, String reason, int threads) {}

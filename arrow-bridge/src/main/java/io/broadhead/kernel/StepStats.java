// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/**
 * What a step did. Addresses are those that the kernels read and wrote: equal to the addresses of
 * the batch's buffers unless bytes were staged or transferred.
 *
 * @param queryTokens queries attended
 * @param writtenTokens tokens whose key and value went to the cache
 * @param bytesInPlace tensor bytes used where they were
 * @param bytesStaged tensor bytes copied to be used
 * @param queryAddress first query element, 0 without queries
 * @param keysSeen keys that query tokens see, summed over the tokens
 * @param keysRead keys that were read from memory for them
 * @param kernelNanoseconds time in the kernels, without import, checks and planning; 0 where a
 *     backend does not measure it
 * @param bytesTransferred bytes of results that kernels wrote to memory of a GPU and that were
 *     transferred whole
 */
public record StepStats(
    long queryTokens,
    long writtenTokens,
    long bytesInPlace,
    long bytesStaged,
    long queryAddress,
    long keyAddress,
    long valueAddress,
    long outputAddress,
    long keysSeen,
    long keysRead,
    long kernelNanoseconds,
    long bytesTransferred) {}

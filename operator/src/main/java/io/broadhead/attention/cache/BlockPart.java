// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * Tokens {@code from} to {@code to} - 1 of a block, in caches {@code firstCache} to {@code
 * endCache} - 1, as the store has them under one number: for each cache the keys, then the values.
 * Immutable.
 */
record BlockPart(int number, int firstCache, int endCache, int from, int to) {}

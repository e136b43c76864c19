// SPDX-License-Identifier: Apache-2.0
/**
 * Arrow record batches as values: schemas and tensor columns of the step format, batches that share
 * memory instead of copying it, IPC files and streams, and the bytes that cross a network edge.
 * Knows Arrow and nothing else.
 */
package io.broadhead.arrow;

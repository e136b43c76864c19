// SPDX-License-Identifier: Apache-2.0
/** Paged attention as a Flink operator: records, options, metrics, splitting and the operator. */
package io.broadhead.flink;

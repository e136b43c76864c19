// SPDX-License-Identifier: Apache-2.0
/** What a Java user would pick otherwise, for {@code broadhead bench} to measure beside ours. */
package io.broadhead.peers;

// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import org.bytedeco.javacpp.Pointer;

/** A pointer to memory that somebody else owns. */
final class Address extends Pointer {
  Address(long where) {
    address = where;
  }
}

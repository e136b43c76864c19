// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.global.broadhead;
import java.util.function.ToIntFunction;
import org.bytedeco.javacpp.BytePointer;

/** Turns statuses and error structures into exceptions. */
final class NativeErrors {
  private NativeErrors() {}

  /** Runs {@code call} with an error structure and throws what it reports. */
  static void check(ToIntFunction<bh_error> call) {
    try (bh_error error = new bh_error()) {
      int status = call.applyAsInt(error);
      if (status != broadhead.BH_OK) {
        throw toException(status, error);
      }
    }
  }

  static KernelException toException(int status, bh_error error) {
    return new KernelException(ErrorCode.of(status), error.row(), text(error.message()));
  }

  /** The NUL-terminated text of a character array in a structure. */
  static String text(BytePointer characters) {
    return characters.getString(UTF_8);
  }
}

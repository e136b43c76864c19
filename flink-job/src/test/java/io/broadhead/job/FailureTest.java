// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.MalformedArrowException;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.NoSuchFileException;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.Test;

class FailureTest {
  @Test
  void whatIsWrittenForUsersIsFoundUnderAnyWrapping() {
    Throwable failure =
        new ExecutionException(
            new RuntimeException("fetcher", new MalformedArrowException("a.arrow: truncated")));

    assertThat(Failure.describe(failure)).isEqualTo("a.arrow: truncated");
    assertThat(Failure.isUnexpected(failure)).isFalse();
  }

  @Test
  void whatFailedBesidesIsToldToo() {
    RuntimeException refused = new InvalidBatchException(ErrorCode.INVALID_ROW, 0, "row 0", null);
    refused.addSuppressed(new KernelException(ErrorCode.DEVICE_ERROR, -1, "the device failed"));
    refused.addSuppressed(new IllegalStateException("not for users"));

    assertThat(Failure.describe(new WorkFailedException("a.arrow, row 0", refused)))
        .isEqualTo("a.arrow, row 0; besides: the device failed");
  }

  @Test
  void filesAreNamed() {
    assertThat(Failure.describe(new NoSuchFileException("a/b")))
        .isEqualTo("a/b: no such file or folder");
    assertThat(Failure.describe(new IOException(new AccessDeniedException("a/b"))))
        .isEqualTo("a/b: permission denied");
  }

  @Test
  void theUnexpectedKeepsItsContext() {
    Throwable failure =
        new ExecutionException(
            new IllegalArgumentException(
                "Could not parse 'x' for key 'y'", new NumberFormatException("no\nnumber")));

    assertThat(Failure.describe(failure))
        .isEqualTo("Could not parse 'x' for key 'y' (NumberFormatException: no; number)");
    assertThat(Failure.isUnexpected(failure)).isTrue();
    assertThat(Failure.describe(new IllegalStateException())).isEqualTo("IllegalStateException");
  }
}

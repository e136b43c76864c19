// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;

class OtherWorkTest {
  @Test
  @EnabledOnOs(OS.LINUX)
  void countersOfLinuxAreRead() {
    long before = OtherWork.othersTicks();
    assertThat(before).isPositive();
    // Ticks of this process are rounded where those of all are not.
    assertThat(OtherWork.othersTicks()).isGreaterThanOrEqualTo(before - 2);
  }
}

// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import org.junit.jupiter.api.Test;

class StatisticsTest {
  @Test
  void medianIsTheMiddle() {
    assertThat(Statistics.median(3, 1, 100)).isEqualTo(3);
    assertThat(Statistics.median(List.of(4.0, 1.0, 2.0, 100.0))).isEqualTo(3);
    assertThat(Statistics.median()).isNaN();
  }

  @Test
  void geometricMeanOfRatios() {
    assertThat(Statistics.geometricMean(List.of(2.0, 8.0))).isEqualTo(4, within(1e-12));
    assertThat(Statistics.geometricMean(List.of(0.5, 2.0))).isEqualTo(1, within(1e-12));
    assertThat(Statistics.geometricMean(List.of())).isNaN();
  }
}

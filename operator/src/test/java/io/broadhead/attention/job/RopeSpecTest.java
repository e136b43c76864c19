// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Test;

class RopeSpecTest {
  @Test
  void tableHoldsCosinesThenSines() {
    RopeSpec rope = new RopeSpec(6, 1000, 10000, true);

    float[] table = rope.cosSin();

    assertThat(table).hasSize(6000);
    for (int position : new int[] {0, 1, 999}) {
      for (int j = 0; j < 3; j++) {
        double angle = position / Math.pow(10000, 2.0 * j / 6);
        assertThat(table[position * 6 + j]).isEqualTo((float) Math.cos(angle));
        assertThat(table[position * 6 + 3 + j]).isEqualTo((float) Math.sin(angle));
      }
    }
  }

  @Test
  void refusesATableThatNoArrayHolds() {
    assertThatThrownBy(() -> new RopeSpec(128, Integer.MAX_VALUE, 10000, true))
        .isInstanceOf(InvalidJobException.class)
        .hasMessageContaining("max_position: expected 1 to 16777215 with rotary_dim 128");
  }
}

// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

class PartNamesTest {
  /** Also within one tick of the clock. */
  @Test
  void everyNameSortsBehindTheOneBefore() {
    List<String> names = Stream.generate(() -> PartNames.next("kind")).limit(10_000).toList();
    assertThat(names).isSorted().doesNotHaveDuplicates();
  }
}

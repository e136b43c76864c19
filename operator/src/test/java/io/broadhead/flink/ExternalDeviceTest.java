// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.attention.job.Job;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.kernel.KernelException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import org.apache.flink.api.common.externalresource.ExternalResourceInfo;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.operators.testutils.MockEnvironment;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/**
 * Operators whose device an external resource of Flink's names. A MiniCluster has no such
 * resources; the tests of the cluster run a driver in a TaskManager.
 */
class ExternalDeviceTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Job job = OperatorHarness.JOB;

  /** A device with one property. */
  private record Device(String key, String value) implements ExternalResourceInfo {
    @Override
    public Optional<String> getProperty(String name) {
      return name.equals(key) ? Optional.of(value) : Optional.empty();
    }

    @Override
    public Collection<String> getKeys() {
      return List.of(key);
    }
  }

  private static Configuration options() {
    return new Configuration().set(PagedAttentionOptions.DEVICE_RESOURCE, "gpu");
  }

  /** A subtask on a TaskManager whose resource gpu is {@code devices}. */
  private OperatorHarness harness(Configuration options, Device... devices) throws Exception {
    MockEnvironment environment =
        OperatorHarness.environment()
            .setExternalResourceInfoProvider(
                name -> name.equals("gpu") ? Set.of(devices) : Set.of())
            .build();
    return new OperatorHarness(job, options, 1, environment);
  }

  private static int device(OperatorHarness harness) {
    return ((PagedAttentionOperator) harness.getOneInputOperator()).config().device();
  }

  @Test
  void theIndexOfTheResourceReachesTheBackend() throws Exception {
    try (OperatorHarness harness = harness(options(), new Device("index", "3"))) {
      harness.open();
      assertThat(device(harness)).isEqualTo(3);
    }
  }

  @Test
  void operatorsShareTheDevicesEvenly() throws Exception {
    Device[] devices = {new Device("index", "5"), new Device("index", "2")};
    List<OperatorHarness> open = new ArrayList<>();
    for (int i = 0; i < 4; i++) {
      open.add(harness(options(), devices));
      open.get(i).open();
    }
    assertThat(open).extracting(ExternalDeviceTest::device).containsExactly(2, 5, 2, 5);
    open.remove(3).close();
    open.add(harness(options(), devices));
    open.get(3).open();
    assertThat(device(open.get(3))).as("the one that became free").isEqualTo(5);
    for (OperatorHarness harness : open) {
      harness.close();
    }
  }

  @Test
  void withoutTheKeyTheOptionCounts() throws Exception {
    Configuration options = new Configuration().set(PagedAttentionOptions.DEVICE, 1);
    try (OperatorHarness harness = harness(options, new Device("index", "3"))) {
      harness.open();
      assertThat(device(harness)).isEqualTo(1);
    }
  }

  private void expectFailure(String message, Device... devices) throws Exception {
    OperatorHarness harness = harness(options(), devices);
    assertThatThrownBy(harness::open)
        .isInstanceOf(IllegalStateException.class)
        .hasMessageStartingWith("broadhead.device-resource: external resource gpu: expected ")
        .hasMessageContaining(message);
    harness.close();
  }

  @Test
  void aTaskManagerWithoutADeviceIsTold() throws Exception {
    expectFailure("got none; Flink's configuration needs external-resources");
  }

  @Test
  void aDeviceWithoutAnIndexIsTold() throws Exception {
    expectFailure("got no such property among [uuid]", new Device("uuid", "GPU-7"));
    expectFailure("to be the index of a device, got 4294967295", new Device("index", "4294967295"));
  }

  /** As it does with an index that it does not have. */
  @Test
  void whatABackendSaysIsToldWithTheOriginOfTheIndex() throws Exception {
    Configuration options = options().set(PagedAttentionOptions.THREADS, 1 << 20);
    OperatorHarness harness = harness(options, new Device("index", "7"));
    assertThatThrownBy(harness::open)
        .isInstanceOf(KernelException.class)
        .hasMessageStartingWith("device 7 of external resource gpu: ")
        .hasMessageContaining("threads");
    harness.close();
  }
}

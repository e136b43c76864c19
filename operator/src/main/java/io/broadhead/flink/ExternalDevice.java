// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import java.util.Comparator;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.api.common.externalresource.ExternalResourceInfo;
import org.apache.flink.api.common.functions.RuntimeContext;

/**
 * The device of an operator where Flink's external resource framework says which ones a TaskManager
 * has. Flink gives all of them to every slot, so operators of one job and process take the one that
 * the fewest of them use. Its owner closes it.
 */
final class ExternalDevice implements AutoCloseable {
  /** The property that Flink's own GPU driver gives a device. */
  private static final String INDEX = "index";

  private static final Map<Integer, Integer> USERS = new HashMap<>();

  private final String resource;
  private final int index;
  private boolean closed;

  private ExternalDevice(String resource, int index) {
    this.resource = resource;
    this.index = index;
  }

  /**
   * Takes a device of {@code resource}.
   *
   * @throws IllegalStateException if the TaskManager has none, or one without an index
   */
  static ExternalDevice take(RuntimeContext context, String resource) {
    Set<Integer> indices = new TreeSet<>();
    for (ExternalResourceInfo info : context.getExternalResourceInfos(resource)) {
      indices.add(indexOf(info, resource));
    }
    if (indices.isEmpty()) {
      throw bad(
          resource,
          "a device of it on this TaskManager, got none; Flink's configuration needs external-resources, "
              + "external-resource."
              + resource
              + ".amount and external-resource."
              + resource
              + ".driver-factory.class");
    }
    synchronized (USERS) {
      int index =
          indices.stream().min(Comparator.comparing(i -> USERS.getOrDefault(i, 0))).orElseThrow();
      USERS.merge(index, 1, Integer::sum);
      return new ExternalDevice(resource, index);
    }
  }

  private static int indexOf(ExternalResourceInfo info, String resource) {
    String text = info.getProperty(INDEX).orElse("no such property among " + info.getKeys());
    if (!text.matches("[0-9]{1,9}")) {
      throw bad(resource, "property " + INDEX + " to be the index of a device, got " + text);
    }
    return Integer.parseInt(text);
  }

  private static IllegalStateException bad(String resource, String expected) {
    return new IllegalStateException(
        PagedAttentionOptions.DEVICE_RESOURCE.key()
            + ": external resource "
            + resource
            + ": expected "
            + expected);
  }

  int index() {
    return index;
  }

  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    synchronized (USERS) {
      USERS.computeIfPresent(index, (i, users) -> users > 1 ? users - 1 : null);
    }
  }

  @Override
  public String toString() {
    return "device " + index + " of external resource " + resource;
  }
}

// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepColumns;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import java.io.Serializable;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;

/**
 * Which results share a file. An Arrow IPC file has one schema, so a job whose layers have results
 * of different shapes has one group a layer; what else changes the schema (element type, columns
 * that pass through) starts a further group, which sorts behind the ones before it, with {@code
 * .arrow} behind the name and without. Everything is in one group otherwise.
 *
 * <p>Used by one thread; serializable without the groups seen so far.
 */
public final class ResultLayout implements Serializable {
  private static final long serialVersionUID = 1L;

  /** Names of layers that would be those of other groups, or of the file without a layer. */
  private static final Pattern TAKEN = Pattern.compile("(.*_)?schema-\\d{2,}|results");

  private final boolean byLayer;
  private transient Map<String, List<BatchSchema>> schemas;

  private ResultLayout(boolean byLayer) {
    this.byLayer = byLayer;
  }

  /** The layout of the results of {@code job}. */
  public static ResultLayout of(Job job) {
    return new ResultLayout(job.layers().stream().map(ResultLayout::shape).distinct().count() > 1);
  }

  /** The layout of results of unknown layers: what has one schema shares a file. */
  public static ResultLayout bySchema() {
    return new ResultLayout(false);
  }

  private static List<Object> shape(LayerSpec layer) {
    return List.of(layer.numHeads(), layer.headSize(), layer.outputScale() > 0, layer.returnLse());
  }

  /**
   * The group of {@code result}: empty for the only one, else a name that is good for a file or
   * folder on every system.
   */
  public String groupOf(ArrowBatch result) {
    String layer = byLayer ? layerOf(result) : "";
    if (schemas == null) {
      schemas = new HashMap<>();
    }
    List<BatchSchema> seen = schemas.computeIfAbsent(layer, name -> new ArrayList<>());
    int index = seen.indexOf(result.schema());
    if (index < 0) {
      index = seen.size();
      seen.add(result.schema());
    }
    if (index == 0) {
      return layer;
    }
    return (layer.isEmpty() ? "" : layer + "_") + String.format("schema-%02d", index + 1);
  }

  private static String layerOf(ArrowBatch result) {
    if (result.numRows() == 0 || !result.schema().contains(StepColumns.LAYER)) {
      return "";
    }
    String name = result.column(StepColumns.LAYER).getString(0);
    int escaped = TAKEN.matcher(name).matches() ? name.length() - 1 : -1;
    StringBuilder safe = new StringBuilder();
    for (int i = 0; i < name.length(); i++) {
      char c = name.charAt(i);
      boolean plain = c < 128 && (Character.isLetterOrDigit(c) || c == '_' || c == '-');
      boolean dot = c == '.' && i > 0;
      safe.append(
          (plain || dot) && i != escaped ? String.valueOf(c) : String.format("%%%04x", (int) c));
    }
    return safe.toString();
  }
}

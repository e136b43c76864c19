// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import io.broadhead.attention.RefusedRow;
import io.broadhead.job.text.Json;
import java.util.LinkedHashMap;
import java.util.Map;

/** Refused rows as JSON lines. */
public final class RefusedRows {
  private RefusedRows() {}

  /** A row of a batch whose origin is not known. */
  public static String json(RefusedRow row) {
    return Json.of(map(row));
  }

  /** A row of batch {@code batch} of {@code file}. */
  public static String json(String file, long batch, RefusedRow row) {
    Map<String, Object> origin = new LinkedHashMap<>();
    origin.put("file", file);
    origin.put("batch", batch);
    origin.putAll(map(row));
    return Json.of(origin);
  }

  private static Map<String, Object> map(RefusedRow row) {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("row", row.row());
    map.put("layer", row.layer());
    map.put("sequence_id", row.sequenceId());
    map.put("code", row.code());
    map.put("message", row.message());
    return map;
  }
}

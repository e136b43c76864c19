// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.util.Set;

/** The columns that the step format names, in step batches and in result batches. */
public final class StepColumns {
  public static final String SEQUENCE_ID = "sequence_id";
  public static final String LAYER = "layer";
  public static final String QUERY = "query";
  public static final String KEY = "key";
  public static final String VALUE = "value";
  public static final String SEQ_LEN = "seq_len";
  public static final String SLOT_MAPPING = "slot_mapping";
  public static final String BLOCK_TABLE = "block_table";
  public static final String POSITION = "position";
  public static final String END_OF_SEQUENCE = "end_of_sequence";
  public static final String PARENT_SEQUENCE_ID = "parent_sequence_id";
  public static final String TOKEN_IDS = "token_ids";
  public static final String SEQUENCE_GROUP = "sequence_group";

  /** Result: attention output. */
  public static final String OUTPUT = "output";

  /** Result: natural log of the softmax denominator. */
  public static final String LSE = "lse";

  /** Every column of a step batch that the format gives a meaning to. */
  public static final Set<String> STEP =
      Set.of(
          SEQUENCE_ID,
          LAYER,
          QUERY,
          KEY,
          VALUE,
          SEQ_LEN,
          SLOT_MAPPING,
          BLOCK_TABLE,
          POSITION,
          END_OF_SEQUENCE,
          PARENT_SEQUENCE_ID,
          TOKEN_IDS,
          SEQUENCE_GROUP);

  private StepColumns() {}
}

// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;
import org.snakeyaml.engine.v2.api.LoadSettings;
import org.snakeyaml.engine.v2.api.lowlevel.Compose;
import org.snakeyaml.engine.v2.exceptions.Mark;
import org.snakeyaml.engine.v2.exceptions.MarkedYamlEngineException;
import org.snakeyaml.engine.v2.exceptions.YamlEngineException;
import org.snakeyaml.engine.v2.nodes.Node;
import org.snakeyaml.engine.v2.schema.CoreSchema;

/**
 * Reads job files (YAML 1.2): {@link JobFileKey} lists their keys. Every problem ends in an {@link
 * InvalidJobException} that names file, line, column, key, what is accepted and what was found.
 */
public final class JobFile {
  private final String file;
  private final Map<String, Mark> marks = new HashMap<>();

  private JobFile(String file) {
    this.file = file;
  }

  /**
   * Reads and checks a job file.
   *
   * @throws InvalidJobException if it is no valid job
   * @throws IOException if it cannot be read
   */
  public static Job load(Path path) throws IOException {
    try {
      return parse(Files.readString(path), path.toString());
    } catch (CharacterCodingException e) {
      throw new InvalidJobException("", "expected text in UTF-8, got other bytes")
          .at(path.toString());
    }
  }

  /**
   * Checks a job file's text.
   *
   * @param name what messages call the file
   * @throws InvalidJobException if it is no valid job
   */
  public static Job parse(String text, String name) {
    JobFile file = new JobFile(name);
    try {
      return file.job(file.compose(text));
    } catch (MarkedYamlEngineException e) {
      throw new InvalidJobException("", String.valueOf(e.getProblem()))
          .at(file.place(e.getProblemMark().or(e::getContextMark)));
    } catch (YamlEngineException e) {
      throw new InvalidJobException("", String.valueOf(e.getMessage())).at(name);
    } catch (StackOverflowError e) {
      throw new InvalidJobException("", "lists or mappings are nested too deep").at(name);
    } catch (InvalidJobException e) {
      throw e.at(file.place(file.markOf(e.key())));
    }
  }

  private Node compose(String text) {
    LoadSettings settings =
        LoadSettings.builder().setLabel(file).setUseMarks(true).setSchema(new CoreSchema()).build();
    Iterator<Node> documents = new Compose(settings).composeAllFromString(text).iterator();
    if (!documents.hasNext()) {
      throw InvalidJobException.expected("", known(JobFileKey.Section.JOB), "an empty file");
    }
    Node root = documents.next();
    if (documents.hasNext()) {
      marks.put("", documents.next().getStartMark().orElse(null));
      throw InvalidJobException.expected("", "one YAML document", "a second one");
    }
    return root;
  }

  private Job job(Node root) {
    YamlMapping job = YamlMapping.of(root, JobFileKey.Section.JOB, "", marks);
    KvCacheSpec kvCache =
        job.mapping(JobFileKey.KV_CACHE, JobFileKey.Section.KV_CACHE)
            .map(this::kvCache)
            .orElseGet(() -> new KvCacheSpec(KvCacheSpec.DEFAULT_BLOCK_SIZE, 0, null));
    List<LayerSpec> layers = new ArrayList<>();
    for (YamlMapping layer : job.mappings(JobFileKey.LAYERS, JobFileKey.Section.LAYER)) {
      layers.add(layer(layer));
    }
    return new Job(kvCache, layers);
  }

  private KvCacheSpec kvCache(YamlMapping map) {
    int blockSize =
        map.integer(JobFileKey.BLOCK_SIZE, 1, Integer.MAX_VALUE)
            .map(Long::intValue)
            .orElse(KvCacheSpec.DEFAULT_BLOCK_SIZE);
    long numBlocks = map.integer(JobFileKey.NUM_BLOCKS, 1, KvCacheSpec.MAX_BLOCKS).orElse(0L);
    float memoryFraction = map.positive(JobFileKey.MEMORY_FRACTION).orElse(0f);
    KvCacheDtype dtype =
        map.text(JobFileKey.DTYPE).map(t -> dtype(map, JobFileKey.DTYPE, t)).orElse(null);
    return map.within(() -> new KvCacheSpec(blockSize, numBlocks, memoryFraction, dtype));
  }

  private LayerSpec layer(YamlMapping map) {
    String name = map.required(JobFileKey.NAME, map.text(JobFileKey.NAME));
    int numHeads = map.required(JobFileKey.NUM_HEADS, count(map, JobFileKey.NUM_HEADS));
    int headSize = map.required(JobFileKey.HEAD_SIZE, count(map, JobFileKey.HEAD_SIZE));
    LayerSpec.Builder layer = LayerSpec.builder(name, numHeads, headSize);
    count(map, JobFileKey.NUM_KV_HEADS).ifPresent(layer::numKvHeads);
    map.number(JobFileKey.SCALE).ifPresent(v -> layer.scale(v.floatValue()));
    map.text(JobFileKey.ATTN_TYPE)
        .ifPresent(
            t ->
                layer.attnType(
                    AttnType.parse(t).orElseThrow(() -> map.unaccepted(JobFileKey.ATTN_TYPE, t))));
    map.integer(JobFileKey.SLIDING_WINDOW, 1, Long.MAX_VALUE).ifPresent(layer::slidingWindow);
    map.number(JobFileKey.LOGITS_SOFT_CAP).ifPresent(v -> layer.logitsSoftCap(v.floatValue()));
    map.numbers(JobFileKey.ALIBI_SLOPES, numHeads).ifPresent(layer::alibiSlopes);
    map.numbers(JobFileKey.SINKS, numHeads).ifPresent(layer::sinks);
    map.text(JobFileKey.KV_CACHE_DTYPE)
        .ifPresent(t -> layer.kvCacheDtype(dtype(map, JobFileKey.KV_CACHE_DTYPE, t)));
    map.positive(JobFileKey.K_SCALE).ifPresent(layer::kScale);
    map.positive(JobFileKey.V_SCALE).ifPresent(layer::vScale);
    map.positive(JobFileKey.OUTPUT_SCALE).ifPresent(layer::outputScale);
    map.text(JobFileKey.KV_SHARING_TARGET_LAYER_NAME).ifPresent(layer::kvSharingTargetLayerName);
    map.mapping(JobFileKey.ROPE, JobFileKey.Section.ROPE).ifPresent(rope -> layer.rope(rope(rope)));
    map.bool(JobFileKey.RETURN_LSE).ifPresent(layer::returnLse);
    return map.within(layer::build);
  }

  private RopeSpec rope(YamlMapping map) {
    int rotaryDim = map.required(JobFileKey.ROTARY_DIM, count(map, JobFileKey.ROTARY_DIM));
    int maxPosition = map.required(JobFileKey.MAX_POSITION, count(map, JobFileKey.MAX_POSITION));
    double base = map.number(JobFileKey.BASE).orElse(RopeSpec.DEFAULT_BASE);
    boolean isNeox = map.bool(JobFileKey.IS_NEOX).orElse(true);
    RopeScaling scaling =
        map.mapping(JobFileKey.ROPE_SCALING, JobFileKey.Section.ROPE_SCALING)
            .map(this::ropeScaling)
            .orElse(RopeScaling.NONE);
    return map.within(() -> new RopeSpec(rotaryDim, maxPosition, base, isNeox, scaling));
  }

  private RopeScaling ropeScaling(YamlMapping map) {
    String name = map.required(JobFileKey.ROPE_TYPE, map.text(JobFileKey.ROPE_TYPE));
    RopeScaling.Type type =
        RopeScaling.Type.parse(name).orElseThrow(() -> map.unaccepted(JobFileKey.ROPE_TYPE, name));
    for (JobFileKey key : JobFileKey.Section.ROPE_SCALING.keys()) {
      if (map.has(key) && !type.uses(key)) {
        throw new InvalidJobException(
            map.path(key), "expected no such key, because rope_type " + name + " does not use it");
      }
    }
    Optional<Double> given = map.number(JobFileKey.FACTOR);
    double factor =
        type == RopeScaling.Type.DEFAULT
            ? given.orElse(1.0)
            : map.required(JobFileKey.FACTOR, given);
    Optional<Integer> context = count(map, JobFileKey.ORIGINAL_MAX_POSITION_EMBEDDINGS);
    int originalMaxPosition =
        type.needsOriginalContext()
            ? map.required(JobFileKey.ORIGINAL_MAX_POSITION_EMBEDDINGS, context)
            : context.orElse(0);
    Optional<Float> mscale = map.positive(JobFileKey.MSCALE);
    Optional<Float> mscaleAllDim = map.positive(JobFileKey.MSCALE_ALL_DIM);
    if (mscale.isPresent()) {
      map.required(JobFileKey.MSCALE_ALL_DIM, mscaleAllDim);
    } else if (mscaleAllDim.isPresent()) {
      map.required(JobFileKey.MSCALE, mscale);
    }
    double temperature = 1;
    if (type == RopeScaling.Type.YARN) {
      temperature =
          mscale.isPresent()
              ? RopeScaling.yarnTemperature(factor, mscale.get())
                  / RopeScaling.yarnTemperature(factor, mscaleAllDim.get())
              : RopeScaling.yarnTemperature(factor, 1);
    }
    double attentionFactor = map.number(JobFileKey.ATTENTION_FACTOR).orElse(temperature);
    double lowFreqFactor = map.number(JobFileKey.LOW_FREQ_FACTOR).orElse(1.0);
    double highFreqFactor = map.number(JobFileKey.HIGH_FREQ_FACTOR).orElse(4.0);
    double betaFast = map.number(JobFileKey.BETA_FAST).orElse(RopeScaling.DEFAULT_BETA_FAST);
    double betaSlow = map.number(JobFileKey.BETA_SLOW).orElse(RopeScaling.DEFAULT_BETA_SLOW);
    boolean truncate = map.bool(JobFileKey.TRUNCATE).orElse(true);
    return map.within(
        () ->
            new RopeScaling(
                type,
                factor,
                originalMaxPosition,
                lowFreqFactor,
                highFreqFactor,
                betaFast,
                betaSlow,
                truncate,
                attentionFactor));
  }

  private static Optional<Integer> count(YamlMapping map, JobFileKey key) {
    return map.integer(key, 1, Integer.MAX_VALUE).map(Long::intValue);
  }

  private static KvCacheDtype dtype(YamlMapping map, JobFileKey key, String text) {
    return KvCacheDtype.parse(text)
        .orElseThrow(
            () ->
                InvalidJobException.expected(
                    map.path(key), JobFileKey.KV_CACHE_DTYPE.accepted(), "'" + text + "'"));
  }

  /** The mark of the key, or of the nearest mapping around it. */
  private Optional<Mark> markOf(String key) {
    for (String path = key; ; path = path.substring(0, Math.max(0, cut(path)))) {
      Mark mark = marks.get(path);
      if (mark != null || path.isEmpty()) {
        return Optional.ofNullable(mark);
      }
    }
  }

  private static int cut(String path) {
    return Math.max(path.lastIndexOf('.'), path.lastIndexOf('['));
  }

  private String place(Optional<Mark> mark) {
    return mark.map(m -> file + ":" + (m.getLine() + 1) + ":" + (m.getColumn() + 1)).orElse(file);
  }

  static String known(JobFileKey.Section section) {
    return section.keys().stream()
        .map(JobFileKey::key)
        .collect(Collectors.joining(", ", "a mapping with the keys ", ""));
  }
}

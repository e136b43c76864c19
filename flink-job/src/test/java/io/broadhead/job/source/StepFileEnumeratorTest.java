// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.StepInput;
import io.broadhead.job.Steps;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.core.fs.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class StepFileEnumeratorTest {
  @TempDir java.nio.file.Path temp;

  private static Path flink(java.nio.file.Path path) {
    return new Path(path.toUri());
  }

  private static Collection<FileSourceSplit> splits(java.nio.file.Path path, long bytes)
      throws IOException {
    return new StepFileEnumerator(bytes).enumerateSplits(new Path[] {flink(path)}, 1);
  }

  @Test
  void takesTheSameFilesInTheSameOrderAsStepInput() throws IOException {
    for (String name : List.of("b.arrow", "a.arrow", ".hidden", "_side", "c.arrow.tmp-1", "a-2")) {
      Files.writeString(temp.resolve(name), name);
    }
    Files.createDirectory(temp.resolve("folder"));

    assertThat(splits(temp, Long.MAX_VALUE))
        .extracting(split -> java.nio.file.Path.of(split.path().getPath()))
        .containsExactlyElementsOf(StepInput.files(temp))
        .containsExactly(temp.resolve("a-2"), temp.resolve("a.arrow"), temp.resolve("b.arrow"));
  }

  @Test
  void cutsFilesButNotStreams() throws IOException {
    Steps steps = Steps.small(1);
    java.nio.file.Path file = steps.writeFile(temp.resolve("steps.arrow"));
    java.nio.file.Path stream = steps.writeStream(temp.resolve("steps.arrows"));
    long size = Files.size(file);

    List<FileSourceSplit> ofFile = new ArrayList<>(splits(file, 10_000));
    assertThat(ofFile).hasSize((int) ((size + 9_999) / 10_000));
    long end = 0;
    for (FileSourceSplit split : ofFile) {
      assertThat(split.offset()).isEqualTo(end);
      end += split.length();
    }
    assertThat(end).isEqualTo(size);
    assertThat(ofFile).extracting(FileSourceSplit::splitId).doesNotHaveDuplicates();

    assertThat(splits(stream, 10_000))
        .singleElement()
        .satisfies(split -> assertThat(split.length()).isEqualTo(Files.size(stream)));
  }

  @Test
  void anEmptyFileIsASplitSoThatItIsNoticed() throws IOException {
    java.nio.file.Path empty = Files.createFile(temp.resolve("empty"));

    assertThat(splits(empty, 10)).hasSize(1);
  }

  @Test
  void failsWhereNothingIs() {
    assertThatThrownBy(() -> splits(temp.resolve("nothing"), 10))
        .isInstanceOf(FileNotFoundException.class)
        .hasMessageContaining("nothing");
  }

  @Test
  void splitsAreHandedOutByPathAndOffset() throws IOException {
    Steps steps = Steps.small(2);
    steps.writeFile(temp.resolve("b.arrow"));
    steps.writeFile(temp.resolve("a.arrow"));
    List<FileSourceSplit> inOrder = new ArrayList<>(splits(temp, 10_000));
    List<FileSourceSplit> shuffled = new ArrayList<>(inOrder);
    Collections.reverse(shuffled);
    OrderedSplitAssigner assigner = new OrderedSplitAssigner(shuffled);

    FileSourceSplit first = assigner.getNext(null).orElseThrow();
    assertThat(first).isSameAs(inOrder.get(0));
    assertThat(assigner.getNext(null)).containsSame(inOrder.get(1));
    assigner.addSplits(List.of(first));
    assertThat(assigner.remainingSplits()).hasSize(inOrder.size() - 1);

    List<FileSourceSplit> rest = new ArrayList<>();
    for (Optional<FileSourceSplit> next = assigner.getNext(null);
        next.isPresent();
        next = assigner.getNext(null)) {
      rest.add(next.get());
    }
    List<FileSourceSplit> expected = new ArrayList<>(inOrder);
    expected.remove(1);
    assertThat(rest).containsExactlyElementsOf(expected);
  }
}

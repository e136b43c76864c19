// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.job.sink.ResultFileSink;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OutputFolderTest {
  private static final String KIND = ResultFileSink.RESULTS;

  @TempDir Path temp;

  private Path folder;
  private Path older;
  private Path committed;
  private Path hidden;
  private Path hiddenBelow;
  private String since;

  @BeforeEach
  void files() throws IOException {
    folder = Files.createDirectory(temp.resolve("results"));
    Path layer = Files.createDirectory(folder.resolve("layer"));
    older = part(folder, "", ".arrow");
    since = ResultFileSink.namesFromNowOn(KIND);
    committed = part(folder, "", ".arrow");
    hidden = part(folder, ".", ".arrow.inprogress.1");
    hiddenBelow = part(layer, ".", ".arrow.inprogress.2");
  }

  private static Path part(Path folder, String before, String behind) throws IOException {
    String name = ResultFileSink.namesFromNowOn(KIND) + "-id-0";
    return Files.createFile(folder.resolve(before + name + behind));
  }

  @Test
  void whatCheckpointsCommittedStays() throws IOException {
    OutputFolder.removeParts(folder, KIND, since, false, true);

    assertThat(older).exists();
    assertThat(committed).exists();
    assertThat(hidden).doesNotExist();
    assertThat(hiddenBelow.getParent()).doesNotExist();
  }

  @Test
  void anOlderRunsResultsAlwaysStay() throws IOException {
    OutputFolder.removeParts(folder, KIND, since, true, true);

    assertThat(folder).isDirectoryContaining(older::equals);
    assertThat(committed).doesNotExist();
    assertThat(hidden).doesNotExist();
  }

  @Test
  void anEmptyFolderOfItsOwnGoes() throws IOException {
    Files.delete(older);

    OutputFolder.removeParts(folder, KIND, since, true, true);

    assertThat(folder).doesNotExist();
  }
}

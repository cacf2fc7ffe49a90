"""A reader finds a whole file or none, whatever stops the writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline.errors import RunFolderError
from pipeline.files import replacing


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "cannot write .*: No space left on device"),
        (SafetensorError("I/O error: No space left on device"), "cannot write .*No space left on device"),
    ],
)
def test_what_could_not_be_written_leaves_what_stood_there(tmp_path: Path, error: Exception, said: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def stop_half_way() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(RunFolderError, match=said):
        stop_half_way()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]

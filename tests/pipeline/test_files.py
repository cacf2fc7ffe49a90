"""A reader finds a whole file or none, whatever stops the writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline.errors import RunFolderError
from pipeline.files import read_json, replacing


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "cannot read .*; run the audit again"),
        (b"\xff\xfe", "cannot read .*; run the audit again"),
        (b"[" * 100_000, "cannot read .*; run the audit again"),
        (b"[]", "is not what fixaudit wrote: it has no schema, config"),
        (b'{"schema": 5}', "is not what fixaudit wrote: it has no config"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(RunFolderError, match=said) as caught:
        read_json(path, ("schema", "config"))
    assert "\n" not in str(caught.value)
    path.write_text('{"schema": 5, "config": {}}')
    assert read_json(path, ("schema", "config")) == {"schema": 5, "config": {}}

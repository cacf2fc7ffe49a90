"""Captured networks kept in files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.models import graphcache
from pipeline.models.graphcache import GraphCache, default_folder


def test_texts_come_back(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "deep" / "down")
    assert "a" not in cache
    assert len(cache) == 0
    cache["a"] = "ü\n"
    assert cache["a"] == "ü\n"
    assert list(cache) == ["a"]
    del cache["a"]
    with pytest.raises(KeyError):
        cache["a"]
    with pytest.raises(KeyError):
        del cache["a"]


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphcache, "_FILES", 3)
    cache = GraphCache(tmp_path)
    for age, key in enumerate("abcde"):
        cache[key] = key
        os.utime(tmp_path / f"{key}.json", (age, age))
    assert set(cache) == {"c", "d", "e"}


def test_a_folder_that_cannot_be_made_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = GraphCache(tmp_path / "file" / "below")
    cache["a"] = "text"
    assert "a" not in cache


def test_bytes_that_are_no_text_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\xff")
    assert "a" not in GraphCache(tmp_path)


def test_the_users_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fixaudit" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "fixaudit" / "graphs"


def test_users_without_a_home_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    cache = GraphCache(default_folder())
    cache["a"] = "text"
    assert "a" not in cache
    assert list(cache) == []

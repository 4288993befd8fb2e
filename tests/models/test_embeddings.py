"""Word vectors from files as they are found in the wild."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from fastserve.errors import ConfigError, DataError
from fastserve.models import NetworkShape, build
from fastserve.models.embeddings import load_embeddings, read_embeddings

VOCABULARY = ["<pad>", "<unk>", "好", "cat", ". . .", "unseen"]
LINES = "好 1 2 3\ncat 4 5 6\ndog 7 8 9\n. . . 0.5 0 -1e-3\ncat 9 9 9\n"
EXPECTED = np.array([[0, 0, 0], [0, 0, 0], [1, 2, 3], [4, 5, 6], [0.5, 0, -1e-3], [0, 0, 0]], np.float32)


@pytest.mark.parametrize("header", ["", "5 3\n"])
@pytest.mark.parametrize("suffix", [".vec", ".txt.gz"])
def test_vectors_are_found_by_word(tmp_path: Path, header: str, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    content = (header + LINES).encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    vectors, is_found, coverage = read_embeddings(path, VOCABULARY)
    np.testing.assert_array_equal(vectors, EXPECTED)
    np.testing.assert_array_equal(is_found, [False, False, True, True, True, False])
    assert str(coverage) == "3 of 6 words (50.0%) have pretrained vectors"


@pytest.mark.parametrize("name", ["mlp", "textcnn", "lstm"])
def test_they_become_the_networks_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text(LINES, "utf-8")
    network = build(name, {"dim": 3}, NetworkShape({"tokens": len(VOCABULARY)}, 2))
    coverage = load_embeddings(network, path, VOCABULARY)
    table = network.get_parameter("embedding")
    assert coverage.found == 3
    torch.testing.assert_close(table[2:5].detach(), torch.from_numpy(EXPECTED[2:5]))
    assert table.requires_grad
    assert table[5].abs().sum() > 0


def test_few_bad_lines_are_skipped_and_numbered(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    lines = [f"word{i} 1 2 3" for i in range(300)]
    lines[41], lines[99] = "word41 1 2", "word99 1 x 3"
    path.write_text("\n".join(lines), "utf-8")
    _, is_found, coverage = read_embeddings(path, ["word0", "word99", "word41"])
    assert coverage.bad_lines == (42, 100)
    assert is_found.tolist() == [True, False, False]


def test_many_bad_lines_are_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text("a 1 2 3\nb 1 2\nc 1 nan 3\n", "utf-8")
    with pytest.raises(DataError, match=r"2 of 3 lines .* \(lines 2, 3\)"):
        read_embeddings(path, ["a", "c"])


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02\n", b"only words here\n"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vectors.vec"
    path.write_bytes(content)
    with pytest.raises(DataError, match="line 1: expected a word and its numbers"):
        read_embeddings(path, ["a"])


def test_a_cut_off_gz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(DataError, match=r"not a whole \.gz"):
        read_embeddings(path, VOCABULARY)


def test_another_dimension_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text(LINES, "utf-8")
    network = build("mlp", {"dim": 8}, NetworkShape({"tokens": 6}, 2))
    with pytest.raises(ConfigError, match=r"set model\.options\.dim=3"):
        load_embeddings(network, path, VOCABULARY)


def test_words_of_another_language_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text(LINES, "utf-8")
    with pytest.raises(DataError, match="none of the 1 words"):
        read_embeddings(path, ["chien"])


def test_a_network_without_words_is_refused(tmp_path: Path) -> None:
    network = build("bag", {}, NetworkShape({"ngrams": 6}, 2))
    with pytest.raises(ConfigError, match="Bag has no table of words"):
        load_embeddings(network, tmp_path / "vectors.vec", VOCABULARY)
    with pytest.raises(ConfigError, match="there is no file"):
        read_embeddings(tmp_path / "none.vec", VOCABULARY)

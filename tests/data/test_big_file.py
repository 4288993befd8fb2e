"""The benchmark of a large file: its memory counts all processes, and its file is one that can be learned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import big_file
import tree_memory
from fastserve.data.dataset import open_dataset

MIB = 1 << 20

ALLOCATE = """
import subprocess, sys, mmap
size, depth = int(sys.argv[1]), int(sys.argv[2])
block = bytearray(size)
file = open(sys.argv[3], "rb")
pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
seen = pages[::4096]
if depth:
    subprocess.run([sys.executable, "-c", sys.argv[4], *map(str, [size, depth - 1]), *sys.argv[3:]], check=True)
else:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_own_memory_adds_up_over_a_tree_and_a_mapped_file_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(40 * MIB))
    command = [sys.executable, "-c", ALLOCATE, str(30 * MIB), "1", str(file), ALLOCATE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with tree_memory.Peak(process.pid, seconds=0.01) as peak:
            alone, tree = tree_memory.of_process(process.pid), tree_memory.of_tree(process.pid)
            time.sleep(0.2)
        process.communicate()
    assert 30 * MIB <= alone.anonymous < 60 * MIB
    assert 60 * MIB <= tree.anonymous < 100 * MIB
    assert 40 * MIB <= tree.mapped < 70 * MIB
    assert peak.anonymous >= tree.anonymous - MIB
    assert tree_memory.of_tree(process.pid) == tree_memory.Memory()


def test_the_file_has_its_rows_and_two_labels_that_the_words_decide(tmp_path: Path) -> None:
    rows = big_file.make_file(tmp_path / "big.tsv", MIB)
    assert (tmp_path / "big.tsv").stat().st_size >= MIB
    dataset = open_dataset(str(tmp_path / "big.tsv"))
    examples = list(dataset)
    assert (len(examples), dataset.bad_rows.total) == (rows, 0)
    liked = set(big_file._WORDS.split()[::3])
    for example in examples[:200]:
        number, *words = example.text.split()
        assert int(number) == example.row - 2
        assert example.labels == (str(int(3 * sum(word in liked for word in words) > len(words))),)

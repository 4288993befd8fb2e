"""The whole job beside scikit-learn: from a file of labelled texts to a judged model, seconds and accuracy in one run.

    python benchmarks/train_classifier.py TRAIN.tsv TEST.tsv [--networks bag auto] [--rounds 3]

Each side is a command of its own, timed from its start to its end, and the sides take turns. scikit-learn: TF-IDF of
characters 1 to 3 with a LinearSVC, as a person would write it (`--words` adds rjieba's words 1 to 2 beside them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCIKIT_LEARN = """
import csv, gzip, sys

def read(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [row["label"] for row in rows]

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

train, test, words = sys.argv[1], sys.argv[2], sys.argv[3] == "words"
texts, labels = read(train)
vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
if words:
    import rjieba
    vectors = make_union(vectors, TfidfVectorizer(tokenizer=rjieba.cut, token_pattern=None, ngram_range=(1, 2),
                                                  min_df=2, sublinear_tf=True))
model = make_pipeline(vectors, LinearSVC(C=0.2 if words else 0.5))
model.fit(texts, labels)
texts, labels = read(test)
print(model.score(texts, labels))
"""


def scikit_learn(train: str, test: str, *, words: bool) -> float:
    """Accuracy on the test file."""
    command = [sys.executable, "-c", SCIKIT_LEARN, train, test, "words" if words else "characters"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def fastserve(train: str, test: str, *, network: str) -> float:
    """Accuracy on the test file of a registered, evaluated model."""
    with tempfile.TemporaryDirectory() as home:
        words = ["train", "--data", train, "--test", test, "--task", "classification", "--name", "model", "--json"]
        found = subprocess.run(
            [sys.executable, "-m", "fastserve", *words, "--network", network],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "FASTSERVE_HOME": home},
        )
    return float(json.loads(found.stdout.splitlines()[-1])["metrics"]["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--networks", nargs="+", default=["bag", "auto"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", action="store_true", help="also the stronger scikit-learn model, with words")
    parser.add_argument("--rows", type=int, help="only the first rows of the training file")
    options = parser.parse_args()
    train = _head(options.train, options.rows) if options.rows else options.train
    sides = {"scikit-learn characters": lambda: scikit_learn(train, options.test, words=False)}
    if options.words:
        sides["scikit-learn with words"] = lambda: scikit_learn(train, options.test, words=True)
    for network in options.networks:
        sides[f"fastserve {network}"] = lambda network=network: fastserve(train, options.test, network=network)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    accuracy: dict[str, float] = {}
    for turn in range(options.rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            accuracy[name] = run()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {turn + 1}: {name}: {seconds[name][-1]:.1f} s, accuracy {accuracy[name]:.4f}", flush=True)
    base = statistics.median(seconds["scikit-learn characters"])
    print(f"\n{'':28} {'seconds':>8} {'times faster':>13} {'accuracy':>9}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28} {median:8.1f} {base / median:13.2f} {accuracy[name]:9.4f}")


def _head(path: str, rows: int) -> str:
    import gzip

    target = Path(tempfile.mkdtemp()) / "head.tsv"
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as source:
        target.write_text("".join(line for _, line in zip(range(rows + 1), source, strict=False)), "utf-8")
    return str(target)


if __name__ == "__main__":
    main()

"""How fast raw text becomes numbers, against jieba's segmentation alone in one process.

    python benchmarks/prepare.py [FILE.tsv[.gz]] [--rows 20000] [--rounds 3]

Needs `pip install jieba`. Contestants take turns on the same texts, and medians are compared, since machines are noisy.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastserve.config import TextConfig
from fastserve.text import TextPipeline
from fastserve.text.segment import cut_all, make_segmenter
from fastserve.types import TextPreferences

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "zh_sentiment_100k" / "train.tsv.gz"
BLOCK = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT, help="texts in the last column")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    texts = read(options.file, options.rows)
    print(f"{len(texts):,} texts of {sum(map(len, texts)) / len(texts):.0f} characters, {options.rounds} rounds")
    seconds = race(contestants(texts, options.workers), options.rounds)
    base, base_cpu = seconds["jieba, segmentation only"]
    print(f"{'':48s}{'seconds':>9s} {'texts/s':>10s} {'times jieba':>12s} {'CPU seconds':>12s} {'times jieba':>12s}")
    for name, (wall, cpu) in seconds.items():
        rate = len(texts) / wall
        print(f"{name:48s}{wall:9.3f} {rate:10,.0f} {base / wall:12.1f} {cpu:12.3f} {base_cpu / cpu:12.1f}")
    report_latency(texts)


def read(path: Path, rows: int) -> list[str]:
    """The last column, `rows` of it evenly spaced, without the header."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    texts = [line.rpartition("\t")[2] for line in content.decode("utf-8").splitlines()[1:]]
    return texts[:: max(1, len(texts) // rows)][:rows]


def contestants(texts: list[str], workers: int) -> dict[str, Callable[[], object]]:
    pipelines = {name: fitted(texts, name.split("+")) for name in ("ngrams", "tokens", "tokens+ngrams")}
    cleaner = pipelines["ngrams"].cleaner
    segmenter = make_segmenter("jieba", {})
    work: dict[str, Callable[[], object]] = {
        "jieba, segmentation only": lambda: segment_with_jieba(texts),
        "clean, one process": lambda: cleaner(texts),
        "segment, one process": lambda: [cut_all(segmenter, texts[at : at + 500]) for at in range(0, len(texts), 500)],
    }
    for name, pipeline in pipelines.items():
        for count in (1, workers):
            work[f"clean + segment + {name}, {count} process(es)"] = lambda p=pipeline, n=count: encode(p, texts, n)  # type: ignore[misc]
    return work


def fitted(texts: Sequence[str], encodings: Sequence[str]) -> TextPipeline:
    pipeline = TextPipeline.create(TextConfig(), encodings, preferences=TextPreferences())
    pipeline.fit(texts)
    return pipeline


def segment_with_jieba(texts: Sequence[str]) -> int:
    import jieba  # type: ignore[import-untyped]

    return sum(len(jieba.lcut(text)) for text in texts)


def encode(pipeline: TextPipeline, texts: Sequence[str], workers: int) -> int:
    blocks = (texts[at : at + BLOCK] for at in range(0, len(texts), BLOCK))
    return sum(len(next(iter(encoded.values()))) for encoded in pipeline.encode_blocks(blocks, workers=workers))


def race(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each, by the clock and of all processors, all of them once a round."""
    import jieba

    jieba.setLogLevel("ERROR")
    jieba.initialize()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start, cpu = time.perf_counter(), cpu_seconds()
            run()
            taken[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in both), statistics.median(cpu for _, cpu in both))
        for name, both in taken.items()
    }


def cpu_seconds() -> float:
    """Of this process and of its children that ended: tells the work apart from what else the machine does."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def report_latency(texts: Sequence[str]) -> None:
    """Microseconds for one text of 30 characters, as a server encodes it."""
    short = [text[:30] for text in texts[:2_000]]
    for encoding in ("tokens", "ngrams"):
        pipeline = fitted(texts, [encoding])
        best = min(_seconds_each(pipeline, short) for _ in range(5))
        print(f"one text of 30 characters at a time, {encoding}: {best * 1e6:.0f} microseconds")


def _seconds_each(pipeline: TextPipeline, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    for text in texts:
        pipeline.encode([text])
    return (time.perf_counter() - start) / len(texts)


if __name__ == "__main__":
    main()

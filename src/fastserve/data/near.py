"""Texts that are nearly the same: MinHash signatures cut in bands, every find verified by the real Jaccard index.

Broder, "On the resemblance and containment of documents" (1997); banding after Leskovec, Rajaraman and Ullman, "Mining
of Massive Datasets", chapter 3. With 12 bands of 4, a pair of similarity 0.8 is missed with a chance of 0.2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

SHINGLE = 4
"""Characters in a shingle."""
CUT = 512
"""Only so many characters of a text are compared."""
BANDS, BAND = 12, 4
MOST_PAIRS = 300_000
_SHORTEST = 8
_BLOCK = 1 << 17  # shingles worked on at a time: they stay in the processor's cache
_ESTIMATE_MARGIN = 0.2  # three standard deviations of an estimate from 48 values

Hashes = npt.NDArray[np.uint32]


def near_duplicates(forms: Sequence[str], threshold: float = 0.8) -> list[tuple[int, int, float]]:
    """(earlier, later, similarity): each text that nearly repeats an earlier one, with the one that it is most like.

    forms: different texts without white space (see `keys`). Texts under 8 characters are left out: a single letter
    decides there. At most MOST_PAIRS candidate pairs are verified.
    """
    usable = [index for index, form in enumerate(forms) if len(form) >= _SHORTEST]
    texts = [forms[index][:CUT] for index in usable]
    best: dict[int, tuple[float, int]] = {}
    for earlier, later in _candidates(signatures(texts), threshold - _ESTIMATE_MARGIN).tolist():
        similarity = jaccard(texts[earlier], texts[later])
        if similarity >= threshold and similarity > best.get(later, (0.0, 0))[0]:
            best[later] = (similarity, earlier)
    return [(usable[earlier], usable[later], similarity) for later, (similarity, earlier) in sorted(best.items())]


def jaccard(one: str, other: str) -> float:
    """Common shingles over all shingles of two texts."""
    first, second = _shingles(one), _shingles(other)
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


def signatures(texts: Sequence[str]) -> Hashes:
    """uint32 (texts, BANDS * BAND): for each of as many hash functions, the least hash of a text's shingles."""
    result = np.empty((len(texts), BANDS * BAND), np.uint32)
    generator = np.random.default_rng(0)
    mixers = generator.integers(0, 1 << 31, (BANDS * BAND, 2), np.uint32)
    done = 0
    for block in _blocks(texts):
        hashes, starts = _shingle_hashes(block)
        for column, (mask, factor) in enumerate(mixers):
            least = np.minimum.reduceat((hashes ^ mask) * (factor << np.uint32(1) | np.uint32(1)), starts)
            result[done : done + len(block), column] = least
        done += len(block)
    return result


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _BLOCK or end == len(texts):
            yield texts[start:end]
            start, size = end, 0


def _shingle_hashes(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all shingles of all texts end to end, and where each text's begin."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    mixed = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[place : place + len(mixed)] + np.uint64(1)
    mixed = (mixed ^ mixed >> np.uint64(31)) * np.uint64(0xBF58476D1CE4E5B9)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(lengths)
    inside = np.ones(len(codes), bool)
    for place in range(1, SHINGLE):
        inside[ends - place] = False  # would reach into the next text
    counts = lengths - SHINGLE + 1
    return (mixed >> np.uint64(32)).astype(np.uint32)[inside[: len(mixed)]], np.cumsum(counts) - counts


def _candidates(signature: Hashes, least: float) -> npt.NDArray[np.int64]:
    """(pairs, 2): texts that agree in a whole band and in at least the share `least` of all values.

    Of the texts that agree in a band, each is paired with the first and with the one before it: a crowd of n like texts
    gives 2 n pairs, not n squared.
    """
    count = len(signature)
    codes = [_band_pairs(signature[:, start : start + BAND]) for start in range(0, BANDS * BAND, BAND)]
    pairs = np.unique(np.concatenate([first * count + second for first, second in codes]))
    first, second = pairs // max(count, 1), pairs % max(count, 1)
    kept = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(first), _BLOCK):
        a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
        alike = (signature[a] == signature[b]).mean(1) >= least
        kept.append(np.stack([a[alike], b[alike]], 1))
    return np.concatenate(kept)[:MOST_PAIRS]


def _band_pairs(band: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    key = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        key = (key ^ band[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(32)
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    leader = np.where(np.concatenate([[False], same]), 0, np.arange(len(order)))
    leader = order[np.maximum.accumulate(leader)] if len(order) else order
    repeats = np.flatnonzero(same) + 1
    first = np.concatenate([leader[repeats], order[repeats - 1]]).astype(np.int64)
    return first, np.concatenate([order[repeats], order[repeats]]).astype(np.int64)

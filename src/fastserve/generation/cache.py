"""Whose cache is where: rows, blocks and the prefixes that finished jobs leave behind. Accounting only, no torch.

A row is the place of one job's cache, and a slot is its number. A job whose prompt begins like that of another takes a
copy of what was computed; a row that nobody owns any more is a source of such prefixes until it is needed, the least
recently used first. Blocks are how much of the memory all rows may take together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from fastserve.generation.job import Job
from fastserve.generation.limits import Limits


@dataclass(slots=True)
class Row:
    """owner: a job's id, or None; blocks: that it takes; hashes: of its first blocks, which are computed."""

    slot: int
    owner: int | None = None
    blocks: int = 0
    hashes: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is there already of a prompt: so many tokens, in this slot."""

    tokens: int
    slot: int | None = None


NOTHING = Prefix(0)


class RowCache:
    """Rows of one cache. Every change keeps: free blocks + blocks of all rows = blocks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows = [Row(slot) for slot in range(limits.rows)]
        self.free_blocks = limits.blocks
        self.left_blocks = 0
        """Of rows that are left behind, which can be had at once."""
        self._free = list(range(limits.rows - 1, -1, -1))
        self._left: OrderedDict[int, None] = OrderedDict()
        """Slots of rows that nobody owns but that hold prefixes, the least recently used first."""
        self._where: dict[Hashable, dict[int, None]] = {}
        """Hash of a block to the slots that hold it."""
        self.host: dict[int, int] = {}
        """Job that is swapped out to the blocks that it takes in host memory."""
        self.free_host_blocks = limits.host_blocks

    @property
    def rows_at_hand(self) -> int:
        """Rows that no job owns."""
        return len(self._free) + len(self._left)

    @property
    def blocks_at_hand(self) -> int:
        """Blocks that no job owns."""
        return self.free_blocks + self.left_blocks

    @property
    def used_share(self) -> float:
        """Of all blocks, those that jobs own."""
        return 1 - self.blocks_at_hand / self.limits.blocks

    def find(self, prefix: Sequence[Hashable], most: int) -> Prefix:
        """The longest beginning that is somewhere, in whole blocks and at most `most` tokens."""
        found, holders = 0, None
        for hashed in prefix[: max(most, 0) // self.limits.block_size]:
            here = self._where.get(hashed)
            if not here:
                break
            found, holders = found + 1, here
        return Prefix(found * self.limits.block_size, next(iter(holders))) if holders else NOTHING

    def fits(self, blocks: int) -> bool:
        """Whether a job that needs so many blocks could have a row now."""
        return self.rows_at_hand > 0 and self.blocks_at_hand >= blocks

    def place(self, job: Job, tokens: int, prefix: Prefix = NOTHING) -> int:
        """Give `job` a row with room for `tokens`, `prefix` already in it; the slot. The caller has asked `fits`."""
        row = self.rows[self._choose(prefix)]
        whole = prefix.tokens // self.limits.block_size
        hashes = self.rows[prefix.slot].hashes[:whole] if prefix.slot is not None else []
        self._clear(row)
        row.owner = job.id
        self._reserve(row, self.limits.blocks_of(tokens))
        self._note(row, hashes)
        return row.slot

    def _choose(self, prefix: Prefix) -> int:
        """The slot for a job that begins with `prefix`: where that is if hardly anything is lost by it (the last block
        of the same prompt is never part of it), else an empty one."""
        source = prefix.slot
        if source is not None and source in self._left:
            self._left.move_to_end(source)
            whole = prefix.tokens // self.limits.block_size
            if len(self.rows[source].hashes) <= whole + 1 or self.rows_at_hand == 1:
                return source
        if self._free:
            return self._free[-1]
        return next(slot for slot in self._left if slot != source or len(self._left) == 1)

    def grow(self, job: Job, tokens: int) -> bool:
        """Room for `tokens` in all in the job's row; False, and nothing changed, where there are no blocks."""
        row = self._row(job)
        need = self.limits.blocks_of(tokens) - row.blocks
        if need > self.blocks_at_hand:
            return False
        if need > 0:
            self._reserve(row, need + row.blocks)
        return True

    def holds(self, job: Job, tokens: int) -> bool:
        """Whether the row that the job has is long enough as it is."""
        return job.slot is not None and self.rows[job.slot].blocks * self.limits.block_size >= tokens

    def need(self, job: Job, tokens: int) -> int:
        """Blocks that are missing for `tokens` in the job's row."""
        return max(self.limits.blocks_of(tokens) - self._row(job).blocks, 0)

    def computed(self, job: Job) -> None:
        """The job's row holds `job.computed` tokens: others may take what of them is hashed."""
        row = self._row(job)
        whole = min(len(job.prefix), job.computed // self.limits.block_size)
        if whole > len(row.hashes):
            self._note(row, job.prefix[len(row.hashes) : whole])

    def forget(self, job: Job) -> None:
        """What is in the job's row must not be taken over by anybody."""
        self._unnote(self._row(job))

    def release(self, job: Job) -> None:
        """The job needs its row no more; its hashed blocks stay a source of prefixes."""
        row = self._row(job)
        row.owner = None
        if row.hashes:
            self.free_blocks += row.blocks - len(row.hashes)
            row.blocks = len(row.hashes)
            self._left[row.slot] = None
            self.left_blocks += row.blocks
        else:
            self.free_blocks += row.blocks
            row.blocks = 0
            self._free.append(row.slot)

    def swap_out(self, job: Job) -> None:
        """The job's cache goes to host memory; its row is free. The caller has asked `fits_host`."""
        blocks = self.limits.blocks_of(job.computed)
        self.host[job.id] = blocks
        self.free_host_blocks -= blocks
        self.release(job)

    def fits_host(self, job: Job) -> bool:
        return self.limits.blocks_of(job.computed) <= self.free_host_blocks

    def swap_in(self, job: Job, tokens: int) -> int:
        """The job's cache comes back into a row with room for `tokens`; the slot."""
        slot = self.place(job, tokens)
        self.forget_host(job)
        return slot

    def forget_host(self, job: Job) -> None:
        """Nothing of the job is in host memory any more."""
        self.free_host_blocks += self.host.pop(job.id)

    def _row(self, job: Job) -> Row:
        if job.slot is None or self.rows[job.slot].owner != job.id:
            raise ValueError(f"job {job.id} has no row")
        return self.rows[job.slot]

    def _clear(self, row: Row) -> None:
        """Empty a row that nobody owns, and take it out of both lists."""
        if row.slot in self._left:
            del self._left[row.slot]
            self.left_blocks -= row.blocks
        else:
            self._free.remove(row.slot)
        self.free_blocks += row.blocks
        row.blocks = 0
        self._unnote(row)

    def _reserve(self, row: Row, blocks: int) -> None:
        """So many blocks for a row that is owned; rows that were left behind give theirs."""
        while self.free_blocks < blocks - row.blocks:
            self._evict()
        self.free_blocks -= blocks - row.blocks
        row.blocks = blocks

    def _evict(self) -> None:
        """The least recently used row that was left behind becomes empty."""
        row = self.rows[next(iter(self._left))]
        self._clear(row)
        self._free.append(row.slot)

    def _note(self, row: Row, hashes: Sequence[Hashable]) -> None:
        for hashed in hashes:
            row.hashes.append(hashed)
            self._where.setdefault(hashed, {})[row.slot] = None

    def _unnote(self, row: Row) -> None:
        for hashed in row.hashes:
            here = self._where[hashed]
            here.pop(row.slot, None)
            if not here:
                del self._where[hashed]
        row.hashes = []

    def check(self) -> None:
        """ValueError where an invariant is broken: blocks conserved, rows in one list each, prefixes where they are."""
        _equal("blocks", self.free_blocks + sum(row.blocks for row in self.rows), self.limits.blocks)
        _equal("blocks left behind", self.left_blocks, sum(self.rows[slot].blocks for slot in self._left))
        _equal("host blocks", self.free_host_blocks + sum(self.host.values()), self.limits.host_blocks)
        owned = [row.slot for row in self.rows if row.owner is not None]
        _equal("rows", sorted([*self._free, *self._left, *owned]), list(range(len(self.rows))))
        owners = [row.owner for row in self.rows if row.owner is not None]
        _equal("owners", len(owners), len(set(owners)))
        held = {(hashed, row.slot) for row in self.rows for hashed in row.hashes}
        _equal("prefixes", held, {(hashed, slot) for hashed, here in self._where.items() for slot in here})
        if min(self.free_blocks, self.free_host_blocks) < 0 or any(self.rows[slot].blocks for slot in self._free):
            raise ValueError("blocks below 0, or in a free row")


def _equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what}: {found!r}, expected {expected!r}")

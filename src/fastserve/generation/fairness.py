"""Keys share the machine: a key that had more than another one that also has work stands behind it. No torch."""

from __future__ import annotations


class Shares:
    """Seconds of service of each key that has work, as virtual time (as VTC, Sheng et al. 2024, counts tokens).

    A key that comes back goes on from no less than the least of the others, so that nobody saves up. allowance: seconds
    that a key may be ahead before it stands a level behind; within a level the policy alone decides.
    """

    def __init__(self, allowance: float) -> None:
        self.allowance = allowance
        self.service: dict[str, float] = {}
        self._jobs: dict[str, int] = {}
        self._past: dict[str, float] = {}
        self._least = 0.0

    def arrive(self, key: str) -> None:
        """A job of the key begins to count."""
        if key not in self._jobs:
            least = min(self.service.values(), default=self._least)
            self._jobs[key] = 0
            self.service[key] = max(self._past.pop(key, 0.0), least)
        self._jobs[key] += 1

    def leave(self, key: str) -> None:
        """A job of the key ended."""
        self._jobs[key] -= 1
        if not self._jobs[key]:
            del self._jobs[key]
            self._past[key] = self.service.pop(key)
            self._forget()

    def _forget(self) -> None:
        """Who is no further than those that are here has nothing to be remembered by."""
        if len(self._past) > 1024:
            least = min(self.service.values(), default=max(self._past.values()))
            self._past = {key: service for key, service in self._past.items() if service > least}

    def charge(self, key: str, seconds: float) -> None:
        self.service[key] += seconds

    def refresh(self) -> None:
        """Before levels are asked for."""
        self._least = min(self.service.values(), default=self._least)

    @property
    def several(self) -> bool:
        """Whether more than one key has work."""
        return len(self.service) > 1

    def level(self, key: str) -> int:
        """How many allowances the key is ahead of the one that had the least, when it was last refreshed."""
        if len(self.service) < 2:
            return 0
        return int((self.service[key] - self._least) / self.allowance)

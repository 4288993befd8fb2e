"""The registry: publish a model folder as a version, name versions, find them again, and take them elsewhere.

Every change is atomic: a reader, also after `kill -9` of a writer, sees the state before or the state after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastserve import config
from fastserve.bundle.bundle import Bundle, amend_manifest
from fastserve.bundle.format import MANIFEST, Lineage
from fastserve.errors import BundleError, ConfigError, FastServeError, NotFoundError, choices
from fastserve.log import warn
from fastserve.registry.aliases import write_state
from fastserve.registry.archive import LIMIT_BYTES, read_archive, write_archive
from fastserve.registry.comparison import Difference, compare
from fastserve.registry.names import (
    LATEST,
    PRODUCTION,
    Reference,
    check_alias,
    check_name,
    is_name,
    looks_like_path,
    parse_reference,
)
from fastserve.registry.store import Store, Version, copy_bundle, faults
from fastserve.registry.summary import ModelSummary, summarize


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One step of a lineage. lineage is None where that version is not in this registry."""

    reference: str
    lineage: Lineage | None


class Registry:
    """The models under `home` ($FASTSERVE_HOME where not given), in `models/NAME/VERSION/`.

    A reference is `name` (its production version where one is set, else the newest), `name@3`, `name@alias` or
    `name@latest`.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.store = Store((home or config.home()) / "models")

    # Finding

    def names(self) -> Sequence[str]:
        return self.store.names()

    def list(self) -> Sequence[ModelSummary]:
        """Every model, by name."""
        return [self.show(name) for name in self.names()]

    def show(self, name: str) -> ModelSummary:
        """One model with all its versions and alias moves."""
        self._check_exists(name)
        state = self.store.state(name)
        versions = tuple(summarize(version, state) for version in reversed(self.versions(name)))
        return ModelSummary(name, versions, dict(state.aliases), state.moves)

    def versions(self, name: str) -> Sequence[Version]:
        """The versions of `name`, oldest first."""
        self._check_exists(name)
        return [self.store.version(name, number) for number in self.store.numbers(name)]

    def resolve(self, reference: str | Path) -> Path:
        """The folder of a reference, or of a path to a model folder. NotFoundError lists what there is."""
        text = str(reference)
        if isinstance(reference, Path) or looks_like_path(text):
            return _model_folder(Path(text).expanduser())
        if (Path(text) / MANIFEST).is_file() and not (is_name(text) and self.store.numbers(text)):
            return Path(text)
        return self.find(text).path

    def find(self, reference: str) -> Version:
        """The version of a reference. NotFoundError lists what there is."""
        wanted = parse_reference(reference)
        self._check_exists(wanted.name)
        number = wanted.number if wanted.number is not None else self._aliased(wanted)
        if number not in self.store.numbers(wanted.name):
            raise NotFoundError(f"there is no version {wanted}: {self._available(wanted)}")
        return self.store.version(wanted.name, number)

    def _aliased(self, wanted: Reference) -> int:
        aliases = {LATEST: self.store.numbers(wanted.name)[-1], **self.store.state(wanted.name).aliases}
        if wanted.selector is None:
            return aliases.get(PRODUCTION, aliases[LATEST])
        if wanted.selector not in aliases:
            raise NotFoundError(f"there is no version {wanted}: {self._available(wanted)}")
        return aliases[wanted.selector]

    def _available(self, wanted: Reference) -> str:
        numbers = self.store.numbers(wanted.name)
        names = [LATEST, *self.store.state(wanted.name).aliases, *map(str, numbers[-10:])]
        return choices(str(wanted), [f"{wanted.name}@{name}" for name in names])

    def _check_exists(self, name: str) -> None:
        if not is_name(name) or not self.store.numbers(name):
            raise NotFoundError(
                f"no model is called '{name}' in {self.store.folder}: {choices(name, self.names())}. "
                "A folder is written with a slash: ./folder"
            )

    # Changing

    def publish(self, folder: str | Path, name: str, *, parent: str | None = None) -> Version:
        """Copy a model folder in as the next version of `name`; the aliases stay where they are.

        parent: the version it was made from, written into its lineage. BundleError where a file is damaged.
        """
        check_name(name)
        source = _model_folder(Path(folder))
        ancestor = self.find(parent).reference if parent is not None else None

        def fill(target: Path) -> str:
            copy_bundle(source, target)
            bundle = Bundle.load(target, verify=False)  # copying has compared the checksums
            if ancestor is not None:
                lineage = bundle.manifest.lineage.model_copy(update={"parent": ancestor})
                amend_manifest(target, bundle.manifest.model_copy(update={"lineage": lineage}))
            return name

        return self.store.add(fill)

    def promote(self, reference: str, alias: str = PRODUCTION) -> Version:
        """Point `alias` to a version, after its checksums were verified. A bare name means its newest version."""
        check_alias(alias)
        wanted = parse_reference(reference)
        version = self.find(reference if wanted.selector is not None else f"{wanted.name}@{LATEST}")
        Bundle.load(version.path)
        with self.store.locked(version.name) as model:
            version = self.find(version.reference)  # it may have been deleted since
            state = self.store.state(version.name)
            if state.aliases.get(alias) != version.number:
                write_state(model, state.moved(alias, version.number, "promote"))
        return version

    def rollback(self, name: str, alias: str = PRODUCTION) -> Version:
        """Point `alias` to where it pointed before its last promotion; again goes back further."""
        self._check_exists(name)
        with self.store.locked(name) as model:
            state = self.store.state(name)
            if alias not in state.aliases:
                raise NotFoundError(f"'{name}' has no alias '{alias}': {choices(alias, state.aliases)}")
            existing = set(self.store.numbers(name)) - {state.aliases[alias]}
            earlier = [number for number in state.trail(alias)[:-1] if number in existing]
            if not earlier:
                raise NotFoundError(
                    f"'{name}@{alias}' points at version {state.aliases[alias]} and never pointed at another one that "
                    f"still exists; promote one of {', '.join(map(str, self.store.numbers(name)))}"
                )
            write_state(model, state.moved(alias, earlier[-1], "rollback"))
        return self.store.version(name, earlier[-1])

    def delete(self, reference: str, *, force: bool = False) -> Version:
        """Remove one version; its number is not used again. ConfigError where an alias points at it, unless forced."""
        if parse_reference(reference).selector is None:
            raise ConfigError(f"which version of '{reference}'? {self._available(Reference(reference))}")
        version = self.find(reference)
        with self.store.locked(version.name) as model:
            version = self.find(version.reference)
            state = self.store.state(version.name)
            pointing = state.pointing_at(version.number)
            if pointing and not force:
                raise ConfigError(
                    f"{version.reference} is '{', '.join(pointing)}': promote another version first, or force it"
                )
            write_state(model, state.without(version.number))
            self.store.remove(version)
        return version

    # Comparing and checking

    def diff(self, before: str | Path, after: str | Path) -> Difference:
        """What differs between two references or folders."""
        left, right = (Bundle.load(self.resolve(reference), verify=False) for reference in (before, after))
        return compare(left.manifest, right.manifest, (str(before), str(after)))

    def lineage(self, reference: str) -> Sequence[Ancestor]:
        """A version and what it was made from, step by step, the version itself first."""
        chain: dict[str, Ancestor] = {}
        current: str | None = self.find(reference).reference
        while current is not None and current not in chain:
            try:
                lineage = Bundle.load(self.find(current).path, verify=False).manifest.lineage
            except (NotFoundError, ConfigError):
                lineage = None
            chain[current] = Ancestor(current, lineage)
            current = lineage.parent if lineage is not None else None
        return list(chain.values())

    def verify(self, reference: str | None = None) -> dict[str, Sequence[str]]:
        """Compare every file with its checksum: version to what is wrong with it (an empty list: nothing).

        reference: one version, or a bare name for all of its versions; None for the whole registry.
        """
        return {version.reference: _faults(version.path) for version in self._selected(reference)}

    def _selected(self, reference: str | None) -> Sequence[Version]:
        if reference is None:
            return [version for name in self.names() for version in self.versions(name)]
        wanted = parse_reference(reference)
        return [self.find(reference)] if wanted.selector is not None else self.versions(wanted.name)

    # Taking elsewhere

    def export(self, reference: str, file: str | Path) -> Path:
        """Write a version as one file (.tar.zst or .tar.gz), after its checksums were verified.

        The same version gives the same bytes.
        """
        version = self.find(reference)
        Bundle.load(version.path)
        write_archive(version.path, version.name, Path(file))
        return Path(file)

    def import_(self, file: str | Path, *, name: str | None = None, limit_bytes: int = LIMIT_BYTES) -> Version:
        """Read an exported file as the next version of `name` (None: the name in the file).

        BundleError for what is damaged, too large, or anything but the plain files of one model; then nothing appears.
        """
        if name is not None:
            check_name(name)

        def fill(target: Path) -> str:
            found = read_archive(Path(file), target, limit_bytes=limit_bytes)
            wrong = _faults(target)
            if wrong:
                raise BundleError(f"{file} is damaged: {'; '.join(wrong)}")
            _tell_of_own_code(Bundle.load(target, verify=False))
            return name or found

        return self.store.add(fill)


def _model_folder(folder: Path) -> Path:
    if not (folder / MANIFEST).is_file():
        what = f"has no {MANIFEST}" if folder.is_dir() else "does not exist"
        raise NotFoundError(f"{folder} is not a model folder: it {what}. Train a model, or give the name of one")
    return folder


def _tell_of_own_code(bundle: Bundle) -> None:
    """A model folder holds no code, but it may name some that is installed here."""
    network = bundle.manifest.network.name
    if ":" in network:
        warn(f"the model names its network as '{network}': that module of yours is imported when it answers")


def _faults(folder: Path) -> list[str]:
    """Everything that is wrong with a version; the manifest is read too."""
    try:
        wrong = faults(folder)
        if not wrong:
            Bundle.load(folder, verify=False)
    except FastServeError as error:
        return [str(error).replace(f"{folder}/", "")]
    return wrong

"""Files written whole, several of them together, and never over an existing one unless that was asked for.

Each output is first written beside its place, under a name that starts with ``.caffe2torch-``. When all are on disk
they are moved to their places. Between the two a journal is written, for a set of more than one: whoever is killed
before it left nothing but files to remove, whoever is killed after it left a set to complete. The next run that writes
into the folder does either.

===================================  ====================================================================
``.caffe2torch-RUN-N.part``          output number N of a run, not yet in its place
``.caffe2torch-RUN-N.old``           a second name of the file that it replaces, to go back to on an error
``.caffe2torch-RUN.json``            the journal: the run's folders, and which part goes to which name here
===================================  ====================================================================

A run holds a shared lock on its folders (``flock``), which the system drops when the process ends in any way; what is
in a folder that nobody holds is left over. A journal moves files within its own folder alone, whatever it names.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from caffe2torch.errors import OutputError

if sys.platform != "win32":
    import fcntl

__all__ = ["check_outputs", "check_writable", "is_stream", "stream_of", "whole_file", "whole_files", "write_files"]

AnyPath = TypeVar("AnyPath", bound=str | os.PathLike[str])

_OURS = re.compile(r"\.caffe2torch-([0-9a-f]{16})(?:\.json|-\d+\.(?:part|old))")
_LARGEST_JOURNAL = 1 << 20  # bytes
_PATIENCE = 10.0  # seconds to wait for a process that completes an interrupted set


# What may be written, asked before any work is done.


def check_outputs(
    outputs: Iterable[str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    *,
    force: bool = False,
) -> None:
    """Refuse, before any work is done, outputs of one run that would destroy each other, an input, or anything else.

    Args:
        outputs: Paths to be written; ``None`` stands for one that was not asked for.
        inputs: Paths that are read; those that do not exist are no concern.
        force: Whether existing files may be replaced. Inputs and each other's outputs never may.

    Raises:
        OutputError: As ``check_writable``; or an output is an input, another output, or what stdout goes to.
    """
    taken = {_identity(path): f"the input {os.fspath(path)!r}" for path in inputs if path is not None}
    stdout = _identity("/dev/stdout")
    for path in outputs:
        if path is None:
            continue
        identity = _identity(path)
        check_writable(path, force=force or identity in taken)  # what it would destroy is the better message
        if identity is None:
            continue
        what = "standard output" if identity == stdout and stream_of(path) is None else taken.get(identity)
        if what is not None:
            raise OutputError(f"would be written over {what}", where=str(path), hint="choose another name for it")
        taken[identity] = f"the output {os.fspath(path)!r}"


def check_writable(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse, before any work is done, an output that could not be written afterwards.

    A device or a pipe (``/dev/stdout``) is always allowed.

    Raises:
        OutputError: ``path`` exists and ``force`` is not set, it is a directory, no file can have its name, or the
            folder that should hold it is missing or cannot be written to.
    """
    name, mode = str(path), _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError("is a directory; name a file in it", where=name)
    if _target(path) is None:
        return
    if mode is not None and not force:
        raise OutputError("exists already", where=name, hint="choose another name, or pass --force to replace it")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise OutputError(f"the folder {str(folder)!r} does not exist", where=name, hint="create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} cannot be written to", where=name)


def stream_of(path: str | os.PathLike[str]) -> int | None:
    """The file descriptor of this process that ``path`` names, if it names one.

    >>> stream_of("/dev/stdout"), stream_of("/dev/fd/3"), stream_of("optimizer.py")
    (1, 3, None)
    """
    place = os.fspath(path)
    named = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", place)
    return int(named[1]) if named else {"/dev/stdout": 1, "/dev/stderr": 2}.get(place)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a device or a pipe, and no file.

    >>> is_stream("/dev/stdout"), is_stream("optimizer.py")
    (True, False)
    """
    return _target(path) is None


def _target(path: str | os.PathLike[str]) -> Path | None:
    """The file that ``path`` leads to through links; ``None`` for a stream, which nothing may be moved over."""
    mode = _mode(path)
    is_stream = stream_of(path) is not None or (mode is not None and not stat.S_ISREG(mode))
    return None if is_stream else Path(os.path.realpath(path))


def _mode(path: str | os.PathLike[str]) -> int | None:
    """What is there: a file, a directory, a pipe; ``None`` where nothing is."""
    try:
        return _status(path).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a link to itself, a name too long or with a null character
        raise _refused(error, path) from None


def _status(path: str | os.PathLike[str]) -> os.stat_result:
    descriptor = stream_of(path)
    return Path(path).stat() if descriptor is None else os.fstat(descriptor)


def _identity(path: str | os.PathLike[str]) -> tuple[object, ...] | None:
    """What two paths that lead to one file have in common; ``None`` for terminals and other devices."""
    try:
        status = _status(path)
    except FileNotFoundError:
        return (os.path.realpath(path),)
    except (OSError, ValueError):
        return None
    return None if stat.S_ISCHR(status.st_mode) else (status.st_dev, status.st_ino)


def _refused(error: OSError | ValueError, path: str | os.PathLike[str]) -> OutputError:
    reason = error.strerror or str(error) if isinstance(error, OSError) else "this is no file name"
    return OutputError(f"cannot be written: {reason}", where=str(path))


# Writing.


def write_files(contents: Mapping[AnyPath, str | bytes], *, force: bool = False) -> None:
    """Write every content (path to text, as UTF-8, or bytes): all of them, or on an error none.

    Raises:
        OutputError: As ``check_outputs``, and when the system refuses.
    """
    check_outputs(contents, force=force)
    ordered = sorted(contents, key=lambda path: _target(path) is None)  # what went into a pipe cannot be taken back
    with whole_files(ordered) as files:
        for path, file in zip(ordered, files, strict=True):
            content = contents[path]
            try:
                file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
                file.flush()
            except OSError as error:
                raise _refused(error, path) from None


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write ``path``'s new content to, as ``whole_files`` gives several."""
    with whole_files([path]) as (file,):
        yield file


@contextmanager
def whole_files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[BinaryIO]]:
    """Files to write the new contents of ``paths`` to, which take their places together when the block ends.

    They are written beside their places, flushed to disk, and then moved. When the block raises, what was there before
    is still there; when the process is killed, each place has its old file or its new one, whole, and the next run
    there completes or removes the set. A device or a pipe is written to as it is.

    Raises:
        OutputError: The system refuses to open or to move a file. What the block raises passes through.
    """
    run = secrets.token_hex(8)
    targets = [_target(path) for path in paths]
    files: list[BinaryIO] = []
    parts: dict[Path, Path] = {}
    with ExitStack() as stack:
        for folder in sorted({target.parent for target in targets if target is not None}):
            stack.enter_context(_claimed(folder))
        stack.callback(_discard, files, parts)
        for number, (path, target) in enumerate(zip(paths, targets, strict=True)):
            try:
                if target is None:
                    files.append(_open_stream(path))
                else:
                    part = target.parent / f".caffe2torch-{run}-{number}.part"
                    files.append(part.open("xb"))
                    parts[part] = target
            except OSError as error:
                raise _refused(error, path) from None
        yield files
        for path, target, file in zip(paths, targets, files, strict=True):
            try:
                file.flush()
                if target is not None:
                    os.fsync(file.fileno())
                file.close()
            except OSError as error:
                raise _refused(error, path) from None
        _place(run, parts)


def _open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    descriptor = stream_of(path)
    if descriptor is None:
        return Path(path).open("wb")
    if descriptor == 1 and sys.stdout is not None:
        sys.stdout.flush()  # what was printed before comes first
    return os.fdopen(os.dup(descriptor), "wb")


def _discard(files: Iterable[BinaryIO], parts: Iterable[Path]) -> None:
    """Close what is open and remove what is not in its place."""
    for file in files:
        with suppress(OSError):  # a full disk refuses the rest of the buffer once more
            file.close()
    for part in parts:
        part.unlink(missing_ok=True)


def _place(run: str, parts: Mapping[Path, Path]) -> None:
    """Move each part to its place; a set of several with a journal, so that it can be completed."""
    if len(parts) < 2:
        for part, target in parts.items():
            try:
                part.replace(target)
            except OSError as error:
                raise _refused(error, target) from None
        return
    folders = sorted({part.parent for part in parts})
    old = {target: part.with_suffix(".old") for part, target in parts.items()}
    placed: list[Path] = []
    place: Path = folders[0]
    try:
        for place, name in old.items():
            with suppress(FileNotFoundError):
                name.hardlink_to(place)
        for folder in reversed(folders):  # the first folder's journal is what makes the set whole
            place = _journal(folder, run)
            _write_journal(folder, run, folders, parts)
        for part, place in parts.items():
            part.replace(place)
            placed.append(place)
    except OSError as error:
        for folder in folders:
            _journal(folder, run).unlink(missing_ok=True)
        for target in placed:
            if old[target].exists():
                old[target].replace(target)
            else:
                target.unlink()
        raise _refused(error, place) from None
    finally:
        for folder in folders:
            _journal(folder, run).unlink(missing_ok=True)
        for name in old.values():
            name.unlink(missing_ok=True)


# The journal of a set, and what to do with one that was left over.


def _journal(folder: Path, run: str) -> Path:
    return folder / f".caffe2torch-{run}.json"


def _write_journal(folder: Path, run: str, folders: Sequence[Path], parts: Mapping[Path, Path]) -> None:
    """Record what belongs where in ``folder``; the file appears whole, and what it names is on disk by then."""
    moves = {part.name: target.name for part, target in parts.items() if part.parent == folder}
    whole = _journal(folder, run)
    beside = folder / f".caffe2torch-{run}-{len(parts)}.part"
    with beside.open("x", encoding="ascii") as file:
        json.dump({"folders": [str(one) for one in folders], "files": moves}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(whole)


def _read_journal(folder: Path, run: str) -> tuple[list[Path], dict[Path, Path]] | None:
    """The folders of a set and the moves within ``folder``; ``None`` where there is no journal or a forged one."""
    try:
        with _journal(folder, run).open("rb") as file:
            data = json.loads(file.read(_LARGEST_JOURNAL))
        folders = [Path(one) for one in data["folders"]]
        moves = {folder / part: folder / name for part, name in data["files"].items()}
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    ours = all((match := _OURS.fullmatch(part.name)) and match[1] == run for part in moves)
    within = all(path.parent == folder and path.name not in ("", "..") for path in (*moves, *moves.values()))
    return (folders, moves) if folders and ours and within else None


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder`` while files are written into it; what nobody holds any more is completed or removed first."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that one may write to, and not list: nobody finds what is left there
        yield
        return
    except OSError as error:
        raise _refused(error, folder) from None
    try:
        _recover(folder, descriptor)
        if sys.platform != "win32":
            _share(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _share(folder: Path, descriptor: int) -> None:
    """Take the lock that any number of writers may have; a run that completes a set has it alone, for a moment."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OutputError("another process has locked this folder", where=str(folder)) from None
            time.sleep(0.02)
        except OSError:  # a file system without locks: nobody completes or removes anything there
            return
        else:
            return


def _recover(folder: Path, descriptor: int) -> None:
    """Complete or remove what interrupted runs left in ``folder``, unless a run is writing there."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    runs: dict[str, list[Path]] = {}
    for entry in os.scandir(folder):
        if (match := _OURS.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
            runs.setdefault(match[1], []).append(Path(folder, entry.name))
    for run, left in runs.items():
        try:
            _finish(folder, run, left)
        except OSError as error:
            raise OutputError(
                f"an interrupted run left files here that cannot be moved: {error.strerror}",
                where=str(folder),
                hint=f"remove {_journal(folder, run).name} and what begins like it",
            ) from None


def _finish(folder: Path, run: str, left: Sequence[Path]) -> None:
    """Complete a set whose journal was written in full, remove any other."""
    journal = _journal(folder, run)
    read = _read_journal(folder, run) if journal in left else None
    if read is None or not _journal(read[0][0], run).is_file():
        for path in sorted(left, key=lambda path: path == journal):  # the journal last: it names what is left
            path.unlink(missing_ok=True)
        return
    folders, moves = read
    for part, target in moves.items():
        if part in left:
            part.replace(target)
    for path in left:
        if path != journal:
            path.unlink(missing_ok=True)
    if folder != folders[0]:
        journal.unlink()
        _recover_elsewhere(folders[0])
        return
    for other in folders[1:]:
        _recover_elsewhere(other)
    if not any(_journal(other, run).exists() for other in folders[1:]):  # they need this one to know that all is whole
        journal.unlink()


def _recover_elsewhere(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _recover(folder, descriptor)
        finally:
            os.close(descriptor)

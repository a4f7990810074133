"""Files from the network: checksummed, and either whole or absent."""

import hashlib
import os
import pathlib
import shutil
import tarfile
import urllib.request
import uuid

_BLOCK_BYTES = 1 << 20


def fetch(
    url: str, folder: str | os.PathLike, *, md5: str, timeout_seconds: float = 60.0
) -> pathlib.Path:
    """Downloads one file into `folder`, unless it is there with the right checksum.

    Bytes go to a temporary name in `folder`; the file gets its own name only after its
    checksum is right, so a killed or failed download never looks like a whole file.

    Args:
        url: `https://`, `file://` or anything else that `urllib` opens.
        folder: made if it does not exist.
        md5: the published checksum, hexadecimal. It guards against broken transfers.
        timeout_seconds: longest wait for the server to say something.

    Returns:
        The path of the file, named as the last part of the URL.

    Raises:
        ValueError: if the checksum of what came differs; nothing is kept.
        OSError: if the URL cannot be read (`urllib.error.URLError` is one).
    """
    folder = pathlib.Path(folder)
    path = folder / url.rsplit("/", 1)[-1]
    if path.exists() and _md5(path) == md5:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with (
        urllib.request.urlopen(url, timeout=timeout_seconds) as response,
        WholeFile(path) as file,
    ):
        shutil.copyfileobj(response, file, _BLOCK_BYTES)
        file.flush()
        came = _md5(pathlib.Path(file.name))
        if came != md5:
            raise ValueError(
                f"{url} has md5 {came}, expected {md5}; nothing was kept. Try again; if"
                " it stays, the file at that address has changed."
            )
    return path


def extract_files(
    archive: str | os.PathLike, members: tuple[str, ...], folder: str | os.PathLike
) -> list[pathlib.Path]:
    """Copies the named regular files of a tar archive into `folder`, and nothing else.

    Links, devices and members that were not asked for are never written, and only the
    last part of a member's name is used, so no archive can write outside `folder`.

    Args:
        archive: a tar file, compressed or not.
        members: full names inside the archive, such as `"batches/test.bin"`.
        folder: made if it does not exist; each file appears there whole or not at all.

    Returns:
        The paths of the files, in the order of `members`.

    Raises:
        ValueError: if a member is missing or is no regular file, or the archive is
            damaged.
    """
    archive, folder = pathlib.Path(archive), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / pathlib.PurePosixPath(name).name for name in members}
    missing = set(members)
    try:
        # One pass in the archive's order: seeking back would decompress it again.
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name not in missing or not member.isfile():
                    continue
                with WholeFile(paths[member.name]) as file:
                    shutil.copyfileobj(tar.extractfile(member), file, _BLOCK_BYTES)
                missing.remove(member.name)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{archive} is not a whole tar archive ({error}); delete it and download"
            " it again."
        ) from error
    if missing:
        raise ValueError(
            f"{archive} does not hold the regular files {sorted(missing)}; is it the"
            " archive of another data set?"
        )
    return [paths[name] for name in members]


class WholeFile:
    """Writes to a temporary file that takes the name `path` only if nothing raised.

    Args:
        path: of the file to make or to replace; its folder exists.

    Returns:
        A context whose value is a binary file, open for writing. Readers of `path` see
        the old file or the new one, never a part.
    """

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        # Not `tempfile`: its files are readable by nobody else, also after renaming.
        name = f".{self._path.name}.{uuid.uuid4().hex}"
        self._file = self._path.with_name(name).open("xb")
        return self._file

    def __exit__(self, kind, error, traceback):
        self._file.close()
        if kind is None:
            os.replace(self._file.name, self._path)
        else:
            os.unlink(self._file.name)


def _md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

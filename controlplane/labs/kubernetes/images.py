"""Container images made on the spot, for the lab's real node: no registry can be reached from it.

An image is one layer in an OCI layout in a tar file, the same bytes for the same content. The gateway's holds this very
Python, the packages that the gateway imports, and the libraries that they link; pause holds one static program.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane.labs.kubernetes.errors import LabError

REGISTRY: Final = "registry.lab.internal"
PAUSE: Final = f"{REGISTRY}/pause:lab"
_ROOT: Final = Path(__file__).resolve().parents[3]
_LEFT_OUT: Final = frozenset(
    {
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "__pycache__",
        "lib2to3",
        "pydoc_data",
    }
)
_PYTHON: Final = "/opt/python"
_PACKAGES: Final = "/opt/packages"


@dataclass(frozen=True, slots=True)
class Image:
    """One image in a tar file."""

    repository: str
    tag: str
    digest: str
    """Of its manifest: `sha256:…`."""
    file: Path

    @property
    def tagged(self) -> str:
        """Its name by tag."""
        return f"{self.repository}:{self.tag}"

    @property
    def pinned(self) -> str:
        """Its name by digest."""
        return f"{self.repository}@{self.digest}"


def pause(program: Path, folder: Path) -> Image:
    """Make the image of the container that holds a pod's namespaces."""
    return _write(folder, "pause", {"/pause": program}, entrypoint=["/pause"], environ={})


def gateway(folder: Path) -> Image:
    """Make the gateway's image: `python -m provisioners.gateway` of this checkout. Raises `LabError`."""
    content = dict(_python()) | dict(_packages("provisioners.gateway.__main__"))
    content |= dict(_libraries(content.values()))
    environ = {
        "PATH": f"{_PYTHON}/bin",
        "PYTHONHOME": _PYTHON,
        "PYTHONPATH": f"/app:{_PACKAGES}",
        "LD_LIBRARY_PATH": f"{_PYTHON}/lib",
        "PYTHONUNBUFFERED": "1",
    }
    return _write(folder, "tenantry-gateway", content, entrypoint=[], environ=environ)


# --- content --------------------------------------------------------------------------------------


def _python() -> Iterator[tuple[str, Path]]:
    """Yield (path in the image, file) of this interpreter and its standard library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    yield f"{_PYTHON}/bin/python", Path(sys.executable).resolve()
    for file in _files(library):
        yield f"{_PYTHON}/lib/{version}/{file.relative_to(library)}", file
    shared = Path(sys.base_prefix) / "lib"
    for file in shared.glob("libpython*.so*"):
        if file.is_file() and not file.is_symlink():
            yield f"{_PYTHON}/lib/{file.name}", file


def _packages(module: str) -> Iterator[tuple[str, Path]]:
    """Yield what `module` imports: third-party packages whole, our own modules one by one."""
    listing = (
        f"import json, sys, {module}; "
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', None)}))"
    )
    answer = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=False, cwd=_ROOT)
    if answer.returncode != 0:
        raise LabError(f"{module} cannot be imported:\n{answer.stderr[-800:]}")
    whole: set[Path] = set()
    for name, text in json.loads(answer.stdout).items():
        file = Path(text)
        if file.is_relative_to(_ROOT / "provisioners"):
            yield f"/app/{file.relative_to(_ROOT)}", file
        elif "site-packages" in file.parts and name.partition(".")[0] != "_distutils_hack":
            home = Path(*file.parts[: file.parts.index("site-packages") + 1])
            whole.add(home / file.relative_to(home).parts[0])
    for top in whole:
        home = top.parent
        for file in _files(top) if top.is_dir() else [top]:
            yield f"{_PACKAGES}/{file.relative_to(home)}", file
        for file in home.glob(f"{top.name}.libs/*"):  # libraries that a wheel brings
            yield f"{_PACKAGES}/{file.relative_to(home)}", file


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name in _LEFT_OUT or entry.name.startswith("config-"):
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.suffix not in {".pyc", ".a", ".exe"}:
            yield entry


def _libraries(files: Sequence[Path] | Any) -> Iterator[tuple[str, Path]]:
    """Yield the shared libraries that programs among `files` link, at the places where they look for them."""
    linked: set[str] = set()
    for file in files:
        if file.suffix == ".so" or ".so." in file.name or "/bin/" in str(file):
            answer = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False)
            linked |= set(re.findall(r"(?:=> )?(/\S+\.so\S*) \(", answer.stdout))
    for name in sorted(linked):
        if name.startswith(("/lib", "/usr/lib")):
            yield name, Path(name).resolve()


# --- the OCI layout -------------------------------------------------------------------------------


def _write(
    folder: Path, name: str, content: Mapping[str, Path], *, entrypoint: list[str], environ: Mapping[str, str]
) -> Image:
    layer = _layer(content)
    blob = gzip.compress(layer, compresslevel=1, mtime=0)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": [f"{key}={value}" for key, value in environ.items()],
                "WorkingDir": "/app" if environ else "/",
                "User": "65532",
                **({"Entrypoint": entrypoint} if entrypoint else {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [_described(blob, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }
    )
    made = Image(f"{REGISTRY}/{name}", "lab", _digest(manifest), folder / f"{name}.tar")
    names = {"io.containerd.image.name": made.tagged, "org.opencontainers.image.ref.name": made.tag}
    entry = _described(manifest, "application/vnd.oci.image.manifest.v1+json") | {"annotations": names}
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    folder.mkdir(parents=True, exist_ok=True)
    fresh = made.file.with_suffix(".new")
    with tarfile.open(fresh, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for part in (config, blob, manifest):
            _add(tar, f"blobs/sha256/{_digest(part).removeprefix('sha256:')}", part)
    fresh.replace(made.file)
    return made


def _layer(content: Mapping[str, Path]) -> bytes:
    """Return a tar of the files, owned by root, readable by all, with every folder above them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = {parent for path in content for parent in Path(path).parents if str(parent) != "/"}
        for place in sorted({*map(str, folders), "/tmp", "/state"}):  # noqa: S108 - mount points in the image
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for place, file in sorted(content.items()):
            data = file.read_bytes()
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.size, entry.mode = len(data), 0o755 if file.stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()

"""The volumes of a played pod as folders on this machine, filled as a kubelet fills them.

`emptyDir` ends with the pod and outlives its containers; a claim's folder stays until the claim is gone. A mirror on
NFS is a folder that somebody has made beside them (`exports/<server>/<export>`). What a volume needs and is not there
keeps the pod waiting, in the kubelet's words (`MountFailed`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane.labs.kubernetes.containers import Mount
from controlplane.labs.kubernetes.environment import Sources, secret_bytes

Object = dict[str, Any]
_KINDS: Final = ("emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim", "image", "downwardAPI", "csi")
NFS: Final = "nfs.csi.k8s.io"


class MountFailed(Exception):
    """A volume cannot be set up yet; the text is the event's."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one pod's things lie."""

    pod: Path
    claims: Path
    """Folder of all claims of the cluster."""
    exports: Path = Path("/nonexistent")
    """Folder of what is exported by NFS."""

    def volume(self, name: str) -> Path:
        """Return the folder of a volume."""
        return self.pod / "volumes" / name

    def layer(self, container: str) -> Path:
        """Return the folder of a container's own layer."""
        return self.pod / "layers" / container

    def termination(self, container: str) -> Path:
        """Return the file of a container's termination message."""
        return self.pod / f"{container}.termination"

    def log(self, container: str) -> Path:
        """Return a container's log."""
        return self.pod / f"{container}.log"


def set_up(pod: Object, folders: Folders, sources: Sources) -> dict[str, Path]:
    """Make and fill every volume of a pod; return volume → folder. Raises `MountFailed`."""
    made: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes") or ():
        name = volume["name"]
        kind = next((kind for kind in _KINDS if kind in volume), "")
        folder = folders.volume(name)
        if kind == "persistentVolumeClaim":
            folder = folders.claims / pod["metadata"]["namespace"] / volume[kind]["claimName"]
        elif kind == "csi":
            folder = _export(name, volume[kind], folders)
        elif not kind:
            other = next((key for key in volume if key != "name"), "none")
            msg = f'MountVolume.SetUp failed for volume "{name}" : the lab has no volumes of type {other}'
            raise MountFailed(msg)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _fill(folder, name, dict(_files(name, kind, volume[kind] or {}, sources)))
        made[name] = folder
    return made


def _export(name: str, source: Object, folders: Folders) -> Path:
    """Return the folder of an export. Raises `MountFailed` in the kubelet's and mount.nfs's words."""
    failed, driver = f'MountVolume.SetUp failed for volume "{name}" : ', source.get("driver", "")
    if driver != NFS:
        raise MountFailed(f"{failed}driver name {driver} not found in the list of registered CSI drivers")
    given = source.get("volumeAttributes") or {}
    server, share = str(given.get("server", "")), str(given.get("share", ""))
    folder = folders.exports / server / share.strip("/")
    if not server or ".." in folder.parts or not folder.is_dir():
        raise MountFailed(f"{failed}mount.nfs: mounting {server}:{share} failed, No such file or directory")
    return folder


def mounts_of(container: Object, volumes: Mapping[str, Path]) -> list[Mount]:
    """Return a container's mounts."""
    return [
        Mount(
            mount["mountPath"],
            volumes[mount["name"]] / mount.get("subPath", ""),
            read_only=bool(mount.get("readOnly")),
        )
        for mount in container.get("volumeMounts") or ()
        if mount["name"] in volumes
    ]


def remove(folders: Folders) -> None:
    """Remove what ends with a pod."""
    shutil.rmtree(folders.pod, ignore_errors=True)


def _fill(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        target = (folder / path).resolve()
        if not target.is_relative_to(folder.resolve()):
            msg = f'MountVolume.SetUp failed for volume "{name}" : path {path!r} leaves the volume'
            raise MountFailed(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.touch(mode=0o600)
        target.write_bytes(content)


def _files(name: str, kind: str, source: Object, sources: Sources) -> Iterator[tuple[str, bytes]]:
    if kind == "secret":
        yield from _chosen(name, source, source.get("secretName", ""), "secret", sources)
    elif kind == "configMap":
        yield from _chosen(name, source, source.get("name", ""), "configmap", sources)
    elif kind == "projected":
        for part in source.get("sources") or ():
            if "secret" in part:
                yield from _chosen(name, part["secret"], part["secret"].get("name", ""), "secret", sources)
            elif "configMap" in part:
                yield from _chosen(name, part["configMap"], part["configMap"].get("name", ""), "configmap", sources)


def _chosen(name: str, source: Object, wanted: str, resource: str, sources: Sources) -> Iterator[tuple[str, bytes]]:
    there = sources.secrets if resource == "secret" else sources.config_maps
    found = there.get(wanted)
    failed = f'MountVolume.SetUp failed for volume "{name}" : '
    if found is None:
        if source.get("optional", False):
            return
        raise MountFailed(f'{failed}{resource} "{wanted}" not found')
    values = (
        secret_bytes(found)
        if resource == "secret"
        else {key: text.encode() for key, text in (found.get("data") or {}).items()}
    )
    items = source.get("items")
    if items is None:
        yield from values.items()
        return
    for item in items:
        if item["key"] not in values:
            if source.get("optional", False):
                continue
            raise MountFailed(f"{failed}references non-existent {resource} key: {item['key']}")
        yield item["path"], values[item["key"]]

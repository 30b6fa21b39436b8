"""What a new machine is told of itself: cloud-init as typed fields, the text of every file in a Secret. Pure.

The same seed and the same checks as for machines of a vCenter (`vsphere.cloud_init`). What the typed fields cannot say
(`disable_root`, fresh host keys, no upgrade at first boot) is cloud-init's own default. In the machine's object stand
public keys, paths and commands; texts are references to a key of a Secret.
"""

from __future__ import annotations

import base64
import hashlib

from provisioners.driver import Ref
from provisioners.kubernetes.objects import Object
from provisioners.vsphere import cloud_init
from provisioners.vsphere.cloud_init import Seed


def check(seed: Seed) -> None:
    """Raise `DriverRejected` with the field for what no guest should be told, and for too much."""
    cloud_init.guestinfo(seed)


def secret_name(ref: Ref) -> str:
    """Return the name of the Secret with the texts of a machine's files."""
    return f"{ref.name}-boot"


def key_of(path: str) -> str:
    """Return the Secret's key of a file; a path has signs that no key may have."""
    return f"file-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def cloud_init_of(ref: Ref, seed: Seed) -> Object:
    """Return `spec.bootstrap.cloudInit`. Raises `DriverRejected`."""
    told = cloud_init.userdata(seed)
    config: Object = {"ssh_pwauth": told["ssh_pwauth"], "defaultUserEnabled": False}
    config["write_files"] = [
        {
            "path": one["path"],
            "permissions": one["permissions"],
            "owner": one["owner"],
            "content": {"name": secret_name(ref), "key": key_of(one["path"])},
        }
        for one in told["write_files"]
    ]
    if told["users"]:
        config["users"] = told["users"]
    if told["runcmd"]:
        config["runcmd"] = told["runcmd"]
    return {"instanceID": str(seed.instance_id), "cloudConfig": config}


def secret(ref: Ref, namespace: str, seed: Seed) -> Object:
    """Return the Secret that `cloud_init_of` refers to. Raises `DriverRejected`."""
    files = cloud_init.userdata(seed)["write_files"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name(ref), "namespace": namespace},
        "type": "Opaque",
        "data": {key_of(one["path"]): base64.b64encode(one["content"].encode()).decode() for one in files},
    }

"""What a container's environment and argv really are, resolved as the kubelet resolves them. Pure.

Order and words are the kubelet's (Kubernetes 1.36, `pkg/kubelet/kubelet_pods.go`, `third_party/forked/golang/
expansion`): `envFrom` in its order, then `env` in its order, where only a literal `value` is expanded, with what
stands before it; service variables come last and replace nothing. What cannot be resolved is a `ConfigError`, whose
text is the message of the container's waiting state `CreateContainerConfigError`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

Object = dict[str, Any]


class ConfigError(Exception):
    """A container cannot be made from what is there; the text is the kubelet's own."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a pod's environment may refer to: objects of its namespace, and its own addresses."""

    secrets: Mapping[str, Object] = field(default_factory=dict, repr=False)
    config_maps: Mapping[str, Object] = field(default_factory=dict)
    services: Sequence[Object] = ()
    """Services of the pod's namespace, for `enableServiceLinks`."""
    kubernetes_service: Object | None = None
    """`default/kubernetes`, which every pod learns of."""
    host_ip: str = ""
    pod_ip: str = ""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value and `$$` by `$`; a name that is not there stays as it is written."""
    out: list[str] = []
    at = 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            out.append(text[at])
            at += 1
            continue
        following = text[at + 1]
        if following == "$":
            out.append("$")
            at += 2
            continue
        closed = text.find(")", at + 2) if following == "(" else -1
        if closed < 0:
            out.append(text[at : at + 2])
            at += 2
            continue
        name = text[at + 2 : closed]
        out.append(values.get(name, f"$({name})"))
        at = closed + 1
    return "".join(out)


def argv_of(container: Object, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return (command, args) of a container with `$(NAME)` replaced by its environment's values."""
    return (
        [expand(str(word), environment) for word in container.get("command") or ()],
        [expand(str(word), environment) for word in container.get("args") or ()],
    )


def environment_of(pod: Object, container: Object, sources: Sources) -> dict[str, str]:
    """Return the environment of one container of `pod`. Raises `ConfigError`."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        found.update(_from_whole(source, sources))
    links = service_variables(pod, sources)
    for variable in container.get("env") or ():
        value = _value(pod, container, variable, sources, {**links, **found})
        if value is not None:
            found[variable["name"]] = value
    return {**links, **found}


def referred(pod: Object) -> tuple[set[str], set[str]]:
    """Return the names of (Secrets, ConfigMaps) that the containers and volumes of a pod refer to."""
    secrets: set[str] = set()
    config_maps: set[str] = set()
    spec = pod.get("spec") or {}
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        for source in container.get("envFrom") or ():
            _add(secrets, source.get("secretRef"))
            _add(config_maps, source.get("configMapRef"))
        for variable in container.get("env") or ():
            origin = variable.get("valueFrom") or {}
            _add(secrets, origin.get("secretKeyRef"))
            _add(config_maps, origin.get("configMapKeyRef"))
    for volume in spec.get("volumes") or ():
        if "secret" in volume:
            secrets.add((volume["secret"] or {}).get("secretName", ""))
        _add(config_maps, volume.get("configMap"))
        for part in (volume.get("projected") or {}).get("sources") or ():
            _add(secrets, part.get("secret"))
            _add(config_maps, part.get("configMap"))
    return secrets - {""}, config_maps - {""}


def _add(names: set[str], reference: Object | None) -> None:
    if reference is not None:
        names.add(reference.get("name", ""))


def secret_text(secret: Object, key: str) -> str | None:
    """Return one value of a Secret as text, None where the key is not there."""
    raw = secret_bytes(secret).get(key)
    return None if raw is None else raw.decode(errors="replace")


def secret_bytes(secret: Object) -> dict[str, bytes]:
    """Return a Secret's values."""
    try:
        return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
    except binascii.Error as error:  # an apiserver never stores such a one
        raise ConfigError(str(error)) from error


# --- sources ------------------------------------------------------------------------------------------


def _from_whole(source: Object, sources: Sources) -> dict[str, str]:
    prefix = source.get("prefix", "")
    values: Mapping[str, str]
    if (reference := source.get("configMapRef")) is not None:
        found = _look_up(reference, sources.config_maps, "configmap")
        values = {} if found is None else found.get("data") or {}
    elif (reference := source.get("secretRef")) is not None:
        found = _look_up(reference, sources.secrets, "secret")
        values = {} if found is None else {k: v.decode(errors="replace") for k, v in secret_bytes(found).items()}
    else:
        values = {}
    return {f"{prefix}{name}": value for name, value in values.items() if "=" not in name}


def _look_up(reference: Object, there: Mapping[str, Object], resource: str) -> Object | None:
    found = there.get(reference.get("name", ""))
    if found is None and not reference.get("optional", False):
        msg = f'{resource} "{reference.get("name", "")}" not found'
        raise ConfigError(msg)
    return found


def _value(pod: Object, container: Object, variable: Object, sources: Sources, before: Mapping[str, str]) -> str | None:
    """Return a variable's value, None where an optional source has none."""
    if variable.get("value"):
        return expand(variable["value"], before)
    origin = variable.get("valueFrom")
    if origin is None:
        return ""
    namespace = pod["metadata"]["namespace"]
    if (reference := origin.get("secretKeyRef")) is not None:
        found = _look_up(reference, sources.secrets, "secret")
        return _key(reference, None if found is None else secret_text(found, reference["key"]), "Secret", namespace)
    if (reference := origin.get("configMapKeyRef")) is not None:
        found = _look_up(reference, sources.config_maps, "configmap")
        data = {} if found is None else found.get("data") or {}
        return _key(reference, data.get(reference["key"]), "ConfigMap", namespace)
    if (reference := origin.get("fieldRef")) is not None:
        return _field(pod, reference["fieldPath"], sources)
    if (reference := origin.get("resourceFieldRef")) is not None:
        return _resource(pod, container, reference)
    msg = f"variable {variable['name']} has a source that the lab cannot resolve: {', '.join(origin)}"
    raise ConfigError(msg)


def _key(reference: Object, value: str | None, kind: str, namespace: str) -> str | None:
    if value is None and not reference.get("optional", False):
        msg = f"couldn't find key {reference['key']} in {kind} {namespace}/{reference.get('name', '')}"
        raise ConfigError(msg)
    return value


_MAP_KEY: Final = re.compile(r"metadata\.(?P<which>labels|annotations)\['(?P<key>[^']+)'\]")


def _field(pod: Object, path: str, sources: Sources) -> str:
    meta, spec = pod["metadata"], pod.get("spec") or {}
    fields: Mapping[str, Callable[[], str]] = {
        "metadata.name": lambda: meta["name"],
        "metadata.namespace": lambda: meta["namespace"],
        "metadata.uid": lambda: meta["uid"],
        "spec.nodeName": lambda: spec.get("nodeName", ""),
        "spec.serviceAccountName": lambda: spec.get("serviceAccountName", ""),
        "status.hostIP": lambda: sources.host_ip,
        "status.hostIPs": lambda: sources.host_ip,
        "status.podIP": lambda: sources.pod_ip,
        "status.podIPs": lambda: sources.pod_ip,
    }
    if path in fields:
        return fields[path]()
    match = _MAP_KEY.fullmatch(path)
    if match is None:
        msg = f"unsupported fieldPath: {path}"
        raise ConfigError(msg)
    return str((meta.get(match["which"]) or {}).get(match["key"], ""))


_UNITS: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{name: Decimal(1000) ** (at + 1) for at, name in enumerate(("k", "M", "G", "T", "P"))},
    **{name: Decimal(1024) ** (at + 1) for at, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"))},
}
_QUANTITY: Final = re.compile(r"(?P<number>[0-9.]+)(?P<unit>[A-Za-z]*)")


def quantity(text: str | float) -> Decimal:
    """Return a Kubernetes quantity as a number. Raises `ConfigError`."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match["unit"] not in _UNITS:
        msg = f"{text!r} is no quantity"
        raise ConfigError(msg)
    return Decimal(match["number"]) * _UNITS[match["unit"]]


def _resource(pod: Object, container: Object, reference: Object) -> str:
    name = reference.get("containerName") or container["name"]
    chosen = next((c for c in pod["spec"]["containers"] if c["name"] == name), None)
    if chosen is None:
        msg = f"container {name} not found"
        raise ConfigError(msg)
    which, _, resource = str(reference["resource"]).partition(".")
    value = ((chosen.get("resources") or {}).get(which) or {}).get(resource, "0")
    divisor = quantity(reference.get("divisor") or "1") or Decimal(1)
    return str((quantity(value) / divisor).to_integral_value(ROUND_CEILING))


# --- service links ------------------------------------------------------------------------------------


def service_variables(pod: Object, sources: Sources) -> dict[str, str]:
    """Return the variables by which a pod learns of services, as `pkg/kubelet/envvars` makes them."""
    services = [] if sources.kubernetes_service is None else [sources.kubernetes_service]
    if (pod.get("spec") or {}).get("enableServiceLinks", True):
        services += [s for s in sources.services if s["metadata"]["name"] != "kubernetes"]
    found: dict[str, str] = {}
    for service in services:
        address = (service.get("spec") or {}).get("clusterIP") or ""
        ports = (service.get("spec") or {}).get("ports") or []
        if address in {"", "None"} or not ports:
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        found[f"{name}_SERVICE_HOST"] = address
        found[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                found[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
        found.update(_links(name, address, ports))
    return found


def _links(name: str, address: str, ports: Sequence[Object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for at, port in enumerate(ports):
        protocol = port.get("protocol", "TCP")
        number = str(port["port"])
        url = f"{protocol.lower()}://{address}:{number}"
        if at == 0:
            found[f"{name}_PORT"] = url
        prefix = f"{name}_PORT_{number}_{protocol}"
        found |= {
            prefix: url,
            f"{prefix}_PROTO": protocol.lower(),
            f"{prefix}_PORT": number,
            f"{prefix}_ADDR": address,
        }
    return found

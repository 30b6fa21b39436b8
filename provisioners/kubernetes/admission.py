"""What the API server itself refuses or sets in tenants' namespaces: our admission policies and their parameters. Pure.

Policies are cluster-wide and few, and act where a namespace carries our tenant label. What differs between namespaces
reaches them as one ConfigMap per namespace (`PARAMS`); without it they refuse. Placements are its `unit.<uid>` keys,
patched one by one before a unit's pod is made, and never part of the applied intent.

A GPU pod is one that asks for any extended resource or any claim: a profile that comes later is caught as well. What
is ours is told from what people make by our labels, which only those may set who may change these policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from provisioners.kubernetes.objects import (
    COMPONENT_LABEL,
    MANAGED_BY_LABEL,
    OUR_NAMES,
    TENANT_LABEL,
    UID_LABEL,
    UNIT_LABEL,
    Object,
    dig,
)
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE

PARAMS: Final = "tenantry-placements"
API: Final = "admissionregistration.k8s.io/v1"
HOSTNAME: Final = "kubernetes.io/hostname"
FREE: Final = "free."
"""Begins the keys of what people may use in pods of their own."""
MARKS: Final = "tenantry-marks"
VALIDATING: Final = ("tenantry-pods", "tenantry-gpus", "tenantry-services", MARKS, "tenantry-templates")
MUTATING: Final = ("tenantry-pod-defaults", "tenantry-gpu-nodes")
HOSTILE: Final = ("NVIDIA_", "LD_", "CUDA_VISIBLE_DEVICES", "HSA_", "ROCR_", "HIP_")
"""Beginnings of variables by which a container talks the runtime into devices or code it was not given."""

_DOMAIN: Final = UID_LABEL.partition("/")[0]


def params(
    namespace: str,
    registries: Iterable[str],
    *,
    priority_classes: Sequence[str] = (),
    runtime_classes: Sequence[str] = (),
) -> Object:
    """Return the ConfigMap of one namespace, without its placements and without our mark."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": PARAMS, "namespace": namespace},
        "data": {
            "registries": ",".join(sorted(prefix(each) for each in registries)),
            "priorityClasses": ",".join(sorted(priority_classes)),
            "runtimeClasses": ",".join(sorted(runtime_classes)),
        },
    }


def prefix(registry: str) -> str:
    """Return a registry so that `registry.internal` does not admit `registry.internal.evil.example/x`."""
    return registry if registry.endswith("/") else f"{registry}/"


def place(unit: UUID, host: str, *, resources: Iterable[str] = (), claims: Iterable[str] = ()) -> Object:
    """Return the merge patch of `PARAMS` that lets the pod of one unit run on `host`, and only there.

    `resources` are the extended resources that it may ask for, `claims` the names of its claims.
    """
    return {"data": {f"unit.{unit}": "|".join((host, ",".join(sorted(resources)), ",".join(sorted(claims))))}}


def place_of(deployment: Object) -> tuple[str, str] | None:
    """Return the placement (key, text) that a replica's Deployment needs, None while it runs no pod or has no unit."""
    unit = deployment["metadata"].get("labels", {}).get(UNIT_LABEL, "")
    if not unit or not dig(deployment, "spec", "replicas", default=0):
        return None
    pod = dig(deployment, "spec", "template", "spec", default={})
    asked = {
        name
        for container in pod.get("containers", [])
        for name in dig(container, "resources", "limits", default={})
        if is_extended(name)
    }
    claims = [str(claim.get("resourceClaimName", "")) for claim in pod.get("resourceClaims") or []]
    host = str(dig(pod, "nodeSelector", HOSTNAME, default=""))
    ((key, text),) = place(UUID(unit), host, resources=asked, claims=claims)["data"].items()
    return key, text


def is_extended(resource: str) -> bool:
    """Whether a resource is a device: every name with a domain that is not Kubernetes' own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and (not domain.endswith("kubernetes.io") or domain == "deviceclass.resource.kubernetes.io")


def unplace(unit: UUID) -> Object:
    """Return the merge patch that takes a unit's placement back."""
    return {"data": {f"unit.{unit}": None}}


def hand_out(
    product: UUID, hosts: Iterable[str], *, resources: Iterable[str] = (), claims: Iterable[str] = ()
) -> Object:
    """Return the merge patch that lets people start GPU pods of their own: on these hosts, with these and no others.

    Without a host nothing is handed out.
    """
    listed = [",".join(sorted(set(each))) for each in (hosts, resources, claims)]
    return {"data": {f"{FREE}{product}": "|".join(listed) if listed[0] else None}}


def placement_of(config: Object, unit: UUID) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return (host, resources, claims) of a unit in a ConfigMap that was read, None where it has no placement."""
    text = (config.get("data") or {}).get(f"unit.{unit}")
    if text is None:
        return None
    host, resources, claims = (*str(text).split("|"), "", "")[:3]
    return host, tuple(filter(None, resources.split(","))), tuple(filter(None, claims.split(",")))


# --- policies ---------------------------------------------------------------------------------------------


def cluster_objects() -> tuple[Object, ...]:
    """Return every policy and its binding; apply them once per cluster, and again where they differ."""
    return (
        *_validating("tenantry-pods", _PODS, _POD_VARIABLES, _POD_RULES, with_params=True),
        *_validating("tenantry-gpus", _PODS[:1], _GPU_VARIABLES, _GPU_RULES, with_params=True),
        *_validating("tenantry-services", _SERVICES, _ACTOR_VARIABLES, _SERVICE_RULES),
        *_validating(MARKS, _EVERYTHING, _MARK_VARIABLES, _MARK_RULES),
        *_validating("tenantry-templates", _TEMPLATES, _TEMPLATE_VARIABLES, _TEMPLATE_RULES),
        *_mutating("tenantry-pod-defaults", (), (("ApplyConfiguration", _ALWAYS_PULL),)),
        *_mutating("tenantry-gpu-nodes", _GPU_VARIABLES, (("JSONPatch", _PINNED),), with_params=True),
    )


def _rule(groups: Sequence[str], resources: Sequence[str], operations: Sequence[str], versions: str = "*") -> Object:
    return {
        "apiGroups": list(groups),
        "apiVersions": [versions],
        "operations": list(operations),
        "resources": list(resources),
        "scope": "Namespaced",
    }


_OF_TENANTS: Final[Mapping[str, Any]] = {"matchExpressions": [{"key": TENANT_LABEL, "operator": "Exists"}]}
_PODS: Final = (
    _rule([""], ["pods"], ["CREATE", "UPDATE"], "v1"),
    _rule([""], ["pods/ephemeralcontainers"], ["UPDATE"], "v1"),
)
_SERVICES: Final = (_rule([""], ["services"], ["CREATE", "UPDATE"], "v1"),)
_EVERYTHING: Final = (
    _rule(
        [""],
        [
            "pods", "services", "configmaps", "secrets", "persistentvolumeclaims", "serviceaccounts", "resourcequotas",
            "limitranges", "replicationcontrollers", "podtemplates", "endpoints",
        ],
        ["CREATE", "UPDATE", "DELETE"],
    ),
    _rule(
        [
            "apps", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io", "resource.k8s.io",
            "autoscaling", "gateway.networking.k8s.io", "monitoring.coreos.com", "cert-manager.io",
        ],
        ["*"],
        ["CREATE", "UPDATE", "DELETE"],
    ),
    _rule([""], ["pods/exec", "pods/attach", "pods/portforward"], ["CONNECT"]),
)  # fmt: skip
_TEMPLATES: Final = (
    _rule(["apps"], ["deployments", "statefulsets", "daemonsets", "replicasets"], ["CREATE", "UPDATE"]),
    _rule(["batch"], ["jobs"], ["CREATE", "UPDATE"]),
)

_Variables = tuple[tuple[str, str], ...]
_Rules = tuple[tuple[str, str], ...]
"""(expression, what people read)."""


def _any_of(text: str, names: Iterable[str]) -> str:
    return " || ".join(f"{text}.startsWith('{name}')" for name in names)


_POD_VARIABLES: Final[_Variables] = (
    (
        "containers",
        "object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : [])",
    ),
    ("debuggers", "has(object.spec.ephemeralContainers) ? object.spec.ephemeralContainers : []"),
    (
        "images",
        (
            "variables.containers.map(c, has(c.image) ? c.image : '')"
            " + variables.debuggers.map(c, has(c.image) ? c.image : '')"
        ),
    ),
    (
        "env",
        "variables.containers.map(c, has(c.env) ? c.env : [])",
    ),
    (
        "froms",
        "variables.containers.map(c, has(c.envFrom) ? c.envFrom : [])",
    ),
    ("registries", "params.data['registries'].split(',')"),
    ("priorities", "params.data['priorityClasses'].split(',')"),
    ("runtimes", "params.data['runtimeClasses'].split(',')"),
    ("ours", f"has(object.metadata.labels) && '{UID_LABEL}' in object.metadata.labels"),
    ("volumes", "has(object.spec.volumes) ? object.spec.volumes : []"),
)
_POD_RULES: Final[_Rules] = (
    (
        "variables.images.all(i, variables.registries.exists(r, i.startsWith(r)))",
        "images come from the platform's registries only",
    ),
    ("variables.images.all(i, i.matches('@sha256:[0-9a-f]{64}$'))", "images are pinned by digest (@sha256:…)"),
    (
        "variables.containers.all(c, c.?imagePullPolicy.orValue('') == 'Always')",
        "images are pulled with the pod's own credentials each time (imagePullPolicy Always)",
    ),
    (
        "object.spec.?priorityClassName.orValue('') in ([''] + variables.priorities)",
        "this priority class is not for tenants",
    ),
    (
        "object.spec.?runtimeClassName.orValue('') in ([''] + variables.runtimes)",
        "this runtime class is not for tenants",
    ),
    (
        "request.operation != 'CREATE' || object.spec.?nodeName.orValue('') == ''",
        "the scheduler chooses the node: leave nodeName out",
    ),
    (
        "object.spec.?schedulerName.orValue('default-scheduler') == 'default-scheduler'",
        "the cluster's own scheduler places pods: leave schedulerName out",
    ),
    (
        (
            f"variables.env.all(l, l.all(e, !({_any_of('e.name', HOSTILE)})))"
            f" && variables.debuggers.all(c, !has(c.env) || c.env.all(e, !({_any_of('e.name', HOSTILE)})))"
        ),
        "variables that reach for devices or code (NVIDIA_…, CUDA_VISIBLE_DEVICES, LD_…) are not set by pods",
    ),
    (
        (
            "variables.debuggers.all(c, !has(c.envFrom)) && variables.froms.all(l, l.all(f,"
            " has(f.prefix) && f.prefix != ''"
            f" && [{', '.join(repr(name) for name in HOSTILE)}]"
            ".all(h, !h.startsWith(f.prefix) && !f.prefix.startsWith(h))))"
        ),
        "envFrom needs a prefix, and none that could make a variable of the GPU runtime",
    ),
    (
        (
            "variables.ours || ("
            f"variables.volumes.all(v, (!has(v.secret) || !v.secret.?secretName.orValue('').startsWith('{OUR_NAMES}'))"
            " && (!has(v.projected) || !has(v.projected.sources) || v.projected.sources.all(s,"
            f" !has(s.secret) || !s.secret.?name.orValue('').startsWith('{OUR_NAMES}')))"
            f" && (!has(v.persistentVolumeClaim) || !v.persistentVolumeClaim.claimName.startsWith('{OUR_NAMES}')))"
            " && variables.env.all(l, l.all(e, !has(e.valueFrom) || !has(e.valueFrom.secretKeyRef)"
            f" || !e.valueFrom.secretKeyRef.?name.orValue('').startsWith('{OUR_NAMES}')))"
            " && variables.froms.all(l, l.all(f, !has(f.secretRef)"
            f" || !f.secretRef.?name.orValue('').startsWith('{OUR_NAMES}')))"
            f" && !object.spec.?serviceAccountName.orValue('').startsWith('{OUR_NAMES}'))"
        ),
        "secrets, volumes and accounts of the platform are for its own pods",
    ),
)

_IS_EXTENDED: Final = (
    "r.contains('/') && (!r.split('/')[0].endsWith('kubernetes.io')"
    " || r.startsWith('deviceclass.resource.kubernetes.io/'))"
)
_GPU_VARIABLES: Final[_Variables] = (
    (
        "containers",
        "object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : [])",
    ),
    (
        "asked",
        (
            "variables.containers.map(c, has(c.resources) && has(c.resources.limits) ?"
            f" c.resources.limits.map(r, r).filter(r, {_IS_EXTENDED}) : [])"
            " + variables.containers.map(c, has(c.resources) && has(c.resources.requests) ?"
            f" c.resources.requests.map(r, r).filter(r, {_IS_EXTENDED}) : [])"
        ),
    ),
    ("claims", "has(object.spec.resourceClaims) ? object.spec.resourceClaims : []"),
    ("isGpu", "variables.asked.exists(l, size(l) > 0) || size(variables.claims) > 0"),
    (
        "unit",
        (
            f"has(object.metadata.labels) && '{UNIT_LABEL}' in object.metadata.labels"
            f" ? 'unit.' + object.metadata.labels['{UNIT_LABEL}'] : ''"
        ),
    ),
    (
        "places",
        (
            "variables.unit != ''"
            " ? (variables.unit in params.data ? [params.data[variables.unit].split('|')] : [])"
            " : params.data.filter(k, k.startsWith('free.')).map(k, params.data[k].split('|'))"
        ),
    ),
    (
        "devices",
        "variables.places.filter(p, variables.asked.all(l, l.all(r, r in p[1].split(','))))",
    ),
    (
        "fits",
        (
            "variables.devices.filter(p, variables.claims.all(c,"
            " has(c.resourceClaimName) && c.resourceClaimName in p[2].split(',')))"
        ),
    ),
    (
        "chosen",
        (
            f"has(object.spec.nodeSelector) && '{HOSTNAME}' in object.spec.nodeSelector"
            f" ? object.spec.nodeSelector['{HOSTNAME}'] : ''"
        ),
    ),
)
_GPU_RULES: Final[_Rules] = (
    (
        "!variables.isGpu || size(variables.places) > 0",
        "this pod asks for a GPU and has no placement: ask for one first",
    ),
    (
        "!variables.isGpu || size(variables.places) == 0 || size(variables.devices) > 0",
        "this pod asks for a device that its placement does not have",
    ),
    (
        "!variables.isGpu || size(variables.devices) == 0 || size(variables.fits) > 0",
        "this pod uses a claim that its placement does not have; claims are made by the platform",
    ),
    (
        (
            "!variables.isGpu || size(variables.fits) == 0"
            " || variables.fits.exists(p, variables.chosen in p[0].split(','))"
        ),
        "this pod is not on the node of its placement",
    ),
    (
        "!variables.isGpu || object.spec.?hostUsers.orValue(true)",
        "NVIDIA GPUs do not work with hostUsers: false",
    ),
)
_PINNED: Final = (
    "!variables.isGpu || size(variables.fits) == 0 || (variables.unit == '' && variables.chosen != '') ? [] : ("
    "has(object.spec.nodeSelector)"
    f" ? [JSONPatch{{op: 'add', path: '/spec/nodeSelector/' + jsonpatch.escapeKey('{HOSTNAME}'),"
    " value: variables.fits[0][0].split(',')[0]}]"
    " : [JSONPatch{op: 'add', path: '/spec/nodeSelector',"
    f" value: {{'{HOSTNAME}': variables.fits[0][0].split(',')[0]}}}}])"
)
_ALWAYS_PULL: Final = (
    "Object{spec: Object.spec{"
    "containers: object.spec.containers.map(c, Object.spec.containers{name: c.name, imagePullPolicy: 'Always'}),"
    "initContainers: (has(object.spec.initContainers) ? object.spec.initContainers : [])"
    ".map(c, Object.spec.initContainers{name: c.name, imagePullPolicy: 'Always'})}}"
)

_ACTOR_VARIABLES: Final[_Variables] = (
    (
        "platform",
        (
            f"authorizer.group('{API.partition('/')[0]}').resource('validatingadmissionpolicies').name('{MARKS}')"
            ".check('patch').allowed()"
        ),
    ),
    (
        "controller",
        (
            "request.userInfo.username.startsWith('system:serviceaccount:kube-system:')"
            " || request.userInfo.username.startsWith('system:kube-')"
            " || (has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups)"
        ),
    ),
    (
        "tenant",
        (
            f"request.userInfo.username.startsWith('system:serviceaccount:{ACCESS_NAMESPACE}:')"
            " || request.userInfo.username.startsWith('system:serviceaccount:' + request.namespace + ':')"
        ),
    ),
)
_SERVICE_RULES: Final[_Rules] = (
    (
        "variables.platform || object.spec.?type.orValue('ClusterIP') == 'ClusterIP'",
        "services of tenants are of type ClusterIP: no node ports, load balancers or external names",
    ),
    (
        "variables.platform || !has(object.spec.externalIPs) || size(object.spec.externalIPs) == 0",
        "services of tenants have no external addresses",
    ),
)
_MARK_VARIABLES: Final[_Variables] = (
    *_ACTOR_VARIABLES,
    ("new", "object != null && has(object.metadata) && has(object.metadata.labels) ? object.metadata.labels : {}"),
    ("old", "oldObject != null && has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}"),
)
_CHANGED: Final = (
    "variables.{a}.all(k, !k.startsWith('" + _DOMAIN + "/')"
    " || (k in variables.{b} && variables.{b}[k] == variables.{a}[k]))"
)
_MARK_RULES: Final[_Rules] = (
    (
        (
            "variables.platform || variables.controller || request.operation in ['DELETE', 'CONNECT']"
            f" || ({_CHANGED.format(a='new', b='old')} && {_CHANGED.format(a='old', b='new')})"
        ),
        f"labels of {_DOMAIN} are the platform's to set",
    ),
    (
        f"!variables.tenant || !('{UID_LABEL}' in variables.old)",
        "this object is the platform's: change it through the platform",
    ),
    (
        f"!variables.tenant || request.operation != 'CONNECT' || !request.name.startsWith('{OUR_NAMES}')",
        "nobody goes into the platform's pods",
    ),
    (
        f"!variables.tenant || request.operation != 'CREATE' || !request.name.startsWith('{OUR_NAMES}')",
        f"names that begin with {OUR_NAMES} are the platform's",
    ),
)
_TEMPLATE_VARIABLES: Final[_Variables] = (
    *_ACTOR_VARIABLES,
    (
        "new",
        (
            "has(object.spec.template) && has(object.spec.template.metadata)"
            " && has(object.spec.template.metadata.labels)"
            " ? object.spec.template.metadata.labels : {}"
        ),
    ),
)
_TEMPLATE_RULES: Final[_Rules] = (
    (
        (
            "variables.platform || (variables.controller && request.resource.resource == 'replicasets')"
            f" || variables.new.all(k, !k.startsWith('{_DOMAIN}/'))"
            f" || (oldObject != null && '{UID_LABEL}' in oldObject.metadata.?labels.orValue({{}}))"
        ),
        f"labels of {_DOMAIN} are the platform's to set",
    ),
)


# --- how they are written ---------------------------------------------------------------------------------


def _head(kind: str, name: str) -> Object:
    return {
        "apiVersion": API,
        "kind": kind,
        "metadata": {"name": name, "labels": {MANAGED_BY_LABEL: "tenantry", COMPONENT_LABEL: "admission"}},
    }


def _binding(kind: str, name: str, *, with_params: bool, extra: Object) -> Object:
    spec: Object = {
        "policyName": name,
        "matchResources": {"namespaceSelector": dict(_OF_TENANTS)},
        **extra,
        **({"paramRef": {"name": PARAMS, "parameterNotFoundAction": "Deny"}} if with_params else {}),
    }
    return _head(kind, name) | {"spec": spec}


def _param_kind(with_params: bool) -> Object:  # noqa: FBT001  one caller's own flag
    return {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}} if with_params else {}


def _validating(
    name: str, rules: Iterable[Object], variables: _Variables, validations: _Rules, *, with_params: bool = False
) -> tuple[Object, Object]:
    policy = _head("ValidatingAdmissionPolicy", name) | {
        "spec": {
            "failurePolicy": "Fail",
            **_param_kind(with_params),
            "matchConstraints": {"resourceRules": list(rules)},
            "variables": [{"name": each, "expression": text} for each, text in variables],
            "validations": [
                {"expression": text, "message": words, "reason": "Forbidden"} for text, words in validations
            ],
        }
    }
    actions = {"validationActions": ["Deny", "Audit"]}
    return policy, _binding("ValidatingAdmissionPolicyBinding", name, with_params=with_params, extra=actions)


def _mutating(
    name: str, variables: _Variables, mutations: Iterable[tuple[str, str]], *, with_params: bool = False
) -> tuple[Object, Object]:
    field = {"ApplyConfiguration": "applyConfiguration", "JSONPatch": "jsonPatch"}
    policy = _head("MutatingAdmissionPolicy", name) | {
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            **_param_kind(with_params),
            "matchConstraints": {"resourceRules": [_rule([""], ["pods"], ["CREATE"], "v1")]},
            "variables": [{"name": each, "expression": text} for each, text in variables],
            "mutations": [{"patchType": kind, field[kind]: {"expression": text}} for kind, text in mutations],
        }
    }
    return policy, _binding("MutatingAdmissionPolicyBinding", name, with_params=with_params, extra={})

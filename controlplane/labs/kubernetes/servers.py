"""Command lines and configuration files of one lab cluster's servers. No secret is in any command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.embedded.ports import LOOPBACK
from controlplane.labs.kubernetes import stages
from controlplane.labs.kubernetes.credentials import Credentials, kubeconfig, store_private

PORTS: Final = ("apiserver", "etcd", "etcd-peer", "controller-manager", "scheduler", "kwok", "kubelet")
SERVICE_RANGE: Final = "10.96.0.0/16"
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
_AUDIT_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "userGroups": ["system:nodes"]},
        {
            "level": "None",
            "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver", "lab-kwok"],
        },
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of one cluster: `folder` holds their files, `ports` names where they listen."""

    folder: Path
    ports: Mapping[str, int]
    credentials: Credentials
    audit_log: Path | None = None
    """Where every request is written; None: nowhere."""

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://{LOOPBACK}:{self.ports.get('apiserver', 0)}"

    @property
    def kwok_config(self) -> Path:
        """File of kwok's stages."""
        return self.folder / "kwok.yaml"

    def config_of(self, name: str) -> Path:
        """Return the kubeconfig of one server."""
        return self.folder / f"{name}.kubeconfig"

    def write_files(self, *, pods: str) -> None:
        """Write certificates, kubeconfigs, the audit policy and kwok's stages."""
        pki = self.credentials
        pki.client("controller-manager", user="system:kube-controller-manager")
        pki.client("scheduler", user="system:kube-scheduler")
        pki.client("kwok", user="lab-kwok", groups=("system:masters",))
        pki.client("apiserver-kubelet", user="lab-apiserver", groups=("system:masters",))
        for name in ("controller-manager", "scheduler", "kwok", "kubelet"):
            user = {"client-certificate": str(pki.certificate(name)), "client-key": str(pki.key(name))}
            store_private(self.config_of(name), kubeconfig(url=self.url, ca=pki.ca, user=user))
        store_private(self.kwok_config, stages.configuration(pods=pods))
        store_private(self.folder / "audit-policy.json", json.dumps(_AUDIT_POLICY))

    def etcd(self) -> tuple[str, ...]:
        """Return the arguments of etcd: nothing here outlives a power cut, so it syncs nothing."""
        at = self.ports
        client, peer = f"http://{LOOPBACK}:{at['etcd']}", f"http://{LOOPBACK}:{at['etcd-peer']}"
        return (
            "--name=lab",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--auto-compaction-retention=5m",
        )

    def apiserver(self) -> tuple[str, ...]:
        """Return the arguments of kube-apiserver: 1.36 has DRA, its partitions and admission policies on by default."""
        at = self.ports
        pki = self.credentials
        words = [
            f"--etcd-servers=http://{LOOPBACK}:{at['etcd']}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            "--endpoint-reconciler-type=none",  # loopback is no address for the service `kubernetes`
            f"--secure-port={at['apiserver']}",
            f"--tls-cert-file={pki.certificate('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.ca}",
            # without it controller-manager and scheduler complain every few seconds; nobody has such a certificate
            f"--requestheader-client-ca-file={pki.ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--token-auth-file={pki.tokens}",
            f"--service-account-key-file={pki.service_accounts_public}",
            f"--service-account-signing-key-file={pki.service_accounts}",
            f"--service-account-issuer={ISSUER}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,PodNodeSelector,ResourceQuota,LimitRanger",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki.certificate('apiserver-kubelet')}",
            f"--kubelet-client-key={pki.key('apiserver-kubelet')}",
            f"--kubelet-certificate-authority={pki.ca}",
            "--kubelet-preferred-address-types=InternalIP",
            "--shutdown-delay-duration=0s",
            "--profiling=false",
        ]
        if self.audit_log is not None:
            policy = self.folder / "audit-policy.json"
            words += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}", "--audit-log-mode=batch"]
            words += ["--audit-log-batch-max-wait=200ms", "--audit-log-maxsize=200", "--audit-log-maxbackup=1"]
        return tuple(words)

    def controller_manager(self) -> tuple[str, ...]:
        """Return the arguments of kube-controller-manager, with every controller on."""
        pki = self.credentials
        return (
            *self._component("controller-manager"),
            f"--service-account-private-key-file={pki.service_accounts}",
            f"--root-ca-file={pki.ca}",
            f"--cluster-signing-cert-file={pki.ca}",
            f"--cluster-signing-key-file={pki.ca_key}",
            "--use-service-account-credentials=true",
            "--controllers=*",
            "--allocate-node-cidrs=false",
            # several small installations share one machine: a slow minute is no lost node
            "--node-monitor-grace-period=120s",
        )

    def scheduler(self) -> tuple[str, ...]:
        """Return the arguments of kube-scheduler."""
        return self._component("scheduler")

    def _component(self, name: str) -> tuple[str, ...]:
        at = self.ports
        config = self.config_of(name)
        return (
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={at[name]}",
            f"--tls-cert-file={self.credentials.certificate('apiserver')}",
            f"--tls-private-key-file={self.credentials.key('apiserver')}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--profiling=false",
        )

    def kwok(self) -> tuple[str, ...]:
        """Return the arguments of kwok, which leaves nodes of real kubelets alone."""
        at = self.ports
        return (
            f"--kubeconfig={self.config_of('kwok')}",
            f"--config={self.kwok_config}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={stages.MANAGED}",
            "--node-lease-duration-seconds=40",
            f"--node-ip={LOOPBACK}",
            f"--node-port={at['kubelet']}",
            f"--server-address={LOOPBACK}:{at['kwok']}",
            f"--tls-cert-file={self.credentials.certificate('apiserver')}",
            f"--tls-private-key-file={self.credentials.key('apiserver')}",
        )

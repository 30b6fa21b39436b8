"""What connecting a vCenter asks for. Pure.

Each text is judged by the reader that reads it later (`settings`), so that the form and the driver never differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from provisioners import tls_settings
from provisioners.driver import Secret
from provisioners.vsphere import privileges
from provisioners.vsphere.settings import KEYS, BadSettings, settings_of
from tenants.endpoint_tls import FILES, NONE, OWN_CA
from tenants.provider_kinds import Credential, Document, ProviderKind, Setting

LONGEST: Final = 65_536
_ENOUGH: Final = {"url": "https://vcenter.invalid", "user": "somebody"}


def judge(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (key, sentence) of an entry that the driver could not use, None where it could use all of them."""
    given = {key: value for key, value in config.items() if value not in {None, ""}}
    try:
        settings_of({**_ENOUGH, **given}, {"password": Secret("not the one")})
    except BadSettings as error:
        key, _, text = str(error).partition(": ")
        return key, text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")
    return tls_settings.unusable(given)


def _judged(key: str) -> Callable[[str], str]:
    def refuses(text: str) -> str:
        if len(text) > LONGEST:
            return f"It has more than {LONGEST} characters."
        found = judge({key: text})
        return found[1] if found is not None else ""

    return refuses


def _refuse_password(text: str) -> str:
    return "" if text.strip("\r\n") else "It is empty."


def _lacks(config: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, str] | None:
    if not config.get("templates") and not config.get("libraries"):
        return "config.templates", "Name at least one template or content library, or no machine can be made."
    return tls_settings.lacks(config, secrets)


CONNECTION: Final = ProviderKind(
    slug="vsphere",
    title="vCenter",
    sentence="Virtual machines with whole GPUs or MIG-backed vGPUs, through a vCenter.",
    icon="server",
    settings=(
        Setting(
            "url", "Address of the vCenter", "As you open it in a browser, without a path.",
            example="https://vcenter.example.net", required=True, refuses=_judged("url"),
        ),
        Setting(
            "user", "User", "The account that was made for this; see the least it needs.",
            example="tenantry@vsphere.local", required=True, refuses=_judged("user"),
        ),
        Setting(
            "ca_pem", "Certificate authority", "The certificate that signed the vCenter's. Not needed where this "
            "machine trusts it already, or with a thumbprint.", is_long=True, refuses=_judged("ca_pem"),
        ),
        Setting(
            "thumbprint", "Thumbprint", "SHA-256 of the vCenter's certificate, instead of an authority. It must be "
            "given anew when the certificate changes.", refuses=_judged("thumbprint"),
        ),
        Setting(
            "datacenter", "Datacenter", "Needed where the vCenter has several.", example="DC0",
            refuses=_judged("datacenter"),
        ),
        Setting(
            "clusters", "Clusters", "Whose hosts are offered, separated by commas. Empty: all of the datacenter.",
            example="gpu-01, gpu-02", refuses=_judged("clusters"),
        ),
        Setting(
            "root_folder", "VM folder", "Everything that we make lies below it. One of this name is made. Two "
            "installations in one vCenter need two.", example="tenantry", refuses=_judged("root_folder"),
        ),
        Setting(
            "root_pool", "Resource pool", "In each cluster, under which tenants get their pools. Empty: the cluster.",
            refuses=_judged("root_pool"),
        ),
        Setting(
            "dvs", "Distributed switch", "Gets each tenant's network. Needed where there are several.",
            example="DVS0", refuses=_judged("dvs"),
        ),
        Setting(
            "vlans", "VLANs", "Each tenant gets one of these, and nobody else may use them.", example="1200-1299",
            refuses=_judged("vlans"),
        ),
        Setting(
            "datastores", "Datastores", "Where machines may lie, separated by commas. Empty: any that the host sees.",
            example="vsan-01", refuses=_judged("datastores"),
        ),
        Setting(
            "storage_policy", "Storage policy", "Its id, for machines and disks. Empty: the datastore's own.",
            refuses=_judged("storage_policy"),
        ),
        Setting(
            "templates", "Templates", "Image = name of the template, one in a line. The image “endpoint” is for "
            "endpoints.", example="ubuntu-24.04 = ubuntu-24.04-gpu", is_long=True, refuses=_judged("templates"),
        ),
        Setting(
            "libraries", "Content libraries", "Whose OVF items are images too, separated by commas; each is brought "
            "into the VM folder once, as a template. Empty: none.", example="images", refuses=_judged("libraries"),
        ),
        Setting(
            "tags", "Tags", "Whether machines and tenants' folders carry vCenter's tags (tenant and kind), for its "
            "policies, its search and NSX groups.", choices=(("off", "No"), ("on", "Yes")),
        ),
        Setting(
            "whole_gpus", "Whole GPUs", "How a machine gets one.",
            choices=(
                ("vgpu", "As the vGPU type that fills it"),
                ("passthrough", "By passthrough (DirectPath I/O)"),
            ),
        ),
        Setting(
            "access", "How clients reach an endpoint", "The address of each endpoint follows from it.",
            choices=(
                ("guest", "At the address of its machine"),
                ("lab", "Laboratory: simulated machines on this computer"),
            ),
        ),
        Setting(
            "zone", "Zone", "The DNS zone of endpoint addresses: endpoint.tenant.zone. Empty: they are shown as they "
            "are.", example="models.example.net", refuses=_judged("zone"),
        ),
        tls_settings.setting(NONE, OWN_CA, FILES, more="None: machines show what their image has, or sign their own."),
        tls_settings.records("show", "none"),
        Setting(
            "endpoint_ca_pem", "Certificate authority of endpoints", "Who signed the certificates at endpoints’ "
            "addresses, where this machine does not trust him: addresses are looked at from outside with it.",
            is_long=True, refuses=_judged("endpoint_ca_pem"),
        ),
        Setting(
            "control_plane_ca_pem", "Certificate authority of this control plane", "Machines trust it when they "
            "report. Not needed where a public one signed its certificate.", is_long=True,
            refuses=_judged("control_plane_ca_pem"),
        ),
        Setting(
            "tenant_group", "Groups of tenants", "Who may look at a tenant's folder and open consoles in vCenter; "
            "{tenant} stands for the tenant's id. Empty: nobody.", example="CORP\\gpu-{tenant}",
            refuses=_judged("tenant_group"),
        ),
    ),
    credentials=(
        Credential("password", "Password", "Of the user above.", refuses=_refuse_password),
        *tls_settings.CREDENTIALS,
    ),
    rights=privileges.SENTENCES,
    documents=(
        Document(
            "The least it needs",
            "Follow this as an administrator of the vCenter: it makes two roles and grants them to the user. The test "
            "names each right that is missing, and on what.",
            "vcenter-role.md",
            privileges.document(),
        ),
    ),
    lacks=_lacks,
    more_keys=KEYS,
    judges=judge,
)  # fmt: skip

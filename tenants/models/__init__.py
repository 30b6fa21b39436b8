"""Rows of the domain, one module per noun. Import them from here.

Every tenant-owned table has its own `tenant` column: row-level security compares nothing else.
"""

from tenants.models.account import AccountLink
from tenants.models.allocation import Allocation, Boundary, QuotaCharge, Unit
from tenants.models.budget import Budget, BudgetLease
from tenants.models.credential import MachineConsole, NamespaceCredential
from tenants.models.event import ChainHead, Checkpoint, Event, IdempotencyRecord, Outbox
from tenants.models.inventory import Finding, GpuDevice, Host, MigDevice, Provider, ProviderCredential
from tenants.models.ledger import Hold, UnitSize, UsageRecord, UsageSubject
from tenants.models.notification import (
    Delivery,
    DeliveryAttempt,
    FanoutCursor,
    Notification,
    NotificationMark,
    NotificationPreference,
    OutboxMail,
    Webhook,
)
from tenants.models.people import ApiToken, Person, PlatformMembership, ServiceAccount
from tenants.models.pricing import Price, PriceList
from tenants.models.product import (
    Endpoint,
    EndpointKey,
    EndpointUsage,
    GatewayReplica,
    GatewayUsage,
    Machine,
    Move,
    Namespace,
    Revision,
    Rollout,
    ServedModel,
)
from tenants.models.quota import (
    AutoApprovalRule,
    Decision,
    Delegation,
    Quota,
    Request,
    RequestComment,
    RequestStage,
)
from tenants.models.reconciled import Intent, Reconciled
from tenants.models.serving import FitCorrection, FitMeasurement, ModelStage
from tenants.models.serving_look import AddressCheck, Benchmark, EndpointLog, EndpointMinute
from tenants.models.ssh import SshAuthority, SshCertificate
from tenants.models.system import SystemReport
from tenants.models.tenant import Membership, Suspension, Tenant
from tenants.models.usage_days import UsageChange, UsageDay, UsageRollup, UsageStanding
from tenants.models.vlan import Vlan
from tenants.models.work import HostPlan, Notice

__all__ = [
    "AccountLink",
    "AddressCheck",
    "Allocation",
    "ApiToken",
    "AutoApprovalRule",
    "Benchmark",
    "Boundary",
    "Budget",
    "BudgetLease",
    "ChainHead",
    "Checkpoint",
    "Decision",
    "Delegation",
    "Delivery",
    "DeliveryAttempt",
    "Endpoint",
    "EndpointKey",
    "EndpointLog",
    "EndpointMinute",
    "EndpointUsage",
    "Event",
    "FanoutCursor",
    "Finding",
    "FitCorrection",
    "FitMeasurement",
    "GatewayReplica",
    "GatewayUsage",
    "GpuDevice",
    "Hold",
    "Host",
    "HostPlan",
    "IdempotencyRecord",
    "Intent",
    "Machine",
    "MachineConsole",
    "Membership",
    "MigDevice",
    "ModelStage",
    "Move",
    "Namespace",
    "NamespaceCredential",
    "Notice",
    "Notification",
    "NotificationMark",
    "NotificationPreference",
    "Outbox",
    "OutboxMail",
    "Person",
    "PlatformMembership",
    "Price",
    "PriceList",
    "Provider",
    "ProviderCredential",
    "Quota",
    "QuotaCharge",
    "Reconciled",
    "Request",
    "RequestComment",
    "RequestStage",
    "Revision",
    "Rollout",
    "ServedModel",
    "ServiceAccount",
    "SshAuthority",
    "SshCertificate",
    "Suspension",
    "SystemReport",
    "Tenant",
    "Unit",
    "UnitSize",
    "UsageChange",
    "UsageDay",
    "UsageRecord",
    "UsageRollup",
    "UsageStanding",
    "UsageSubject",
    "Vlan",
    "Webhook",
]

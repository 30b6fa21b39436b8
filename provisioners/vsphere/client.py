"""The only door to a vCenter: references and plain values out, a deadline on every call, every failure a `DriverError`.

One session per client, made at the first call, repaired when vCenter has forgotten it, ended by `close`. Reads go
through the property collector with leaf paths, several kinds in one call; a task is asked, never waited for.

Invariants: a call is sent once: only reads are repeated after a new login; nothing of pyVmomi leaves but values of
properties and the managed objects that `managed` makes for a step; certificates are always checked. Managed objects
die with no session: a reference (`vm-42`) is good as long as the vCenter's inventory (`instance_uuid`).
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from xml.parsers.expat import ExpatError

from pyVim.connect import SmartStubAdapter
from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import ManagedObject

from provisioners.driver import DriverError
from provisioners.vsphere.failures import TRANSPORT, TRUST, WRONG_LOGIN, SessionLost, distrusted, error_of, fault_of
from provisioners.vsphere.settings import Settings

_LONGEST_VERSIONS: Final = 65_536
_OTHER_NAME: Final = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h."""
_Collector: Final = vmodl.query.PropertyCollector
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, order=True)
class MoRef:
    """A managed object by kind and id; may be pickled and stored."""

    kind: str
    """API name: `VirtualMachine`."""
    id: str
    """`vm-42`; unique within one vCenter only."""


@dataclass(frozen=True, slots=True)
class Found:
    """One object as read."""

    ref: MoRef
    values: Mapping[str, Any]
    """Path → value; a path that is not set is absent."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Path → name of the fault, for what could not be read: commonly `NoPermission`."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a task says of itself."""

    state: str
    """`queued`, `running`, `success`, `error`; `unknown` for one that vCenter has forgotten: look at the inventory."""
    error: DriverError | None = None
    result: Any = None
    """References are `MoRef`s."""
    entity: MoRef | None = None

    @property
    def is_over(self) -> bool:
        """Whether it ended, one way or the other."""
        return self.state in {"success", "error"}


@dataclass(slots=True)
class _Session:
    si: Any
    content: Any
    """The service content as read at the login: asking `si` for it is a call each time."""
    views: dict[tuple[MoRef | None, frozenset[str]], Any] = field(default_factory=dict)


class VCenterClient:
    """A connection to one vCenter; threads may share it, processes may not."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected yet."""
        self.settings = settings
        self._session: _Session | None = None
        self._lock = threading.Lock()
        self.logins = 0
        """How often it logged in: what was remembered under another number may be of another inventory."""

    # --- reading ----------------------------------------------------------------------------------

    def about(self) -> Mapping[str, str]:
        """Return `instance_uuid`, `version`, `api_version`, `full_name`."""

        def read(session: _Session) -> Mapping[str, str]:
            told = session.content.about
            return {
                "instance_uuid": str(told.instanceUuid),
                "version": str(told.version),
                "api_version": str(told.apiVersion),
                "full_name": str(told.fullName),
            }

        return self.reading(read)

    def rows(self, wanted: Mapping[str, Sequence[str]], *, root: MoRef | None = None) -> dict[str, tuple[Found, ...]]:
        """Read every object of some kinds: API name → dotted leaf paths; calls do not grow with the objects.

        `root` is a folder, datacenter, cluster or pool to look below; the whole inventory unless given. Never ask for
        `runtime`, `summary` or `config` as a whole: decoding them is what a read costs.
        """

        def read(session: _Session) -> dict[str, tuple[Found, ...]]:
            key = (root, frozenset(wanted))
            if key not in session.views:
                types = [_type(kind) for kind in sorted(wanted)]
                below = session.content.rootFolder if root is None else _managed(root, session.si)
                session.views[key] = session.content.viewManager.CreateContainerView(below, types, True)
            view = session.views[key]
            walk = _Collector.TraversalSpec(name="view", type=type(view), path="view", skip=False)
            spec = _Collector.FilterSpec(
                objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
                propSet=[
                    _Collector.PropertySpec(type=_type(kind), pathSet=list(paths)) for kind, paths in wanted.items()
                ],
            )
            found: dict[str, list[Found]] = {kind: [] for kind in wanted}
            for one in self._pages(session, spec):
                if one.ref.kind in found:  # not a kind below one that was asked for: a StoragePod is a Folder
                    found[one.ref.kind].append(one)
            return {kind: tuple(ones) for kind, ones in found.items()}

        return self.reading(read)

    def get(self, ref: MoRef, *paths: str) -> Mapping[str, Any] | None:
        """Read one object; None only when vCenter says that exactly this one is not there."""

        def read(session: _Session) -> Mapping[str, Any] | None:
            managed = _managed(ref, session.si)
            spec = _Collector.FilterSpec(
                objectSet=[_Collector.ObjectSpec(obj=managed)],
                propSet=[_Collector.PropertySpec(type=type(managed), pathSet=list(paths))],
            )
            try:
                return next(self._pages(session, spec)).values
            except vmodl.fault.ManagedObjectNotFound as gone:
                if gone.obj is not None and gone.obj._moId == ref.id:
                    return None
                raise

        return self.reading(read)

    def many(self, refs: Sequence[MoRef], *paths: str) -> tuple[Found, ...]:
        """Read several objects of one kind in one call. Raises `LookFirst` where one of them has gone."""
        if not refs:
            return ()

        def read(session: _Session) -> tuple[Found, ...]:
            spec = _Collector.FilterSpec(
                objectSet=[_Collector.ObjectSpec(obj=_managed(ref, session.si)) for ref in refs],
                propSet=[_Collector.PropertySpec(type=_type(refs[0].kind), pathSet=list(paths))],
            )
            return tuple(self._pages(session, spec))

        return self.reading(read)

    def task(self, task_id: str) -> TaskState:
        """Ask a task how far it is; does not wait."""
        told = self.get(MoRef("Task", task_id), "info.state", "info.error", "info.result", "info.entity")
        if told is None:
            return TaskState("unknown")
        error = told.get("info.error")
        return TaskState(
            state=str(told["info.state"]),
            error=None if error is None else _converted(error),
            result=_plain(told.get("info.result")),
            entity=_plain(told.get("info.entity")),
        )

    def _pages(self, session: _Session, spec: Any) -> Iterator[Found]:
        collector = session.content.propertyCollector
        options = _Collector.RetrieveOptions(maxObjects=self.settings.page)
        page = collector.RetrievePropertiesEx([spec], options)
        while page:
            for one in page.objects:
                unread = {gap.path: type(gap.fault).__name__.rpartition(".")[2] for gap in one.missingSet or ()}
                yield Found(_ref(one.obj), {prop.name: prop.val for prop in one.propSet}, unread)
            page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None

    # --- calling ----------------------------------------------------------------------------------

    def reading(self, read: Callable[[Any], _T]) -> _T:
        """Run a read with the session; once more after a new login, for a read may be repeated.

        Raises `DriverError`s only.
        """
        try:
            return self._once(read)
        except SessionLost:
            return self._once(read)

    def changing(self, change: Callable[[Any], _T]) -> _T:
        """Run a call that changes something, given the service instance: once, whatever happens.

        `SessionLost` says that it was not carried out; `LookFirst` that nobody knows. Raises `DriverError`s only.
        """
        return self._once(lambda session: change(session.si))

    def start(self, change: Callable[[Any], Any]) -> str:
        """Run a call that starts a task and return the task's id: store it before anything else is done."""
        return str(self.changing(change)._moId)

    def _once(self, work: Callable[[_Session], _T]) -> _T:
        session = self._connected()
        try:
            return work(session)
        except (vmodl.MethodFault, OSError, http.client.HTTPException) as fault:
            error = _converted(fault)
        except Exception as unread:
            if not _is_unreadable(unread):
                raise
            # the answer came and holds what pyVmomi does not know: whatever was asked for may have been done
            error = error_of(TRANSPORT, f"an answer that cannot be read: {type(unread).__name__}: {unread}")
        if fault_of(error) in {"NotAuthenticated", TRANSPORT}:
            self._forget(session)
        raise error from None

    # --- the session ------------------------------------------------------------------------------

    def _connected(self) -> _Session:
        with self._lock:
            if self._session is None:
                self._session = self._login()
                self.logins += 1
            return self._session

    def _login(self) -> _Session:
        settings = self.settings
        stub = None
        try:
            context = context_of(settings)
            _probe(settings, context)
            stub = SmartStubAdapter(
                host=settings.host,
                port=settings.port,
                sslContext=context,
                httpConnectionTimeout=settings.call_deadline_s,
            )
            si = vim.ServiceInstance("ServiceInstance", stub)
            content = si.RetrieveContent()
            content.sessionManager.Login(settings.user, settings.password.reveal(), None)
            return _Session(si, content)
        except (vmodl.MethodFault, OSError, http.client.HTTPException) as fault:
            error = _converted(fault)
            if isinstance(fault, ssl.SSLCertVerificationError):
                setting, why = _why_distrusted(settings, fault)
                error = distrusted(f"{setting}: {why}", fault.verify_message)
                error.field = f"config.{setting}"
        if stub is not None:
            stub.DropConnections()
        if fault_of(error) == TRUST:
            error.raw += _shown(settings)
        elif fault_of(error) == WRONG_LOGIN:
            error.field = "secret.password"
        raise error from None

    def _forget(self, session: _Session) -> None:
        """Let the next call log in anew; views died with the session."""
        with self._lock:
            if self._session is session:
                self._session = None
        session.si._stub.DropConnections()

    def close(self) -> None:
        """Log out; vCenter counts sessions."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(vmodl.MethodFault, OSError, http.client.HTTPException):
                session.content.sessionManager.Logout()
            session.si._stub.DropConnections()


def managed(ref: MoRef, si: Any) -> Any:
    """Return the object of a reference, for a call inside `changing`; nothing is asked yet."""
    return _managed(ref, si)


def reference(found: Any) -> MoRef:
    """Return the reference of a managed object that a read gave out."""
    return _ref(found)


def _managed(ref: MoRef, si: Any) -> Any:
    return _type(ref.kind)(ref.id, si._stub)


def _type(kind: str) -> Any:
    return getattr(vim, kind, None) or getattr(vim.dvs, kind)


def _ref(found: Any) -> MoRef:
    return MoRef(type(found)._wsdlName, found._moId)


def _plain(value: Any) -> Any:
    return _ref(value) if isinstance(value, ManagedObject) else value


def _converted(fault: BaseException) -> DriverError:
    if isinstance(fault, vmodl.MethodFault):
        texts = [fault.msg or "", *(one.message or "" for one in fault.faultMessage or ())]
        return error_of(type(fault).__name__.rpartition(".")[2], *texts)
    if isinstance(fault, ssl.SSLCertVerificationError):
        return error_of(TRUST, fault.verify_message)
    return error_of(TRANSPORT, f"{type(fault).__name__}: {fault}")


def _is_unreadable(error: Exception) -> bool:
    """Whether pyVmomi gave up on an answer: it raises what its tables raise, for each kind of surprise another."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    module = "" if at is None else str(at.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, ExpatError) or module.startswith("pyVmomi.")


def _probe(settings: Settings, context: ssl.SSLContext) -> None:
    """Ask for the versions that a vCenter speaks, with the deadline that pyVmomi's own question has not.

    Raises `OSError` and `HTTPException`.
    """
    asked = http.client.HTTPSConnection(settings.host, settings.port, timeout=settings.call_deadline_s, context=context)
    try:
        asked.request("GET", "/sdk/vimServiceVersions.xml")
        answer = asked.getresponse()
        if answer.status != http.HTTPStatus.OK or b"urn:vim25" not in answer.read(_LONGEST_VERSIONS):
            raise http.client.HTTPException(f"no vCenter answers: status {answer.status}")
    finally:
        asked.close()


def _shown(settings: Settings) -> str:
    """Return the thumbprint of the certificate that is shown, for an operator to compare; `""` where there is none."""
    try:
        shown = ssl.get_server_certificate((settings.host, settings.port), timeout=settings.call_deadline_s)
    except OSError:
        return ""
    return f"; the certificate shown has SHA-256 {hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest()}"


def _why_distrusted(settings: Settings, fault: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Return the setting that a person looks at first, and why the certificate is not trusted."""
    if settings.thumbprint:
        return "thumbprint", "the certificate of vCenter is another one; compare it with the one shown, write it anew"
    if fault.verify_code in _OTHER_NAME:
        return "url", f"the certificate of vCenter is not for {settings.host}; write the address as it has it"
    return "ca_pem", "the certificate of vCenter is not one that we trust; give the certificate of its CA"


def context_of(settings: Settings) -> ssl.SSLContext:
    """Return what checks the certificate: the given CA, the machine's own, or exactly the pinned one.

    Raises `ssl.SSLCertVerificationError` for a certificate that is not the pinned one, `OSError` without an answer.
    """
    if not settings.thumbprint:
        return ssl.create_default_context(cadata=settings.ca_pem or None)
    address = (settings.host, settings.port)
    shown = ssl.get_server_certificate(address, timeout=settings.call_deadline_s)
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest() != settings.thumbprint:
        error = ssl.SSLCertVerificationError(1, "the certificate has another thumbprint")
        error.verify_message = "the certificate has another thumbprint"
        raise error
    # the certificate itself is all that is trusted: another one fails in the handshake of every connection
    context = ssl.create_default_context(cadata=shown)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context

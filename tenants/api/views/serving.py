"""Looking at an endpoint: the end of its log, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.serving import AddressOut, BenchmarkIn, BenchmarkOut, LogIn, LogOut
from tenants.api.views.base import Call, reads, writes
from tenants.api.views.endpoints import OfEndpoint
from tenants.errors import NotVisible
from tenants.models import Benchmark, EndpointLog
from tenants.operations import benchmarks, endpoint_logs

BenchmarkPage = page_of(BenchmarkOut)


class Address(OfEndpoint):
    """The address of one endpoint."""

    @reads("endpoint-addresses.read", answers=AddressOut)
    def get(self, call: Call) -> Out:
        """Read the endpoint's address, the record with which it leads there, and whether it was reached from outside.

        It is looked at as a caller would, each minute until all is well, then every ten minutes.
        """
        return AddressOut.of(call.target)


class LogView(OfEndpoint):
    """The log of what serves one endpoint."""

    def rows(self, call: Call) -> QuerySet[EndpointLog]:
        """Return what was asked for of the endpoint."""
        return EndpointLog.objects.filter(endpoint=call.target).select_related("endpoint")

    def show(self, row: EndpointLog, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return an asking with its lines, where they have been read."""
        return LogOut.of(row)


class Logs(LogView):
    """Asking for a log."""

    @writes("endpoints.log", body=LogIn, answers=LogOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Ask for the newest lines of what serves the endpoint; read them at their own address some moments later."""
        return endpoint_logs.ask(endpoint=call.target, tail=call.body.tail, actor=call.actor, now=call.now)


class LogItem(LogView):
    """One asking for a log."""

    @reads("endpoints.read_log", answers=LogOut)
    def get(self, call: Call) -> Any:
        """Read lines that were asked for; they are gone five minutes after the asking."""
        try:
            key = UUID(call.path["log"])
        except ValueError as error:
            raise NotVisible from error
        found = self.rows(call).filter(pk=key).first()
        if found is None:
            raise NotVisible
        return found


class BenchmarkView(OfEndpoint):
    """Benchmarks of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Benchmark]:
        """Return the endpoint's benchmarks."""
        return Benchmark.objects.filter(endpoint=call.target).select_related("endpoint")

    def show(self, row: Benchmark, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a benchmark."""
        return BenchmarkOut.of(row)

    def again(self, row: Any, call: Call) -> Any:
        """Return the benchmark read anew."""
        return self.rows(call).get(pk=row.pk)

    def named(self, call: Call) -> Benchmark:
        """Return the benchmark that the path names, by short id or id. Raises `NotVisible`."""
        key = call.path["benchmark"]
        found = self.rows(call).filter(short_id=key).first()
        if found is None:
            try:
                found = self.rows(call).filter(pk=UUID(key)).first()
            except ValueError:
                found = None
        if found is None:
            raise NotVisible
        return found


class Benchmarks(BenchmarkView):
    """Benchmarks of one endpoint."""

    @reads("benchmarks.list", answers=BenchmarkPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List benchmarks, with what came of them."""
        return self.page(call, self.rows(call), BenchmarkPage)

    @writes("endpoints.benchmark", body=BenchmarkIn, answers=BenchmarkOut, status=201)
    def post(self, call: Call) -> Any:
        """Put a bounded load on the endpoint through its own address, and measure it.

        A worker does it, with a key that ends with it. It counts, costs and is limited like any other call of the
        tenant, and slows down others while it lasts. One at a time.
        """
        return benchmarks.ask(endpoint=call.target, load=call.body.asked(), actor=call.actor, now=call.now)


class BenchmarkItem(BenchmarkView):
    """One benchmark."""

    @reads("benchmarks.read", answers=BenchmarkOut)
    def get(self, call: Call) -> Any:
        """Read a benchmark: how far it is, or what came of it."""
        return self.named(call)


class BenchmarkCancel(BenchmarkView):
    """Ending one."""

    found: Benchmark

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant, endpoint and benchmark."""
        super().locate(declared, call)
        self.found = self.named(call)

    @writes("endpoints.cancel_benchmark", answers=BenchmarkOut)
    def post(self, call: Call) -> Any:
        """End a benchmark now; what it measured so far is kept."""
        return benchmarks.cancel(benchmark=self.found, actor=call.actor, now=call.now)

"""The estate's pages over 10,000 GPUs: bytes, statements, time of the server, first paint.

    python -m tests.benchmarks.estate [--gpus 10000] [--chromium /usr/bin/chromium]

Starts a PostgreSQL of its own with production settings, fills it by SQL with hosts of eight GPUs at three sites, about
two thirds taken, and asks for the pages as an auditor through Django's client in this process. Bytes are uncompressed:
the page, and its style sheets and scripts. First paint is Chromium's own figure, with the server's time in it; without
Chromium it is left out. Single readings: compare the rows of one run.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import claims, stage

SITES = ("berlin", "munich", "oslo")
LAYOUTS: tuple[tuple[int, tuple[tuple[int, int, str], ...]], ...] = (
    (30, ()),
    (28, ((0, 8, ""),)),
    (12, ((4, 4, "3g.40gb"), (0, 2, "2g.20gb"))),
    (10, ((0, 1, "1g.10gb"), (1, 1, "1g.10gb"), (2, 1, "1g.10gb"), (6, 1, "1g.10gb"))),
    (10, ((0, 4, "4g.40gb"),)),
    (10, ((0, 2, "2g.20gb"), (2, 2, "2g.20gb"), (4, 2, "2g.20gb"))),
)
"""Weight → windows (start, size, profile) of one GPU."""
TENANTS = 40
READINGS = 7
MOST_BYTES = 300_000


def occupy(server: Any, database: str) -> tuple[int, int]:
    """Spread hosts over three sites and take about two thirds of them; return how many tenants' windows and others."""
    rng = random.Random(11)
    with server.connect(database=database) as connection:
        for site in SITES[1:]:
            connection.execute(
                "INSERT INTO tenants_provider SELECT (jsonb_populate_record(p, jsonb_build_object("
                "'id', gen_random_uuid(), 'name', %s::text, 'site', %s::text, 'short_id', app_short_id('pr')))).*"
                " FROM tenants_provider p WHERE name = 'bench'",
                [f"{site}-k8s", site],
            )
        connection.execute("UPDATE tenants_provider SET name = 'berlin-k8s', site = 'berlin' WHERE name = 'bench'")
        providers = [
            connection.execute("SELECT id FROM tenants_provider WHERE site = %s", [site]).fetchone()[0]
            for site in SITES
        ]
        hosts = [row[0] for row in connection.execute("SELECT id FROM tenants_host ORDER BY id").fetchall()]
        tenants = [r[0] for r in connection.execute("SELECT id FROM tenants_tenant WHERE name LIKE 't%'").fetchall()]
        devices = connection.execute(
            "SELECT id, host_id, number FROM tenants_gpudevice ORDER BY host_id, index"
        ).fetchall()
        place = {host: number * len(SITES) // len(hosts) for number, host in enumerate(hosts)}
        for number, host in enumerate(hosts):
            connection.execute(
                "UPDATE tenants_host SET provider_id = %s, name = %s, state = %s, placeable = %s WHERE id = %s",
                [
                    providers[place[host]], f"gpu-{SITES[place[host]]}-{number:04d}",
                    "cordoned" if number % 50 == 7 else "open", number % 50 != 7, host,
                ],
            )  # fmt: skip
        connection.execute(
            "UPDATE tenants_gpudevice d SET provider_id = h.provider_id, placeable = h.placeable"
            " FROM tenants_host h WHERE h.id = d.host_id"
        )
        taken, kept = _windows(rng, devices, tenants)
        _write(connection, taken, kept)
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")
    return len(taken), len(kept)


def _windows(rng: random.Random, devices: list[Any], tenants: list[Any]) -> tuple[list[Any], list[Any]]:
    weights = [weight for weight, _windows in LAYOUTS]
    taken, kept = [], []
    for device, host, number in devices:
        chance = rng.random()
        if chance < 0.04:
            kind = "foreign" if chance < 0.02 else "fault" if chance < 0.03 else "maintenance"
            kept.append((device, host, number, 0, 8, kind))
            continue
        for start, size, profile in rng.choices(LAYOUTS, weights)[0][1]:
            taken.append((device, host, number, start, size, profile, rng.choice(tenants)))
    return taken, kept


def _write(connection: Any, taken: list[Any], kept: list[Any]) -> None:
    """Write windows with their allocations and units: rows as the ledger leaves them, by COPY."""
    connection.execute(
        "CREATE TEMP TABLE w (device uuid, host uuid, number bigint, start int, size int, kind text, profile text,"
        " tenant uuid, allocation uuid DEFAULT gen_random_uuid(), unit uuid DEFAULT gen_random_uuid(), n serial)"
    )
    into = "COPY w (device, host, number, start, size, kind, profile, tenant) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(into) as copy:
        for device, host, number, start, size, profile, tenant in taken:
            copy.write_row((device, host, number, start, size, "tenant", profile, tenant))
        for device, host, number, start, size, kind in kept:
            copy.write_row((device, host, number, start, size, kind, "", None))
    connection.execute(
        "INSERT INTO tenants_allocation (id, tenant_id, name, product_kind, spec, demand, priority, service_class,"
        " on_shortage, duration_s, labels, description, managed_by, created_at, version, generation,"
        " observed_generation, conditions, phase, failures, lease_owner, lease_epoch, fingerprint, observed,"
        " finalizers) SELECT allocation, tenant, 'a' || n, 'bare', '{}', '{}', 'standard', 'standard', 'fail', 86400,"
        " '{}', '', 'api', now(), 1, 1, 1, '[]', 'Ready', 0, '', 0, '', '{}', '{}' FROM w WHERE kind = 'tenant'"
    )
    connection.execute(
        "INSERT INTO tenants_unit (id, tenant_id, allocation_id, index, role, product, profile, gpu_count, vcpu,"
        " memory_gib, spread_group, host_id, placed_at, avoid_hosts) SELECT unit, tenant, allocation, 0, 'replica',"
        " 'H100-80GB', profile, CASE profile WHEN '' THEN 1 ELSE 0 END, 1, 1, '', host, now(), '[]'"
        " FROM w WHERE kind = 'tenant'"
    )
    connection.execute(
        "INSERT INTO tenants_hold (id, kind, device_id, host_id, device_number, start, size, slots, during, media,"
        " profile, tenant_id, unit_id, settled, vcpu, memory_gib, note) SELECT gen_random_uuid(), kind, device, host,"
        " number, start, size, int8range(number * 16 + start, number * 16 + start + size),"
        " tstzrange(now() - interval '1 day', NULL), false, profile, tenant,"
        " CASE kind WHEN 'tenant' THEN unit END, true, 1, 1, '' FROM w"
    )
    connection.execute(
        "UPDATE tenants_gpudevice d SET free = 255 & ~x.taken, healthy = NOT x.broken FROM (SELECT device,"
        " bit_or(((1 << size) - 1) << start) AS taken, bool_or(kind = 'fault') AS broken FROM w GROUP BY device) x"
        " WHERE x.device = d.id"
    )
    connection.execute(
        "UPDATE tenants_host h SET empty_gpus = g.empty FROM (SELECT host_id, count(*) FILTER (WHERE removed_at IS NULL"
        " AND free = (1 << slots) - 1) AS empty FROM tenants_gpudevice GROUP BY host_id) g WHERE g.host_id = h.id"
    )


def assets(body: str) -> dict[str, int]:
    """Return address → bytes of the style sheets and scripts of a page."""
    from django.contrib.staticfiles import finders

    found = {}
    for url in re.findall(r'(?:<script[^>]* src|<link rel="stylesheet" href)="/static/([^"?]+)', body):
        path = finders.find(url)
        if path is None:
            raise SystemExit(f"the page names {url}, which is not there")
        found[url] = Path(str(path)).stat().st_size
    return found


def measure(browser: Any, path: str, *, most: int = 0) -> None:
    """Print one row. Raises `SystemExit` when the page is larger than `most`."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    browser.get(path)
    spent = []
    for _ in range(READINGS):
        start = time.perf_counter()
        answer = browser.get(path)
        spent.append((time.perf_counter() - start) * 1000)
    with CaptureQueriesContext(connection) as queries:
        browser.get(path)
    body = answer.content.decode()
    others = assets(body)
    total = len(answer.content) + sum(others.values())
    slowest = max(queries.captured_queries, key=lambda each: float(each["time"]))
    print(
        f"  {path:<28} {answer.status_code}  {statistics.median(spent):6.0f} ms  {len(queries):>3} statements"
        f" (slowest {float(slowest['time']) * 1000:.0f} ms)  html {len(answer.content):>7,}"
        f" + css, js {sum(others.values()):>7,} = {total:>7,} bytes",
        flush=True,
    )
    if most and total > most:
        raise SystemExit(f"{path} is {total} bytes, more than {most}")


def paint(browser: Any, path: str, chromium: str, picture: str) -> None:
    """Print first paint in Chromium, its requests being answered by Django's client."""
    from django.contrib.staticfiles import finders
    from playwright.sync_api import Route, sync_playwright

    answers: dict[str, tuple[bytes, str]] = {}

    def ask(address: str) -> tuple[bytes, str]:
        started = time.perf_counter()
        answer = browser.get(address)
        served.append((time.perf_counter() - started) * 1000)
        return answer.content, answer["Content-Type"]

    def answered(route: Route) -> None:
        address = re.sub(r"^https?://[^/]+", "", route.request.url)
        if address == path:
            body, kind = answers.pop("page")
        elif address.startswith("/static/"):
            found = finders.find(address.removeprefix("/static/").partition("?")[0])
            body = Path(str(found)).read_bytes()
            kind = {"css": "text/css", "js": "text/javascript"}.get(address.rsplit(".", 1)[-1], "image/svg+xml")
        else:
            route.fulfill(status=204)
            return
        route.fulfill(body=body, headers={"Content-Type": kind})

    served: list[float] = []
    readings = []
    answers["page"] = ask(path)  # before the browser's loop runs: Django's connections are of this thread
    page_answer = answers["page"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            answers["page"] = page_answer
            context = chrome.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            page.route("**/*", answered)
            page.goto(f"http://tenantry.test{path}")
            page.wait_for_function("performance.getEntriesByType('paint').length > 0")
            readings.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            if picture:
                page.screenshot(path=picture, full_page=True)
            context.close()
        chrome.close()
    print(
        f"  {path:<28} first contentful paint {statistics.median(readings):.0f} ms after the browser asked,"
        f" + {served[0]:.0f} ms of the server",
        flush=True,
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--picture", default="", help="keep a screenshot of the map there")
    options = parser.parse_args()
    with stage.server() as server:
        stage.migrated(server, "bench")
        claims.fill(server, "bench", options.gpus, TENANTS)
        taken, kept = occupy(server, "bench")
        stage.enter(server, "bench", superuser=True)
        from django.db import connection
        from django.test import Client

        from tenants.models import GpuDevice, Host
        from tenants.states import PlatformRole
        from tests import factories

        print(f"  {Host.objects.count():,} hosts, {GpuDevice.objects.count():,} GPUs, {taken + kept:,} windows kept")
        browser = Client(headers={"accept": "text/html"})
        browser.force_login(factories.person(platform=(PlatformRole.AUDITOR,)), backend="tenants.login.PersonBackend")
        host, gpu = Host.objects.order_by("pk").first(), GpuDevice.objects.order_by("number").first()
        assert host is not None
        assert gpu is not None
        measure(browser, "/ops/estate", most=MOST_BYTES)
        for path in ("/ops/estate?tenant=t1", "/ops/estate?site=oslo", "/ops/hosts", "/ops/hosts?state=free"):
            measure(browser, path)
        measure(browser, f"/ops/hosts/{host.short_id}")
        measure(browser, f"/ops/gpus/{gpu.short_id}")
        if Path(options.chromium).exists():
            paint(browser, "/ops/estate", options.chromium, options.picture)
        connection.close()


if __name__ == "__main__":
    main()

"""`make screens`: a picture of every page that people of the demo reach, in light and dark, wide and on a phone.

    python -m scripts.screens [--url http://127.0.0.1:8420] [--out FOLDER] [--only PART] [--who mia,ana]

Looks at the demo at `--url`, else at the one that runs on this machine, else it starts a small one and stops it
again. Changes nothing there but the persona it plays. Pictures and an `index.html` go to `--out`, outside the
checkout. Needs Debian's chromium and the packages of the test group.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

ROOT: Final = Path(__file__).resolve().parents[1]
CHROMIUM: Final = "/usr/bin/chromium"
VISITOR: Final = "visitor"
PEOPLE: Final = ("mia", "omar", "ana", "ole", "aud", VISITOR)
"""The demo's personas, in the order in which a page is theirs."""
SIZES: Final = {"wide": (1440, 900), "phone": (390, 844)}
SCHEMES: Final = ("light", "dark")
HEAD: Final = """<!doctype html><meta charset="utf-8"><title>Pages of Tenantry</title>
<style>body { font: 14px system-ui; margin: 2rem } img { width: 24%; border: 1px solid #8888 }</style>
"""
STARTED: Final = "Ctrl-C stops everything"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.screens", description="A picture of every page.")
    parser.add_argument("--url", default="")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "tenantry-screens")
    parser.add_argument("--only", default="", help="part of a route: these pages alone")
    parser.add_argument("--who", default=",".join(PEOPLE), help="personas, with commas between them")
    options = parser.parse_args(arguments)
    if not Path(CHROMIUM).exists():
        print(f"{CHROMIUM} is not installed: apt-get install chromium", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with demo(options.url) as base:
        print(f"pictures of {base}", flush=True)
        taken = take(base, options.out, options.only, options.who.split(","))
    print(f"{len(taken)} pages: {index(options.out, taken)}")
    return 0 if taken else 1


@contextmanager
def demo(url: str) -> Iterator[str]:
    """Yield the base URL of a demo: the given one, the one that runs here, or one that is started for this."""
    from controlplane.embedded.installation import Installation

    base = url or Installation.load(os.environ).public_url
    if url or _answers(base):
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="tenantry-screens-") as folder:
        Path(folder).chmod(0o755)
        env = {**os.environ, "TENANTRY_STATE_DIR": folder, "DEMO": "small"}
        command = [sys.executable, "-m", "controlplane.embedded", "demo"]
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        try:
            yield _started(child)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def _started(child: subprocess.Popen[str]) -> str:
    base = ""
    for line in child.stdout or ():
        print(f"  {line}", end="", flush=True)
        if found := re.search(r"control plane\s+(http://\S+)", line):
            base = found[1]
        if STARTED in line:
            return base
    raise RuntimeError("the demo ended before it was ready")


def _answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/personas", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def take(base: str, out: Path, only: str, people: Sequence[str]) -> list[tuple[str, str, str]]:
    """Write four pictures of each page; return (person, route, name of its files) of each."""
    os.environ.setdefault("TENANTRY_PROCESS", "owner")
    os.environ.setdefault("TENANTRY_SECRET_KEY", "only-to-read-the-list-of-addresses-of-this-version")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    import django
    from playwright.sync_api import sync_playwright

    django.setup()
    taken: list[tuple[str, str, str]] = []
    known: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for who in people:
            context = browser.new_context(base_url=base, reduced_motion="reduce")
            page = context.new_page()
            if who != VISITOR:
                page.goto("/personas")
                page.locator(f"main button[name=persona][value={who}]").click()
                page.wait_for_load_state()
            for route, path in _pages(context, who):
                if route in known or only not in route:
                    continue
                known.add(route)
                name = f"{len(taken):02d}-{re.sub('[^a-z0-9]+', '-', route.lower()).strip('-') or 'home'}.{who}"
                _shoot(page, path, out, name)
                taken.append((who, route, name))
                print(f"  {who:<8} {path}", flush=True)
            context.close()
        browser.close()
    return taken


def _pages(context: Any, who: str) -> list[tuple[str, str]]:
    """Return (route, path) of each page that a person reaches."""
    from scripts.crawl import ENTRANCES, STARTS, Answer, Crawl, richest

    def fetch(path: str) -> Answer:
        answer = context.request.get(path, max_redirects=0, fail_on_status_code=False)
        kind = answer.headers.get("content-type", "").split(";")[0]
        return Answer(
            answer.status,
            kind,
            answer.text() if kind == "text/html" else "",
            answer.headers.get("location", ""),
        )

    found = richest(Crawl(fetch).walk(ENTRANCES if who == VISITOR else STARTS))
    return [(route, page.path) for route, page in found.items()]


def _shoot(page: Any, path: str, out: Path, name: str) -> None:
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.goto(path)
            page.screenshot(path=out / f"{name}.{size}-{scheme}.png", full_page=True)


def index(out: Path, taken: Sequence[tuple[str, str, str]]) -> Path:
    """Write the page that shows all pictures; return where it is."""
    parts = [HEAD]
    for who, route, name in taken:
        files = [f"{name}.{size}-{scheme}.png" for size in SIZES for scheme in SCHEMES]
        images = "".join(f'<a href="{file}"><img src="{file}" alt="{file}" loading="lazy"></a> ' for file in files)
        parts.append(f"<h2>/{html.escape(route)} · {who}</h2>{images}")
    file = out / "index.html"
    file.write_text("\n".join(parts))
    return file


if __name__ == "__main__":
    sys.exit(main())

"""The golden path, walked live: ask → second person decides → hold → boundary → gateway → answer → all given back.

Twice: an endpoint in a namespace, and one in a VM. Uses nothing but the REST API, as the demo's people, and the
endpoint's own address. The estate behind it is simulated, and the walk says so. Called by `make demo`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.text import Text

from controlplane.cli.cells import why
from controlplane.cli.client import Client, Json, pause
from controlplane.cli.failures import ApiProblem, CliError
from controlplane.cli.words import chat_command

TENANT: Final = "aurora"
MEMBER, OWNER, APPROVER, OPERATOR = (f"{name}@demo.test" for name in ("mia", "omar", "ana", "ole"))
LIMIT_S: Final = 60.0
"""From the submit to the first answer, human steps aside."""
PATIENCE_S: Final = 150.0
LOOK_S: Final = 0.4
KEYS_STOP_S: Final = 5.0
SMALLEST_STREAM: Final = 3
"""Events of a streamed answer: at least the role, one token, the end."""


class WalkFailed(Exception):
    """The path ended before its end."""


@dataclass(frozen=True, slots=True)
class Route:
    """One of the two walks."""

    title: str
    name: str
    provider: str
    gpu: str
    """`<product>/<profile>`."""
    kind: str = "namespace"


PATHS: Final = (
    Route("an endpoint in a namespace", "hello-ns", "k8s-sim", "H100-80GB/2g.20gb"),
    Route("an endpoint in a VM", "hello-vm", "vsphere-sim", "A100-80GB/3g.40gb", kind="vm"),
)


@dataclass
class Timeline:
    """Prints what happens, each line with the seconds since its walk began."""

    console: Console
    began: float = field(default_factory=time.monotonic)

    def title(self, text: str) -> None:
        """Begin a walk."""
        self.console.print()
        self.console.print(Text(text, style="bold"))
        self.began = time.monotonic()

    def say(self, who: str, text: str, *, style: str = "") -> None:
        """Print one line: who does what."""
        line = Text(f"{time.monotonic() - self.began:7.1f} s  ", style="bright_black")
        line.append(f"{who:<10}", style="cyan")
        line.append(text, style=style)
        self.console.print(line)

    def plain(self, text: str = "", *, style: str = "") -> None:
        """Print a line without time."""
        self.console.print(Text(text, style=style))


@dataclass(frozen=True, slots=True)
class Opened:
    """What a walk has opened and uses."""

    ready: Json
    """As it was read when it was Ready."""
    key: str
    """The endpoint's first key, `""` for what has none."""
    took_s: float
    """From submit to first use, human steps aside."""


@dataclass
class Walk:
    """The demo's people at one control plane."""

    people: Mapping[str, Client]
    timeline: Timeline
    gateway_transport: httpx.BaseTransport | None = None
    """For tests: what answers instead of a gateway."""
    noun: str = "endpoints"
    """What is walked."""
    first_use: str = "the first 200"
    limit_s: float = LIMIT_S
    """From the submit to the first use, human steps aside."""
    patience_s: float = PATIENCE_S
    """For one phase."""
    _told: set[str] = field(default_factory=set)
    _windows: dict[tuple[str, int, int, int], Json] = field(default_factory=dict)
    """Every window the endpoint was seen to hold: a report of the provider may move it."""

    @property
    def mia(self) -> Client:
        """The member who asks."""
        return self.people[MEMBER]

    @property
    def ole(self) -> Client:
        """The operator who sees the ledger."""
        return self.people[OPERATOR]

    def walk(self, path: Route) -> float:
        """Walk one path to its end; returns seconds from submit to first use, human steps aside.

        Raises `WalkFailed`, `CliError`.
        """
        limits_before = self.limits()
        opened = self.open(path)
        self.give_back(opened)
        self.restore(limits_before)
        if opened.took_s > self.limit_s:
            raise WalkFailed(f"{path.title}: {opened.took_s:.1f} s from submit to the first answer")
        return opened.took_s

    def open(self, path: Route) -> Opened:
        """Walk one path until what was asked for is used. Raises `WalkFailed`, `CliError`."""
        say = self.timeline.say
        self._told.clear()
        self._windows.clear()
        submitted = time.monotonic()
        made = self._submit(path, f"{path.name}-{secrets.token_hex(2)}")
        human_s = self._decisions(made) if made["phase"] == "AwaitingApproval" else 0.0
        if not human_s:
            say("tenantry", "within quota: nobody has to decide")
        ready = self._until(made, "Ready")
        self._check_held(ready)
        key = str(made.get("key") or "")
        self._first_use(ready, key)
        took = time.monotonic() - submitted - human_s
        verdict = "within" if took <= self.limit_s else "MORE THAN"
        say("tenantry", f"{took:.1f} s from submit to {self.first_use}, {human_s:.1f} s of people aside: "
            f"{verdict} {self.limit_s:.0f} s", style="bold green" if took <= self.limit_s else "bold red")  # fmt: skip
        self._further_use(ready, key)
        return Opened(ready, key, took)

    def read(self, row: Json) -> Json:
        """Read what was opened as it is now."""
        return self.mia.get(self._address(row))

    def give_back(self, opened: Opened) -> None:
        """Give back what was opened, and see that nothing of it is left. Raises `WalkFailed`, `CliError`."""
        self._give_back(opened.ready, opened.key)

    def _first_use(self, ready: Json, key: str) -> None:
        self._ask(ready, key)

    def _further_use(self, ready: Json, key: str) -> None:
        self._stream(ready, key)

    def _address(self, row: Json) -> str:
        return f"/tenants/{TENANT}/{self.noun}/{row['id']}"

    # --- ask and decide ---------------------------------------------------------------------------------

    def _what(self, path: Route) -> Json:
        """Return what is asked for, without its place and its term."""
        return {"model": "llama-3-1-8b", "unit": unit_of(path)}

    def _submit(self, path: Route, name: str) -> Json:
        what = self._what(path)
        word = self.noun.removesuffix("s")
        body = {
            "name": name,
            **what,
            "where": {"kind": path.kind, "provider": path.provider},
            "term": {"duration_s": 7 * 86400, "service_class": "trial"},
            "on_shortage": "request",
            "managed_by": "cli",
        }
        wish = f"{what['model']} on one {path.gpu}" if "model" in what else f"one {path.gpu}"
        self.timeline.say("Mia", f"asks for {word}/{name}: {wish}, for 7 days")
        made: Json = self.mia.post(f"/tenants/{TENANT}/{self.noun}", body).body
        if self.noun != "endpoints":
            self.timeline.say("tenantry", f"201, phase {made['phase']}")
            return made
        if not made.get("key"):
            raise WalkFailed("the answer to the submit holds no first key")
        self.timeline.say(
            "tenantry", f"201, phase {made['phase']}; the first key is there already: {made['key'][:14]}…"
        )
        return made

    def _decisions(self, made: Json) -> float:
        """Let every stage be decided by somebody who may; returns how long that took."""
        began = time.monotonic()
        self.timeline.say("tenantry", why(made["conditions"]))
        request = self._request_of(made)
        self._refuse_own(request)
        while request["state"] == "submitted":
            request = self._decide(request)
        if request["state"] != "approved":
            raise WalkFailed(f"request {request['short_id']} is {request['state']}")
        return time.monotonic() - began

    def _request_of(self, made: Json) -> Json:
        filed = self.mia.get(f"{self._address(made)}/explain")["requests"]
        if not filed:
            raise WalkFailed("no request was filed with the submit")
        request = self.mia.get(f"/requests/{filed[-1]['short_id']}")
        asked = ", ".join(f"{key} +{value}" for key, value in request["payload"]["limits"].items())
        stages = " → ".join(stage["decider"] for stage in request["stages"])
        self.timeline.say(
            "tenantry", f"filed {request['short_id']} for exactly what is missing: {asked}; stages: {stages}"
        )
        return request

    def _refuse_own(self, request: Json) -> None:
        """Show that the requester cannot decide his own request."""
        path = f"/requests/{request['short_id']}/decide"
        try:
            self.mia.post(path, {"version": request["version"], "verdict": "approve"})
        except ApiProblem as problem:
            if problem.status != 403:
                raise
            self.timeline.say("Mia", "tries to approve it herself: 403, as it must be")
        else:
            raise WalkFailed("the requester could approve her own request")

    def _decide(self, request: Json) -> Json:
        for email in (OWNER, APPROVER):
            client = self.people[email]
            inbox = client.get("/inbox")["items"]
            if not any(item["id"] == request["id"] for item in inbox):
                continue
            who = email.partition("@")[0].capitalize()
            path = f"/requests/{request['short_id']}"
            shown = client.get(f"{path}/proof")
            self.timeline.say(who, f"finds it in the inbox and sees the proof: {proof_line(shown['proof'])}")
            body = {"version": shown["version"], "verdict": "approve", "expect_proof": shown["proof"], "reason": "Go."}
            after: Json = client.post(f"{path}/decide", body).body
            said = (
                "approved; the last stage applies it"
                if after["state"] == "approved"
                else "approves; another stage follows"
            )
            self.timeline.say(who, said, style="green")
            return after
        raise WalkFailed(f"request {request['short_id']} is in nobody's inbox")

    # --- watch it grow ----------------------------------------------------------------------------------

    def _until(self, made: Json, goal: str) -> Json:
        """Follow an endpoint to a phase, telling every step of it and of its boundary as it comes."""
        path, word = self._address(made), self.noun.removesuffix("s")
        seen_phase, end = str(made.get("phase", "")), time.monotonic() + self.patience_s
        while time.monotonic() < end:
            story = self.mia.get(f"{path}/explain")
            self._tell(story)
            if story["phase"] != seen_phase:
                seen_phase = story["phase"]
                self.timeline.say("tenantry", f"{word} is {seen_phase}" + (f": {story['why']}" if story["why"] else ""))
            if seen_phase == goal:
                return self.mia.get(path)
            if seen_phase == "Failed":
                raise WalkFailed(f"the {word} failed: {story['why']}")
            pause(LOOK_S)
        raise WalkFailed(f"the {word} is {seen_phase} after {self.patience_s:.0f} s: {story['why']}")

    def _tell(self, story: Json) -> None:
        """Tell what is new: windows held, the boundary, steps of both."""
        for unit in story.get("placement") or []:
            for window in unit["windows"]:
                self._tell_window(window)
        boundary = story.get("boundary")
        if boundary:
            where = f"{boundary['kind']} on {boundary['provider']}{' (simulated)' if boundary['simulated'] else ''}"
            self._once("tenantry", f"boundary {boundary['short_id']}: {where}")
            self._tell_steps(self.mia.get(f"/tenants/{TENANT}/boundaries/{boundary['short_id']}/explain"))
        self._tell_steps(story)

    def _tell_window(self, window: Json) -> None:
        key = (window["host"], window["gpu"], window["start"], window["size"])
        moved = bool(self._windows) and key not in self._windows
        self._windows[key] = window
        place = f"{window['host']} GPU {window['gpu']} slots [{window['start']}, {window['start'] + window['size']})"
        if moved:
            self._once("ledger", f"the provider named the device: the hold is bound anew to {place}", key=place)
        else:
            unnamed = "" if window["reported"] else " (our best guess until the provider names the device)"
            self._once("ledger", f"hold: {place}{unnamed}", key=place)

    def _tell_steps(self, story: Json) -> None:
        for row in story["timeline"]:
            if not row["what"].startswith("step ") or row.get("outcome") in {None, "running"}:
                continue
            took = f" in {row['seconds']:.1f} s" if row.get("seconds") is not None else ""
            step = row["what"].removeprefix("step ").replace(" undone", ": undoing")
            self._once("worker", f"{step} {row['outcome']}{took}", key=f"{story['id']}{row['at']}{row['what']}")

    def _once(self, who: str, line: str, *, key: str = "") -> None:
        if (key or line) not in self._told:
            self._told.add(key or line)
            self.timeline.say(who, line)

    def _check_held(self, ready: Json) -> None:
        """See that the ledger keeps the windows of a Ready endpoint. Raises `WalkFailed`."""
        self._tell(self.mia.get(f"{self._address(ready)}/explain"))
        if not self._windows:
            raise WalkFailed("what is Ready holds nothing in the ledger")
        if all(self._is_free(window) for window in self._windows.values()):
            raise WalkFailed("the ledger shows the windows as free while it runs on them")

    def _is_free(self, window: Json) -> bool:
        """Whether every slot of a window is free in the ledger, as the operator sees it."""
        devices = [
            device
            for device in self.ole.items("/devices", most=1000)
            if device["host"] == window["host"] and device["index"] == window["gpu"]
        ]
        if not devices:
            raise WalkFailed(f"the operator sees no GPU {window['gpu']} on {window['host']}")
        mask = ((1 << window["size"]) - 1) << window["start"]
        return all(device["free"] & mask == mask for device in devices)

    # --- use it -----------------------------------------------------------------------------------------

    def _ask(self, ready: Json, key: str) -> None:
        """Ask the endpoint through its gateway until it answers 200; a Ready endpoint gets 10 s for its key."""
        address, tries, end = ready["address"], 0, time.monotonic() + 10.0
        self.timeline.say("Mia", f"POST {address}/chat/completions")
        while True:
            tries += 1
            answer = self._chat(address, ready["name"], key)
            if answer.status_code == 200:
                break
            if time.monotonic() >= end:
                raise WalkFailed(f"the gateway answers {answer.status_code}: {answer.text[:200]}")
            pause(LOOK_S)
        body = answer.json()
        self._check_answer(answer)
        text = body["choices"][0]["message"]["content"]
        self.timeline.say(
            "gateway",
            f"200{f' at try {tries}' if tries > 1 else ''}: {' '.join(text.split())[:150]}",
            style="bold green",
        )

    def _check_answer(self, answer: httpx.Response) -> None:
        """Look at the first answer more closely; by default not. Raises `WalkFailed`."""

    def _chat(self, address: str, model: str, key: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Where do you run?"}], "max_tokens": 64}
        with self._gateway() as http:
            try:
                return http.post(f"{address}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            except httpx.TransportError as error:
                return httpx.Response(599, text=f"no answer: {error!r}")

    def _stream(self, ready: Json, key: str) -> None:
        body = {
            "model": ready["name"],
            "messages": [{"role": "user", "content": "Stream."}],
            "stream": True,
            "max_tokens": 16,
        }
        events = 0
        done = False
        with (
            self._gateway() as http,
            http.stream(
                "POST", f"{ready['address']}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
            ) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise WalkFailed(f"streaming answers {answer.status_code}: {answer.text[:200]}")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    done = line == "data: [DONE]"
                    events += not done
                    if not done:
                        json.loads(line.removeprefix("data: "))
        if not done or events < SMALLEST_STREAM:
            raise WalkFailed(f"the stream ended after {events} events {'with' if done else 'without'} [DONE]")
        self.timeline.say("gateway", f"200, streamed event by event: {events} events, then [DONE]", style="green")

    @contextmanager
    def _gateway(self) -> Iterator[httpx.Client]:
        with httpx.Client(transport=self.gateway_transport, timeout=30.0, trust_env=False) as http:
            yield http

    # --- give it back -----------------------------------------------------------------------------------

    def _give_back(self, ready: Json, key: str = "") -> None:
        self.timeline.say("Mia", f"deletes {self.noun.removesuffix('s')}/{ready['name']}")
        self._delete(self._address(ready))
        if key:
            self._keys_stop(ready, key)
        self._until(ready, "Released")
        self._settled(f"/tenants/{TENANT}/allocations/{ready['allocation']}", "allocation")
        self._gone(
            "the hold is gone from the ledger: the same slots are free again",
            lambda: all(map(self._is_free, self._windows.values())),
        )
        boundary = f"/tenants/{TENANT}/boundaries/{ready['boundary']}"
        others = [
            item
            for item in self.mia.items(f"/tenants/{TENANT}/allocations", live=True)
            if item["boundary"] == ready["boundary"] and item["short_id"] != ready["allocation"]
        ]
        if others:
            self.timeline.say("tenantry", f"the boundary stays: {len(others)} other allocations live in it")
        else:
            self._settled(boundary, "boundary")

    def _delete(self, path: str) -> None:
        for _ in range(5):  # a pass may change the version between our look and our word
            try:
                self.mia.delete(path, version=self.mia.get(path)["version"])
            except ApiProblem as problem:
                if problem.status != 412:
                    raise
            else:
                return
        raise WalkFailed("it changed five times between read and delete")

    def _keys_stop(self, ready: Json, key: str) -> None:
        asked = time.monotonic()
        while True:
            status = self._chat(ready["address"], ready["name"], key).status_code
            took = time.monotonic() - asked
            if status != 200:
                break
            if took > KEYS_STOP_S:
                raise WalkFailed(f"the key still opens the endpoint {took:.1f} s after its deletion was asked for")
            pause(LOOK_S)
        word = "no answer any more" if status == 599 else f"{status}"
        self.timeline.say("gateway", f"{word} for the old key, {took:.1f} s after the delete")

    def _settled(self, path: str, word: str) -> None:
        def released() -> bool:
            found = self.mia.find(path)
            return found is None or found["phase"] == "Released"

        self._gone(f"{word} is Released", released)

    def _gone(self, words: str, is_true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not is_true():
            if time.monotonic() > end:
                raise WalkFailed(f"not so after {PATIENCE_S:.0f} s: {words}")
            pause(LOOK_S)
        self.timeline.say("tenantry", words, style="green")

    # --- so that the walk can be repeated -----------------------------------------------------------------

    def limits(self) -> Mapping[str, Json]:
        """Return the tenant's limits by id."""
        return {limit["id"]: limit for limit in self.ole.items(f"/tenants/{TENANT}/quotas")}

    def restore(self, before: Mapping[str, Json]) -> None:
        """Take the granted limits back, so that the next walk needs its decision again."""
        changed = 0
        for key, limit in self.limits().items():
            if key not in before:
                self.ole.delete(f"/tenants/{TENANT}/quotas/{key}", version=limit["version"])
                changed += 1
            elif limit["amount"] != before[key]["amount"]:
                body = {"dimension": limit["dimension"], "amount": before[key]["amount"], "until": limit["until"]}
                self.ole.put(f"/tenants/{TENANT}/quotas", body)
                changed += 1
        if changed:
            self.timeline.say(
                "Ole", f"takes back the {changed} limits that were granted, so that this can be seen again"
            )


def unit_of(path: Route) -> Json:
    """Return the unit that a route asks for."""
    product, _, profile = path.gpu.partition("/")
    return {"gpu": {"product": product, "profile": profile}, "vcpu": 8, "memory_gib": 32}


def proof_line(proof: Mapping[str, Any]) -> str:
    """Return a proof in one line: outcome, cost, whom it delays; what it does not say is left out."""
    parts = [": ".join(str(word) for word in (proof.get("outcome"), proof.get("why")) if word)]
    where = proof.get("where") or []
    if isinstance(where, list) and where:
        parts.append(
            ", ".join(
                sorted({str(each.get("host", each)) if isinstance(each, Mapping) else str(each) for each in where})
            )
        )
    cost = proof.get("cost") or {}
    if isinstance(cost, Mapping):
        total = next((cost[key] for key in ("to_the_end", "total", "amount") if cost.get(key) is not None), None)
        if total is not None:
            parts.append(f"costs {total} {cost.get('currency', '')}".strip() + " to its end")
    delays = proof.get("delays")
    if isinstance(delays, list):
        parts.append(f"delays {len(delays)} others" if delays else "delays nobody")
    return "; ".join(part for part in parts if part) or json.dumps(proof)[:150]


def log_in(url: str, logins: Mapping[str, str], *, transport: httpx.BaseTransport | None = None) -> dict[str, Client]:
    """Return a client per demo person. Raises `CliError`, `WalkFailed` for a person without a log-in."""
    people: dict[str, Client] = {}
    for email in (MEMBER, OWNER, APPROVER, OPERATOR):
        if email not in logins:
            raise WalkFailed(f"there is no log-in of {email}")
        nobody = Client(url, transport=transport)
        made = nobody.post("/login", {"email": email, "password": logins[email], "name": "golden path"}).body
        nobody.close()
        people[email] = Client(url, made["token"], transport=transport)
    return people


def main(url: str, logins_path: Path) -> int:
    """Walk both paths and print the timeline; returns the exit status: 0 all good, 1 not."""
    console = Console(highlight=False, soft_wrap=True)
    timeline = Timeline(console)
    people: dict[str, Client] = {}
    try:
        logins = json.loads(logins_path.read_text(encoding="utf-8"))
        people = log_in(url, logins)
        timeline.plain()
        timeline.plain(
            "The golden path. All parts are real but the estate, which is SIMULATED: no GPU is behind it.",
            style="yellow",
        )
        took = {}
        for number, path in enumerate(PATHS, start=1):
            timeline.title(f"{number}. {path.title[0].upper()}{path.title[1:]}")
            took[path.title] = Walk(people, timeline).walk(path)
    except (WalkFailed, CliError, OSError, ValueError) as error:
        timeline.say("walk", f"FAILED: {error}", style="bold red")
        return 1
    finally:
        for client in people.values():
            _log_out(client)
    timeline.plain()
    for title, seconds in took.items():
        timeline.plain(f"{title}: {seconds:.1f} s from submit to the first answer", style="bold green")
    _how_to_go_on(timeline, url, logins_path)
    return 0


def _log_out(client: Client) -> None:
    with suppress(CliError):  # the token ends by itself; the walk's outcome is what counts
        client.delete("/login")
    client.close()


def _how_to_go_on(timeline: Timeline, url: str, logins_path: Path) -> None:
    timeline.plain()
    timeline.plain("Go on by yourself (the estate is simulated; nothing here costs anything):", style="bold")
    timeline.plain(f"  API and its documents   {url}/api/docs")
    timeline.plain(f"  admin console           {url}/admin/        (ole@demo.test)")
    timeline.plain(f"  log-ins                 {logins_path}")
    for email, who in (
        ("mia@demo.test", "member of aurora"),
        ("omar@demo.test", "owner of acme and aurora"),
        ("ana@demo.test", "approver"),
        ("ole@demo.test", "operator"),
        ("aud@demo.test", "auditor"),
    ):
        timeline.plain(f"                          {email:<18} {who}")
    timeline.plain("  commands (in .venv/bin)")
    timeline.plain(f"    tenantry login mia@demo.test --url {url}")
    timeline.plain(
        "    tenantry create endpoint chat --model llama-3-1-8b --gpu H100-80GB/2g.20gb --on-shortage request"
    )
    timeline.plain("    tenantry explain endpoint/chat")
    timeline.plain(f"    {chat_command('ADDRESS', 'chat', '')}")

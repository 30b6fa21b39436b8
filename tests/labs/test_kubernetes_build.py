"""Building the lab: once, whole or not at all, and a clear word where it cannot be."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from controlplane.labs import building
from controlplane.labs.kubernetes import build
from controlplane.labs.kubernetes.build import ETCD
from controlplane.labs.kubernetes.errors import LabError, NotBuilt


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with an empty cache and the `go` that a test writes."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("TENANTRY_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(building, "_USUAL_PLACES", ())

    def go(*, version: str = "go1.99.0", builds: str = 'echo "built $$" > "$out"') -> None:
        script = tools / "go"
        script.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = env ] && {{ echo {version}; exit 0; }}\n'
            'while [ "$1" != -o ]; do shift; done; out="$2"\n'
            f"echo {tmp_path} >> {tmp_path}/runs\n{builds}\n"
        )
        script.chmod(0o755)

    go.runs = lambda: len((tmp_path / "runs").read_text().splitlines())  # type: ignore[attr-defined]
    return go


def test_without_go_it_says_what_to_install(machine):
    with pytest.raises(NotBuilt, match="there is no Go here") as raised:
        build.ensure((ETCD,))

    assert raised.value.mend.startswith("install Go 1.26.0 or newer")
    assert build.why_not_here((ETCD,)) == str(raised.value)


def test_a_go_that_is_too_old_is_named(machine):
    machine(version="go1.25.4")

    with pytest.raises(NotBuilt, match=r"needs Go 1\.26\.0; .*/go is go1\.25\.4"):
        build.ensure((ETCD,))


def test_outside_a_checkout_it_says_so(machine, tmp_path, monkeypatch):
    machine()
    monkeypatch.setattr(build, "SOURCES", tmp_path / "nowhere")

    with pytest.raises(NotBuilt, match="only a checkout has"):
        build.ensure((ETCD,))


def test_what_is_built_is_found_and_not_built_again(machine):
    machine()

    first = build.ensure((ETCD,), tell=lambda _: None)
    second = build.ensure((ETCD,), tell=lambda _: None)

    assert first == second
    assert first.path("etcd").read_text().startswith("built")
    assert machine.runs() == 1


def test_two_at_once_build_once(machine):
    machine(builds='sleep 0.2; echo built > "$out"')
    told: list[str] = []
    builders = [threading.Thread(target=lambda: build.ensure((ETCD,), tell=told.append)) for _ in range(2)]

    for one in builders:
        one.start()
    for one in builders:
        one.join()

    assert machine.runs() == 1
    assert "another process builds the Kubernetes lab; waiting for it" in told


def test_a_failed_build_shows_the_compilers_words_and_leaves_nothing(machine):
    machine(builds='echo "x.go:7: undefined: y" >&2; echo half > "$out"; exit 1')

    with pytest.raises(LabError, match=r"building etcd failed:\nx\.go:7: undefined: y"):
        build.ensure((ETCD,), tell=lambda _: None)

    assert not build.is_built((ETCD,))
    assert list(build.folder_of(ETCD).iterdir()) == []


def test_another_version_is_another_folder(machine, tmp_path, monkeypatch):
    before = build.folder_of(ETCD)
    source = tmp_path / "sources" / "etcd"
    source.mkdir(parents=True)
    (source / "go.mod").write_text((build.SOURCES / "etcd" / "go.mod").read_text().replace("v3.6.5", "v3.6.6"))
    monkeypatch.setattr(build, "SOURCES", source.parent)

    assert build.folder_of(ETCD) != before


def test_a_program_that_nobody_built_is_said_to_be_missing():
    with pytest.raises(LabError, match="kube-proxy is not built"):
        build.Programs(()).path("kube-proxy")


def test_every_module_fixes_its_versions_and_names_no_registry():
    for module in (*build.CONTROL_PLANE, *build.REAL_NODE):
        source = build.SOURCES / module.name
        assert (source / "go.sum").stat().st_size > 1000
        assert "GOPROXY" not in (source / "go.mod").read_text()

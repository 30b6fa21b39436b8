"""The machine check and the first run: each failure carries the line that mends it; nothing but Python is needed."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from controlplane.embedded import first_run, machine, virtual_environment
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.virtual_environment import VirtualEnvironment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def debian(monkeypatch):
    """A Debian machine as its package manager shows it, and us as root on it."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "apt-get" else None)
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)


def test_a_python_without_ensurepip_is_told_the_package_that_debian_split_off(debian, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))

    finding = machine.ensurepip()

    package = f"python3.{sys.version_info[1]}-venv"
    assert finding.detail == "this Python lacks ensurepip"
    assert finding.mend == f"apt-get update && apt-get install -y {package}"
    assert not finding.ok


def test_a_plain_user_is_told_to_use_sudo(debian, monkeypatch):
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 2, "final", 0))

    assert machine.python().mend == (
        "use Python 3.11 or newer, below 3.14: sudo apt-get update && sudo apt-get install -y python3.11"
    )


def test_a_full_disk_is_told_how_much_is_missing_and_where(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=400 * 2**20))

    finding = machine.room("state", tmp_path / "not" / "there", 1_000)

    assert finding.detail == f"400 MiB free at {tmp_path}, 1,000 needed"
    assert finding.mend.startswith(f"free 600 MiB more on the disk of {tmp_path}, or set TENANTRY_STATE_DIR")


@pytest.mark.parametrize("processor", ["riscv64", "i686", "ppc64le"])
def test_a_processor_without_wheels_is_refused(monkeypatch, processor):
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)

    assert not machine.architecture().ok


@pytest.mark.parametrize(
    ("libc", "ok"),
    [(("glibc", "2.36"), True), (("glibc", "2.28"), True), (("glibc", "2.17"), False), (("", ""), False)],
)
def test_an_old_or_foreign_c_library_is_refused(monkeypatch, libc, ok):
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: libc)

    assert machine.c_library().ok is ok


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.os, "access", lambda *_: False)

    finding = machine.writable("state", tmp_path / "state")

    assert (
        finding.mend == f"mkdir -p {tmp_path}/state as a user who may, or set TENANTRY_STATE_DIR to a folder of yours"
    )


def test_every_finding_is_one_line_when_well_and_two_when_not():
    well, ill = machine.Finding("disk", "enough"), machine.Finding("disk", "too little", "free some")

    assert well.line() == "ok   disk: enough"
    assert ill.line() == "FAIL disk: too little\n     mend: free some"


def test_this_machine_passes_its_own_check(tmp_path):
    findings = machine.check(root=ROOT, state=tmp_path, fresh=True)

    assert [finding.line() for finding in findings if not finding.ok] == []
    assert len(findings) == 10


def test_any_python_3_can_read_the_first_program():
    source = Path(first_run.__file__).read_text()

    ast.parse(source, feature_version=(3, 4))  # no f-strings, no annotated variables


def test_the_first_run_imports_nothing_that_must_be_installed():
    code = "import sys; from controlplane.embedded import virtual_environment; print(*sys.modules)"
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert bare.returncode == 0, bare.stderr


def test_an_old_python_hands_over_to_a_newer_one_that_really_runs(monkeypatch, tmp_path):
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\nexit 127\n")  # as a version manager leaves them
    good = tmp_path / "python3.11"
    good.symlink_to(sys.executable)
    shim.chmod(0o755)
    became = []
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(first_run.sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(first_run.sys, "argv", ["first_run.py", "demo"])
    monkeypatch.setattr(first_run.os, "execv", lambda path, words: became.append((path, words)))
    monkeypatch.setattr(first_run, "suits", lambda path: path == str(good))

    first_run.main()

    assert became[0] == (str(good), [str(good), "first_run.py", "demo"])


def test_an_old_python_alone_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(first_run.sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(first_run.shutil, "which", lambda _: None)

    status = first_run.main()

    assert status == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAIL python: this is 3.9, needed is 3.11, 3.12 or 3.13",
        "     mend: install one of them, as `apt-get install python3.11 python3.11-venv`, and start this again",
    ]


def test_a_shim_that_only_fails_suits_nobody(tmp_path):
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)

    assert (first_run.suits(sys.executable), first_run.suits(str(shim)), first_run.suits("/no/such")) == (
        True,
        False,
        False,
    )


@pytest.fixture
def checkout(tmp_path):
    """A checkout with two locks and an environment that runs and has pip: that of these tests."""
    for name, text in (
        ("requirements.lock", "a==1\n"),
        ("requirements-dev.lock", "a==1\nb==2\n"),
        ("pyproject.toml", ""),
    ):
        (tmp_path / name).write_text(text)
    environment = VirtualEnvironment(tmp_path)
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(shutil.which(sys.executable) or sys.executable)
    return environment


def stamp(environment, *, dev):
    content = {"level": "dev" if dev else "product", "fingerprint": environment.fingerprint(dev=dev)}
    (environment.folder / "tenantry-setup.json").write_text(json.dumps(content))


def test_a_set_up_is_repeated_only_when_its_lock_changed_or_more_is_asked(checkout, monkeypatch):
    monkeypatch.setattr(VirtualEnvironment, "_runs", lambda *_: True)
    before = checkout.is_complete(dev=False)
    stamp(checkout, dev=False)
    after, more = checkout.is_complete(dev=False), checkout.is_complete(dev=True)
    stamp(checkout, dev=True)
    both = checkout.is_complete(dev=True), checkout.is_complete(dev=False)
    checkout.lock(dev=True).write_text("a==2\n")
    changed = checkout.is_complete(dev=False)

    assert (before, after, more, both, changed) == (False, True, False, (True, True), False)


def test_a_set_up_whose_interpreter_is_gone_is_not_complete(checkout):
    stamp(checkout, dev=False)
    checkout.python.unlink()

    assert not checkout.is_complete(dev=False)


def test_a_failing_pip_shows_its_last_words_and_leaves_no_stamp(checkout, monkeypatch):
    stamp(checkout, dev=False)
    monkeypatch.setattr(VirtualEnvironment, "_runs", lambda *_: True)
    checkout.python.unlink()
    checkout.python.write_text("#!/bin/sh\necho 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES'\nexit 1\n")
    checkout.python.chmod(0o755)

    with pytest.raises(EmbeddedError, match="DO NOT MATCH THE HASHES") as failed:
        checkout.build(dev=False)

    assert "pip config list" in failed.value.mend
    assert checkout.stamp() == {}


def test_a_machine_that_is_not_fit_is_refused_before_anything_is_made(monkeypatch, capsys, tmp_path):
    broken = machine.Finding("venv", "this Python lacks ensurepip", "apt-get install -y python3.11-venv")
    monkeypatch.setattr(machine, "check", lambda **_: [broken])
    monkeypatch.setattr(virtual_environment, "ROOT", tmp_path)

    status = virtual_environment.main(["setup"])

    assert status == 1
    assert capsys.readouterr().err == broken.line() + "\n"
    assert list(tmp_path.iterdir()) == []

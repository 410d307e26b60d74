"""A release signed by a local key, with OpenSSF's package, and every way in which its signature is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from emma.base.errors import CheckFailedError, UserError
from emma.commands.release import group
from emma.tools.hub.checksums import SIGNATURE_NAME, write_checksums
from emma.tools.hub.signature import check_key, sign, signature_faults
from emma.tools.hub.upload import plan_upload

pytest.importorskip("model_signing")


def write_keys(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = tmp_path / "release"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "README.md").write_text("a card\n")
    (folder / "evaluation" / "results.csv").write_text("acc,0.5\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    write_checksums(folder)
    sign(folder, check_key(keys[0]))
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def rewritten(folder: Path) -> None:
    """Figures changed together with their checksums, which no checksum can tell."""
    replace(folder / "evaluation" / "results.csv", "0.5", "0.9")
    write_checksums(folder)


def forged(folder: Path) -> None:
    """The signed list of hashes is edited in the signature itself."""
    import base64

    bundle = json.loads((folder / SIGNATURE_NAME).read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["digest"] = "0" * 64
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (folder / SIGNATURE_NAME).write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewritten, "changed since it was signed: SHA256SUMS, evaluation/results.csv"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"others"),
            "changed since it was signed: model.safetensors",
        ),
        (lambda folder: (folder / "README.md").unlink(), "not there, but signed: README.md"),
        (lambda folder: (folder / "more.py").write_text("import os\n"), "there, but not signed: more.py"),
        (forged, "not signed by the private key of"),
        (lambda folder: (folder / SIGNATURE_NAME).write_text("{}"), "no signature that can be read"),
        (lambda folder: (folder / SIGNATURE_NAME).write_bytes(b"\xff\x00"), "no signature that can be read"),
        (lambda folder: (folder / SIGNATURE_NAME).unlink(), "missing; the release is not signed"),
    ],
)
def test_what_was_tampered_with_is_refused(
    signed: Path, keys: tuple[Path, Path], spoil: Callable[[Path], object], message: str
) -> None:
    assert signature_faults(signed, keys[1]) == []
    spoil(signed)
    (fault,) = signature_faults(signed, keys[1])
    assert message in fault


def test_another_key_is_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = write_keys(tmp_path, "other")
    assert signature_faults(signed, public) == [
        f"{signed / SIGNATURE_NAME}: not signed by the private key of {public}"
    ]
    # Whoever holds another key can sign anything, which the right public key tells apart.
    rewritten(signed)
    sign(signed, check_key(private))
    assert signature_faults(signed, public) == [] and "not signed by" in signature_faults(signed, keys[1])[0]


def test_keys_that_are_none(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--sign .*nothing: no such file; `openssl"):
        check_key(tmp_path / "nothing")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(UserError, match="not an elliptic-curve private key"):
        check_key(tmp_path / "text")
    with pytest.raises(UserError, match="not an elliptic-curve public key"):
        signature_faults(signed, tmp_path / "text")
    locked, _ = write_keys(tmp_path, "locked", b"secret")
    with pytest.raises(UserError, match=r"set \$EMMA_SIGNING_PASSWORD"):
        check_key(locked)
    with pytest.raises(UserError, match=r"opens with \$EMMA_SIGNING_PASSWORD"):
        check_key(locked, "wrong")
    assert check_key(locked, "secret") is not None


def test_the_packages_own_command_verifies_and_a_second_signature_replaces_the_first(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    # What git and the Hub's client keep in a folder is not part of a release.
    (signed / ".cache").mkdir()
    (signed / ".cache" / "lock").touch()
    assert signature_faults(signed, keys[1]) == []
    shutil.rmtree(signed / ".cache")
    sign(signed, check_key(keys[0]))
    theirs = [sys.executable, "-P", "-m", "model_signing", "verify", "key", str(signed)]
    theirs += ["--signature", str(signed / SIGNATURE_NAME), "--public_key", str(keys[1])]
    subprocess.run(theirs, check=True, capture_output=True)
    rewritten(signed)
    assert subprocess.run(theirs, capture_output=True).returncode != 0


def test_a_release_of_a_model_is_verified_with_its_signature(
    released: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(released, folder)
    sign(folder, check_key(keys[0]))

    def verify(*more: str) -> Result:
        return CliRunner().invoke(group, ["verify", str(folder), *more])

    # The list of checksums does not know the signature, and does not miss it.
    assert verify().output.strip() == f"{folder}: valid; its signature was not checked (--public-key)"
    assert verify("--public-key", str(keys[1])).output.strip() == f"{folder}: valid"
    plan = plan_upload(folder, "me/model", None, verify=lambda _: [], private=True)
    assert plan.files[-2:] == ("SHA256SUMS", SIGNATURE_NAME)
    replace(folder / "README.md", "# ", "#  ")
    write_checksums(folder)
    found = verify("--public-key", str(keys[1]))
    assert isinstance(
        found.exception, CheckFailedError
    ) and "changed since it was signed: README.md, SHA256SUMS" in str(found.exception)


def test_the_key_is_checked_before_a_release_is_written(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        group, ["model", "no-run", str(tmp_path / "out"), "--sign", str(tmp_path / "none.pem")]
    )
    assert isinstance(found.exception, UserError) and "none.pem: no such file" in str(found.exception)

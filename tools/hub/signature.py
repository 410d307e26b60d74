"""A release's signature by a private key, in the format of OpenSSF's model signing, which anybody's tool can check.

`model_signing verify key FOLDER --signature FOLDER/model.sig --public_key KEY` does so without this
project. Nothing here asks the network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.extras import need
from emma.tools.hub.checksums import SIGNATURE_NAME

__all__ = ["check_key", "sign", "signature_faults"]


# The package's words for what differs, within which digests stand as Python writes bytes.
_DIFFERENCES = (
    ("changed since it was signed", r"Hash mismatch for [\\']+([^\\']+)"),
    ("not there, but signed", r"Missing files in model [^:]+: ([^\]\"']+)"),
    ("there, but not signed", r"Extra files found in model [^:]+: ([^\]\"']+)"),
)


def check_key(key: Path, password: str | None = None) -> Any:
    """The signer of a private key: an elliptic-curve key (P-256, P-384 or P-521) as PEM.

    Raises:
        UserError: model-signing is not installed, or the file is no such key, or another password's.
    """
    need("sign", "--sign", "model_signing")
    from cryptography.exceptions import UnsupportedAlgorithm
    from model_signing.signing import Config

    if not key.is_file():
        raise UserError(
            f"--sign {key}: no such file; `openssl ecparam -name prime256v1 -genkey -noout -out KEY` makes one"
        )
    try:
        secret: Any = password.encode() if password else None  # the package passes it on as it is
        return Config().use_elliptic_key_signer(private_key=key, password=secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"--sign {key}: not an elliptic-curve private key (PEM) that opens"
            f"{' with $EMMA_SIGNING_PASSWORD' if password else ', or it has a password: set $EMMA_SIGNING_PASSWORD'} ({error})"
        ) from None


def sign(folder: Path, signer: Any) -> Path:
    """Signs every file of a release folder; returns the signature.

    Args:
        folder: a whole, verified release.
        signer: from `check_key`.
    """
    path = folder / SIGNATURE_NAME
    path.unlink(missing_ok=True)
    signer.set_hashing_config(_hashing(folder)).sign(folder, path)
    return path


def signature_faults(folder: Path, public_key: Path) -> list[str]:
    """What is wrong with a release's signature; empty if a holder of the private key signed these very files.

    Raises:
        UserError: model-signing is not installed, or the file is no public key.
    """
    need("sign", "--public-key", "model_signing")
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing.verifying import Config

    path = folder / SIGNATURE_NAME
    if not path.is_file():
        return [f"{path}: missing; the release is not signed (`emma release model … --sign KEY` signs it)"]
    if not public_key.is_file():
        raise UserError(f"--public-key {public_key}: no such file")
    try:
        verifier = Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"--public-key {public_key}: not an elliptic-curve public key, PEM ({error})"
        ) from None
    try:
        verifier.set_hashing_config(_hashing(folder)).verify(folder, path)
    except Exception as error:  # noqa: BLE001 - whatever the package raises for a file that was tampered with
        if isinstance(error, InvalidSignature) or "Key mismatch" in str(error):
            return [f"{path}: not signed by the private key of {public_key}"]
        found = [
            f"{what}: {', '.join(names)}"
            for what, by in _DIFFERENCES
            if (names := re.findall(by, str(error)))
        ]
        told = "; ".join(found) or f"no signature that can be read ({type(error).__name__}: {error})"
        return [f"{path}: {told}"]
    return []


def _hashing(folder: Path) -> Any:
    """All files by SHA-256, except the signature and what git and the Hub's client keep there."""
    from model_signing.hashing import Config

    hidden = [entry for entry in folder.iterdir() if entry.name.startswith(".")]
    ignored = [folder / SIGNATURE_NAME, *hidden]
    return Config().use_file_serialization().set_ignored_paths(paths=ignored, ignore_git_paths=True)

from __future__ import annotations

from tests.tools.hub.uploading import address

__all__ = ["address"]

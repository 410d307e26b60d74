"""Adapters."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoRARequest"]


@dataclass
class LoRARequest:
    """Asks for an adapter."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

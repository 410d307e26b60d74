"""Re-checks the release folder of a model: nothing of the run is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.checkpoints_conversion.config import model_from_hf, token_ids_from_hf
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.release.card import card_faults
from emma.checkpoints_conversion.release.licenses import (
    License,
    base_license_fault,
    fitting_name,
    licence_faults,
    license_of,
    licenses_of,
)
from emma.checkpoints_conversion.release.merged_card import RECORD
from emma.checkpoints_conversion.release.record import figure_faults
from emma.checkpoints_conversion.release.weights import check_parity, tensor_hashes
from emma.checkpoints_conversion.safetensors_files import INDEX_NAME, SafetensorsReader
from emma.checkpoints_conversion.tokenizer_files import load_engine
from emma.tools.hub.cards import read_card
from emma.tools.hub.checksums import checksum_faults
from emma.tools.inspection.models import check_model, loading, model_options, tokenizer_options

__all__ = ["generate_faults", "name_fault", "release_faults"]


def release_faults(folder: Path, *, read_weights: bool = True) -> list[str]:
    """Everything that is wrong with the release folder of a model; empty if nothing is.

    Args:
        folder: the release.
        read_weights: hash all files and tensors; off if they were hashed while being written.
    """
    faults: list[str] = []
    checks = [_code_faults, _tensor_faults, _token_faults, card_faults, _licence_faults]
    checks.append(_parity_faults if read_weights else _parity_passes)
    checks.append(figure_faults)
    if read_weights:
        checks.insert(0, checksum_faults)
    for check in checks:
        if check is figure_faults and faults:
            break  # what is missing or damaged is named; figures of the rest would only repeat it
        try:
            faults += check(folder)
        except UserError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _tensor_faults(folder: Path) -> list[str]:
    """Checks that index, shards, and config describe the same model."""
    faults = []
    reader = SafetensorsReader(folder)
    expected = parameter_shapes(model_from_hf(folder))
    found = {name: record.shape for name, record in reader.records.items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        faults.append(f"{folder}: {len(wrong)} tensors do not match config.json; the first is {wrong[0]}")
    index = folder / INDEX_NAME
    if not index.is_file():
        faults.append(f"{index}: missing")
        return faults
    total = sum(record.size for record in reader.records.values())
    if (claimed := read_json(index).get("metadata", {}).get("total_size")) != total:
        faults.append(f"{index}: total_size is {claimed}, but the tensors have {total} bytes")
    return faults


def _token_faults(folder: Path) -> list[str]:
    """Checks that tokenizer, config, and generation config agree on a document's begin and end tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return [f"{path}: missing"]
    engine = load_engine(path)
    generation_file = folder / "generation_config.json"
    if not generation_file.is_file():
        return [f"{generation_file}: missing"]
    config, generation = read_json(folder / "config.json"), read_json(generation_file)
    faults = [
        f"{generation_file}: {key} is {generation.get(key)}, but config.json says {config.get(key)}"
        for key in ("bos_token_id", "eos_token_id")
        if generation.get(key) != config.get(key)
    ]
    ids = token_ids_from_hf(folder, model_from_hf(folder).vocab_size)
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    for key, known in (("bos_token", (ids.begin,)), ("eos_token", ids.end)):
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and engine.token_to_id(token) not in known:
            faults.append(
                f"{generation_file}: {key}_id is {generation.get(f'{key}_id')}, but the tokenizer's {key} {token} is "
                f"{engine.token_to_id(token)}"
            )
    if not ids.end:
        faults.append(f"{generation_file}: has no eos_token_id, so generation would not end")
    if (count := engine.get_vocab_size()) > config["vocab_size"]:
        faults.append(f"{path}: {count} tokens, but the model has {config['vocab_size']}")
    return faults


def _licence_faults(folder: Path) -> list[str]:
    data, text = read_card(folder)
    heading = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), "")
    licenses = _licenses(folder, data)
    faults = licence_faults(licenses, folder, heading, text)
    bases = data.get("base_model") or []
    if fault := base_license_fault([bases] if isinstance(bases, str) else list(map(str, bases)), licenses):
        faults.append(fault)
    return faults


def _licenses(folder: Path, data: dict[str, Any]) -> list[License]:
    """Those of a merge's parents, or the one that the card names."""
    if (folder / RECORD).is_file():
        return licenses_of(read_json(folder / RECORD)["licenses"])
    return [license_of(str(data.get("license")))]


def name_fault(folder: Path, repository: str) -> str | None:
    """What forbids a repository's name: some licences say how the name of a model made from theirs begins.

    Args:
        folder: the release of a model.
        repository: `owner/name`.
    """
    data, _ = read_card(folder)
    name = repository.rpartition("/")[2]
    owner = repository.rpartition("/")[0]
    licenses = _licenses(folder, data)
    example = "/".join(filter(None, (owner, fitting_name(name, *licenses).replace(" ", "-"))))
    for license_ in licenses:
        if fitting_name(name, license_) != name:
            return (
                f"{repository}: the {license_.name} requires a name that begins with “{license_.name_prefix}”, also on the "
                f"Hub; name it {example}"
            )
    return None


def _code_faults(folder: Path) -> list[str]:
    check_model(folder)
    return []


def _parity_passes(folder: Path) -> list[str]:
    check_parity(read_json(folder / "parity.json"), folder / "parity.json")
    return []


def _parity_faults(folder: Path) -> list[str]:
    """Checks that the parity report passes and is about these tensors."""
    check_parity(read_json(folder / "parity.json"), folder / "parity.json", tensor_hashes(folder))
    return []


def generate_faults(folder: Path, tokens: int = 8) -> list[str]:
    """Loads the folder with `transformers` and continues a text; returns a failure as one fault.

    Args:
        folder: the release.
        tokens: maximum number of tokens to generate.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with loading(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
            model: Any = AutoModelForCausalLM.from_pretrained(folder, **model_options(folder))
        inputs = tokenizer("All human beings are born", return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    except (UserError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        return [f"{folder}: transformers cannot use it: {error}"]
    if made.shape[1] <= inputs["input_ids"].shape[1]:
        return [f"{folder}: generate returned no tokens"]
    return []

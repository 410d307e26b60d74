"""`emma release`: writes folders that the Hub takes as they are, verifies them, and uploads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from emma.base.command_group import SuggestingGroup
from emma.commands.amount import Amount

__all__ = ["group"]

_PATH = click.Path(path_type=Path)
_SIGN = click.option(
    "--sign",
    "key",
    type=_PATH,
    metavar="KEY",
    help="Sign all files with this elliptic-curve private key (PEM; its password in $EMMA_SIGNING_PASSWORD), as model.sig.",
)


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Write, verify, and upload release folders of models and corpora."""


@group.command()
@click.argument("run", metavar="RUN")
@click.argument("destination", metavar="DST", type=_PATH)
@click.option(
    "--step", type=click.IntRange(min=0), help="Export to release, RUN/hf/step-N. Default: the latest."
)
@click.option(
    "--name",
    help="Name of the model on its card. Default: the run's, with the prefix that the licence requires.",
)
@click.option("--license-from", type=_PATH, help="Folder with the base model's LICENSE and USE_POLICY files.")
@click.option(
    "--shard-size",
    "shard_gb",
    type=Amount(above=0),
    default=5.0,
    show_default=True,
    help="Maximum size of a safetensors file in GB.",
)
@_SIGN
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option("--dry-run", is_flag=True, help="Run all checks that don't read weights; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def model(
    run: str,
    destination: Path,
    step: int | None,
    name: str | None,
    license_from: Path | None,
    shard_gb: float,
    key: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the release folder of a run's export, or of a merge.

    DST gets safetensors with an index, config.json, generation_config.json, the tokenizer, a model card made
    from the run's own records, the licence's files, recipe, evaluation, parity report, and SHA256SUMS.
    Refuses an export without a passing parity report. The folder appears complete or not at all.

    Instead of a RUN, name the folder that `emma convert merge` wrote and `emma convert verify` has proven: name, notices
    and files follow the licences of all models that were merged, and the card lists these.
    """
    signer = _signer(key)
    from emma.base.errors import UserError
    from emma.checkpoints_conversion.merging import is_merge
    from emma.checkpoints_conversion.release.build import plan_release, write_release
    from emma.checkpoints_conversion.release.merged import plan_merge, write_merge_release

    if is_merge(Path(run)):
        if step is not None:
            raise UserError(f"{run} is a merge, which has no step {step}; leave --step out")
        merged = plan_merge(Path(run), name=name, license_from=license_from)
        facts = {"destination": str(destination), **merged.as_dict()}
        if not dry_run:
            written = write_merge_release(
                merged, destination, shard_bytes=int(shard_gb * 1e9), overwrite=overwrite
            )
            facts |= {"files": len(written.outputs), "bytes": sum(record.bytes for record in written.outputs)}
            facts |= _sign(destination, signer)
        _print(facts, as_json)
        return
    plan = plan_release(run, step, name=name, license_from=license_from)
    if dry_run:
        _print({"destination": str(destination), **plan.as_dict()}, as_json)
        return
    manifest = write_release(plan, destination, shard_bytes=int(shard_gb * 1e9), overwrite=overwrite)
    size = sum(record.bytes for record in manifest.outputs)
    facts = {"destination": str(destination), **plan.as_dict(), "files": len(manifest.outputs), "bytes": size}
    facts |= _sign(destination, signer)
    if as_json:
        _print(facts, True)
    else:
        click.echo(f"{destination}: {plan.facts.title}, {len(manifest.outputs)} files, {size / 1e9:.3f} GB")


@group.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=_PATH)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--name", help="Name of the corpus on its card. Default: that of its data recipe.")
@click.option(
    "--shard-size",
    "shard_gb",
    type=Amount(above=0),
    default=0.5,
    show_default=True,
    help="Approximate maximum size of a training file in GB.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of processes; does not affect the result. Default: one per core.",
)
@_SIGN
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option(
    "--dry-run", is_flag=True, help="Check the corpus and show what would be written; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def corpus(
    source: str,
    destination: Path,
    overrides: tuple[str, ...],
    name: str | None,
    shard_gb: float,
    workers: int | None,
    key: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the release folder of a corpus.

    SRC is a RUN whose corpus is built (`emma corpus build`), or the corpus folder itself. DST gets parquet
    files by kind and language or pair, with training and validation separate, a dataset card with a
    configuration for each, statistics, licences by source, and SHA256SUMS. The folder appears complete or not
    at all; after an interruption, the same command continues.

    \b
    Examples:
      emma release corpus demo release/demo-corpus
      emma release corpus /data/emma/corpus release/corpus --name "EMMA corpus" --workers 16
    """
    signer = _signer(key)
    from emma.base.processes import available_cores
    from emma.tools.corpus.release.build import plan_corpus, write_corpus_release
    from emma.tools.corpus.release.source import open_corpus

    opened = open_corpus(source, overrides)
    shard_bytes = int(shard_gb * 1e9)
    plan = {"destination": str(destination), **plan_corpus(opened, shard_bytes)}
    if dry_run:
        _print(plan, as_json)
        return
    manifest = write_corpus_release(
        opened,
        destination,
        name=name,
        shard_bytes=shard_bytes,
        workers=workers or available_cores(),
        overwrite=overwrite,
    )
    size = sum(record.bytes for record in manifest.outputs)
    signed = _sign(destination, signer)
    if as_json:
        _print({**plan, "files": len(manifest.outputs), "bytes": size, **signed}, True)
    else:
        click.echo(
            f"{destination}: {plan['documents']:,} documents, {len(manifest.outputs)} files, {size / 1e9:.3f} GB"
        )


@group.command()
@click.argument("folder", metavar="FOLDER", type=_PATH)
@click.option("--generate", is_flag=True, help="Also load it with transformers and generate a few tokens.")
@click.option(
    "--public-key",
    type=_PATH,
    help="Also check model.sig with this public key (PEM): who signed these very files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(folder: Path, generate: bool, public_key: Path | None, as_json: bool) -> None:
    """Verify the release folder of a model or a corpus.

    For a model, checks all files' checksums, the index and shards against config.json, the begin and end
    tokens, the card's metadata, the licence's requirements and texts, that the parity report passes and covers
    these weights, and every figure of the card, which is computed again from the released records and outputs. For a corpus, checks all files' checksums, columns, rows, languages, and licences, the
    card's metadata and configurations, and that no document is in both training and validation. Exits with
    code 1 on any fault. Whoever changes files can write new checksums; only --public-key tells who wrote them.
    """
    from emma.base.errors import CheckFailedError, UserError
    from emma.tools.hub.kinds import release_kind

    if generate and release_kind(folder) == "dataset":
        raise UserError(f"{folder}: holds a corpus; --generate works only for models")
    faults = _faults(folder)
    if public_key is not None:
        from emma.tools.hub.signature import signature_faults

        faults += signature_faults(folder, public_key)
    if generate and not faults:
        from emma.checkpoints_conversion.release.verify import generate_faults

        faults = generate_faults(folder)
    if as_json:
        _print({"folder": str(folder), "passed": not faults, "faults": faults}, True)
    if faults:
        raise CheckFailedError(
            f"{folder} is not a valid release:\n" + "\n".join(f"- {fault}" for fault in faults)
        )
    if not as_json:
        unchecked = public_key is None and (folder / "model.sig").is_file()
        click.echo(
            f"{folder}: valid" + ("; its signature was not checked (--public-key)" if unchecked else "")
        )


@group.command()
@click.argument("folder", metavar="FOLDER", type=_PATH)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--branch", help="Branch to upload to, e.g. step25000; created if missing. Default: main.")
@click.option(
    "--private/--public", default=True, show_default=True, help="Visibility of a newly created repository."
)
@click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Maximum attempts to resume an interrupted upload.",
)
@click.option(
    "--delete-others", is_flag=True, help="Delete files on the branch that the release does not have."
)
@click.option("--check-only", is_flag=True, help="Only compare the server's files with the folder.")
@click.option(
    "--dry-run", is_flag=True, help="Verify the folder and show what would be uploaded; upload nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def upload(
    folder: Path,
    repository: str,
    branch: str | None,
    private: bool,
    attempts: int,
    delete_others: bool,
    check_only: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload a release folder to the Hub, and verify by hash that it arrived.

    A corpus becomes a dataset repository, a model a model repository. The folder is verified first. An
    interrupted upload resumes with what is missing, and so does the same command later. Where a model's licence
    says how its name begins, so must the repository's. The Hub's client
    takes the token from HF_TOKEN or from `hf auth login`; it is never printed.

    \b
    emma release upload release/my-model my-team/my-model --branch step25000
    """
    from emma.base.errors import CheckFailedError, UserError
    from emma.tools.hub.kinds import release_kind
    from emma.tools.hub.upload import plan_upload, server_faults, upload_release

    if release_kind(folder) == "model":
        from emma.checkpoints_conversion.release.verify import name_fault

        if fault := name_fault(folder, repository):
            raise UserError(fault)
    plan = plan_upload(folder, repository, branch, verify=_faults, private=private)
    if dry_run:
        _print(plan.as_dict(), as_json)
        return
    if check_only:
        if faults := server_faults(plan, delete_others=delete_others):
            raise CheckFailedError(f"{repository} does not hold the release: " + "; ".join(faults))
    else:
        upload_release(plan, attempts=attempts, delete_others=delete_others)
    if as_json:
        _print(plan.as_dict(), True)
    else:
        click.echo(
            f"{repository}@{plan.branch} holds {len(plan.files)} files, {plan.bytes / 1e9:.3f} GB, equal to {folder}"
        )


def _signer(key: Path | None) -> Any:
    """What signs, checked before anything is written; None without a key."""
    if key is None:
        return None
    import os

    from emma.tools.hub.signature import check_key

    return check_key(key, os.environ.get("EMMA_SIGNING_PASSWORD"))


def _sign(folder: Path, signer: Any) -> dict[str, str]:
    if signer is None:
        return {}
    from emma.tools.hub.signature import sign

    return {"signature": str(sign(folder, signer))}


def _faults(folder: Path) -> list[str]:
    """Everything that is wrong with a release folder of either kind."""
    from emma.tools.hub.kinds import release_kind

    if release_kind(folder) == "dataset":
        from emma.tools.corpus.release.verify import corpus_faults

        return corpus_faults(folder)
    from emma.checkpoints_conversion.release.verify import release_faults

    return release_faults(folder)


def _print(value: dict[str, Any], as_json: bool) -> None:
    import orjson

    if as_json:
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
        return
    for key, item in value.items():
        click.echo(f"{key.replace('_', ' ')}: {item}")

"""Shares a tuned prompt or a meta checkpoint on the Hugging Face hub, and fetches one.

    python -m experiments.share --file=tuned.safetensors --push=USER/NAME --clip=openai/clip-vit-base-patch16
    python -m experiments.share --file=tuned.safetensors --push=USER/NAME --results=runs/evaluate/results.json
    python -m experiments.share --pull=USER/NAME

--push creates the repository if there is none and uploads the file with a model card: the tuner and its settings, the
clip and the hash of its weights, and the tables of --results. It needs a token with write access, from `hf auth login`
or the variable HF_TOKEN. Before, the file is loaded with the clip that it was tuned on. --pull downloads the file into
the work directory and checks that it is complete and that its method is known. The files are safetensors: nothing in
them is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from etils import epath

import gram_jax as gram
from gram_jax import reporting
from gram_jax.array_file import ArrayFileError, read_arrays
from gram_jax.errors import InputError
from gram_jax.evaluation import read_results
from gram_jax.io import write_file
from gram_jax.registry import Call

from ._launch import launch, setting

FILES = {"prompt": "prompt.safetensors", "meta": "meta.safetensors"}  # names in a repository, by kind of artifact
CARD = "README.md"
_LABELS = {"prompt": "tuned prompt", "meta": "meta checkpoint"}
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to send or to fetch."""

    push: str = setting("", "the repository to send to, USER/NAME; it is created if it does not exist")
    pull: str = setting("", "the repository to fetch from, USER/NAME")
    file: str = setting("", "with --push: a tuned prompt or a meta checkpoint (.safetensors)")
    clip: str = setting("mini", 'with --push: the clip that it was tuned on: a folder, a hub name, or "mini"')
    results: str = setting("", "with --push: a results.json whose tables the model card shows")
    private: bool = setting(False, "with --push: only you can see a repository that is created")
    output: str = setting("", "with --pull: the file to write; default: WORKDIR/NAME.safetensors")
    revision: str | None = setting(None, "with --pull: branch, tag or commit; the newest by default")

    def __post_init__(self) -> None:
        if bool(self.push) == bool(self.pull):
            raise InputError("give either --push=USER/NAME or --pull=USER/NAME")
        if not _NAME.fullmatch(name := self.push or self.pull):
            raise InputError(f"--{'push' if self.push else 'pull'}={name!r}: it must be USER/NAME")
        if bool(self.push) != bool(self.file):
            raise InputError("--push needs --file=PROMPT.safetensors" if self.push else "--file is for --push; omit it")


def run(config: Config, workdir: epath.Path) -> None:
    """Sends or fetches one file."""
    for client in ("httpx", "httpx2"):  # it logs every request
        logging.getLogger(client).setLevel(logging.WARNING)
    if config.push:
        push(config, workdir)
    else:
        pull(config, workdir)


def push(config: Config, workdir: epath.Path) -> None:
    """Uploads a file and its model card in one commit, after a check that the file belongs to the clip."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise InputError("there is no token for the Hugging Face hub; run hf auth login, or set HF_TOKEN")
    about = gram.artifacts.describe(config.file)
    clip = gram.load_clip(config.clip)
    load = gram.load_prompt if about.kind == gram.artifacts.PROMPT else gram.load_meta
    load(config.file, clip)
    text = card(config, workdir)
    write_file(workdir / CARD, text)
    contents = {FILES[about.kind]: epath.Path(config.file).read_bytes(), CARD: text.encode()}
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    with _explained(config.push):
        api = HfApi()
        api.create_repo(config.push, private=config.private or None, exist_ok=True)
        commit = api.create_commit(config.push, operations, commit_message=f"{about.tuner.name} {about.kind}")
    print(f"{config.file} is at {commit.commit_url}\nfetch it: python -m experiments.share --pull={config.push}")


def card(config: Config, workdir: epath.Path) -> str:
    """Returns the model card of a file: YAML front matter and Markdown."""
    about, header = gram.artifacts.describe(config.file), read_arrays(config.file)[1]
    methods = {"tuner": about.tuner} | ({"regulator": about.regulator} if about.regulator else {})
    tags = ["gram_jax", "clip", "prompt-tuning", *(each.name for each in methods.values())]
    matter = ["library_name: gram_jax", f"tags: {json.dumps(tags)}", "pipeline_tag: zero-shot-image-classification"]
    local = Path(config.clip).expanduser().exists()
    clip = Path(config.clip).name if local else config.clip  # a folder's path is private
    if not local and _NAME.fullmatch(clip):
        matter.append(f"base_model: {json.dumps(clip)}")
    facts = {name: f"`{Call(each.name, dict(each.settings))}`" for name, each in methods.items()}
    facts |= {"clip": f"`{clip}`", "SHA-256 of the clip's weights": f"`{header['clip']['weights_hash']}`"}
    facts |= {f"{package} version": version for package, version in header["versions"].items()}
    facts |= {name: f"`{json.dumps(value)}`" for name, value in about.notes.items()}
    measured = ""
    if config.results:
        results = read_results(config.results)
        if results.environment.get("weights") not in (None, header["clip"]["weights_hash"]):
            raise InputError(
                f"{config.results} was measured with another clip than that of {config.file}; omit --results"
            )
        facts["dataset"] = ", ".join(sorted({f"`{row.dataset}`" for row in results.rows}))
        measured = (
            f"\n# Measurements\n\n{reporting.write_report([results], workdir, names=[Path(config.results).name])}"
        )
    name = config.push.partition("/")[2]
    table = "".join(f"| {name} | {value.replace('|', chr(92) + '|')} |\n" for name, value in facts.items())
    return (
        "---\n" + "\n".join(matter) + f"\n---\n\n# {name}\n\n"
        f"A {_LABELS[about.kind]} of [gram_jax](https://arxiv.org/abs/2303.06571), which adapts a frozen CLIP.\n\n"
        f"| | |\n| :-- | :-- |\n{table}\n# Use\n\n```bash\npython -m experiments.share --pull={config.push}\n"
        f"python -m experiments.predict --images=FOLDER --classes=NAMES --clip={clip} "
        f"--prompt=runs/share/{name}.safetensors\n```\n{measured}"
    )


def pull(config: Config, workdir: epath.Path) -> epath.Path:
    """Downloads a file, checks it, and returns its path; a different file that is there already is kept."""
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(config.pull):
        info = HfApi().model_info(config.pull, revision=config.revision)
        found = {file.rfilename for file in info.siblings or ()}
        names = [name for name in FILES.values() if name in found]
        if len(names) != 1:
            wanted = " or ".join(FILES.values())
            raise InputError(f"{config.pull} has {len(names)} files {wanted}; it must have one, as --push uploads")
        cached = hf_hub_download(config.pull, names[0], revision=info.sha)
    try:
        about = gram.artifacts.describe(cached)
        digest = read_arrays(cached)[1]["clip"]["weights_hash"]
    except (ArrayFileError, KeyError, TypeError) as error:
        raise InputError(f"{names[0]} of {config.pull} cannot be used: {error}") from error
    target = epath.Path(config.output or workdir / f"{config.pull.partition('/')[2]}.safetensors").expanduser()
    content = Path(cached).read_bytes()
    if target.exists() and target.read_bytes() != content:
        raise FileExistsError(f"{target} is another file, which is kept; give another one with --output")
    write_file(target, content)
    what = f"{_LABELS[about.kind]} of {about.tuner.name}"
    print(f"{target}: a {what}, for the clip whose weights have SHA-256 {digest[:12]}...")
    return target


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns errors of the hub and of the network into one line."""
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except Exception as error:  # no network, a proxy, an outage: each HTTP library has its own errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            problem = "requires that you accept its terms on the Hugging Face hub; do so, then run: hf auth login"
        elif isinstance(error, errors.RevisionNotFoundError):
            problem = "does not have this revision; check --revision"
        elif status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError):
            problem = f"refuses the token (status {status}); create one with write access, then run: hf auth login"
        elif isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
            problem = "does not exist on the Hugging Face hub, or is private; check the name, or run: hf auth login"
        else:
            reason = str(error).strip().partition("\n")[0][:300]
            problem = f"cannot be reached on the Hugging Face hub ({type(error).__name__}: {reason}); try again later"
        raise InputError(f"{name} {problem}") from error


if __name__ == "__main__":
    launch(run, Config)

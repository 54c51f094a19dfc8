"""A checkpoint from elsewhere, a Hub id or a folder: resolved once, checked, brought into a run.

What a run gets of it is its encoder, in the form that pre-training leaves: weights in safetensors
without any head, configuration, tokenizer, manifest. No code of the checkpoint's own is run.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base import files, machine
from helpers.base.errors import UserError, one_line
from helpers.data import glue, hub, tokenizer
from helpers.model import registry
from helpers.train import heads, loop, records

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
SMALL = ["*.json", "*.txt", "*.model", "*.codes"]  # configuration and tokenizer
WEIGHTS = registry.WEIGHTS  # the second kind is read where the first is missing, without its code
PROBE = "the cat sat on a mat and saw a bird in the old tree near the small white house . "
NOTHING = dict.fromkeys(records.required(records.Pretraining))  # what no checkpoint says of itself
LONGEST = 10**6  # tokens; tokenizers without a limit give a larger number


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine."""

    folder: Path
    title: str  # Hub id, or the folder's own name
    commit: str | None = None  # of the Hub
    weights: str = ""  # SHA-256

    @property
    def name(self) -> str:
        """The model's name in a run: the title, and which weights these are."""
        return f"{self.title.replace('/', '--')}@{(self.commit or self.weights)[:8]}"

    @property
    def label(self) -> str:
        """How the line begins that says why this checkpoint cannot be scored."""
        return f"model = {self.title!r}:"


def resolve(model: str) -> Source:
    """Finds a checkpoint: a folder, one in ``models/``, or a Hub id with optional ``@revision``.

    What the Hub has is downloaded to its own cache; there it is found again without a network.
    """
    if not model:
        raise UserError("model = '': give an id of the Hub, owner/name[@revision], or a folder")
    if folder := _local(model):
        place = folder.absolute()  # a link by its own name
        place = place.parent if place.name == "encoder" else place  # of a model of a run
        title = re.sub(r"[^A-Za-z0-9._-]+", "-", place.name).strip("-._")
        found = Source(folder, title or "checkpoint")
    elif named := HUB_ID.fullmatch(model):
        found = Source(*_download(*named.groups()))
    else:
        hint = "an id has an owner, as in google-bert/bert-base-uncased"
        if Path(model).expanduser().is_file():
            hint = "it is a file: give its folder"
        elif registry.knows(model):
            hint = f"a run pre-trains it: give runs/<profile>/models/{model}/encoder"
        form = "neither a folder that is there nor an id of the Hub, owner/name[@revision]"
        raise UserError(f"model = {model!r}: {form}; {hint}")
    paths = [path for kind in WEIGHTS for path in files.visible(found.folder, kind)]
    if (found.folder / "adapter_config.json").is_file():
        advice = "merge it with its base (merge_and_unload), save that, and give that folder"
        raise UserError(f"{found.label} is an adapter, it has adapter_config.json: {advice}")
    if not (found.folder / "config.json").is_file():
        below = files.visible(found.folder, "*/config.json")
        newest = max(below, key=lambda path: path.stat().st_mtime, default=None)
        advice = "a folder that save_pretrained wrote has one"
        advice = f"{newest.parent.name}/ in it has one: give that" if newest else advice
        raise UserError(f"{found.label} has no config.json; {advice}")
    if not paths:
        raise UserError(f"{found.label} holds no weights, neither {' nor '.join(WEIGHTS)}")
    for index in files.visible(found.folder, f"*{paths[0].suffix}.index.json"):
        with one_line(f"{found.label} its {index.name} cannot be read"):
            shards = set(files.read_json(index)["weight_map"].values())
        if missing := sorted(shards - {path.name for path in paths}):
            raise UserError(f"{found.label} lacks {missing[0]}, which {index.name} names")
    hashes = {path.name: files.sha256(path) for path in paths if path.suffix == paths[0].suffix}
    weights = next(iter(hashes.values())) if len(hashes) == 1 else files.digest(hashes)
    return replace(found, weights=weights)


def _local(model: str) -> Path | None:
    places = [Path(model), files.resolve(model), files.resolve("models") / model]
    return next((place for place in places if place.is_dir()), None)


def _brought(run: Path, model: str) -> dict[str, Any] | None:
    """The manifest of an id of the Hub that a run has, whole, at any commit or the one given."""
    if _local(model) or not (named := HUB_ID.fullmatch(model)):
        return None
    for path in files.visible(run / "models", f"*/{files.MANIFEST}"):
        with suppress(UserError):  # another's, damaged
            about = files.read_manifest(path)
            told = about.get("checkpoint", {})
            same = told.get("source") == named[1] and named[2] in (None, told["commit"])
            if same and files.intact_manifest(path.parent, about["spec"]):
                return about
    return None


def _download(repository: str, revision: str | None) -> tuple[Path, str, str]:
    """The folder in the Hub's cache, the id and the commit."""
    from huggingface_hub import snapshot_download

    commit, place = revision, Path()
    otherwise = "or give a folder; there is none of this name"
    with hub.reaching(f"model = {repository!r}:", otherwise):
        for kind in WEIGHTS:  # the second where there is none of the first
            wanted = {"allow_patterns": [*SMALL, kind], "ignore_patterns": ["*/*"]}
            place = Path(snapshot_download(repository, revision=commit, **wanted))
            commit = place.name
            if any(place.glob(kind)):
                break
    return place, repository, place.name


def bring(run: Path, model: str) -> dict[str, Any]:
    """Brings a checkpoint into ``<run>/models/<name>/``; does nothing twice.

    An id of the Hub without a revision is the commit that the run has, else today's. Gives a
    manifest as of a pre-training of which nothing is known, with ``checkpoint``
    (`records.Checkpoint`).
    """
    if done := _brought(run, model):
        return done
    source = resolve(model)
    others = [path for pattern in SMALL for path in files.visible(source.folder, pattern)]
    wanted = {
        "stage": "checkpoint",
        "weights": source.weights,
        "files": {path.name: files.sha256(path) for path in others},
        "tokens": "",
    }
    folder, spec = run / "models" / source.name, files.digest(wanted)
    if done := files.intact_manifest(folder, spec):
        return done
    loop.quiet()
    _check_memory(source, _configuration(source))
    base, fresh = _open(source)
    tok = _open_tokenizer(source, base)
    limit = min(heads.positions(base) or LONGEST, tok.model_max_length)
    _probe(source, base, tok, min(limit, 128))
    with files.lock(folder):
        files.remove_manifest(folder)
        with files.building(folder / "encoder") as empty, tokenizer.saving():
            weights = {name: w for name, w in base.state_dict().items() if name not in fresh}
            base.save_pretrained(empty, state_dict=weights)
            tokenizer.save(tok, empty, heads.positions(base))
        model = heads.open_encoder(folder / "encoder", glue.get("cola"), 0.0).train()
        with one_line(f"{source.label} it cannot be trained on a short row"):
            model(**tok("a bird", return_tensors="pt")).logits.sum().backward()
        manifest = {
            "spec": spec,
            "specification": wanted,
            "model": source.name,
            "corpus": "",
            "size": "",
            "pretrain": NOTHING | {"parameters": registry.count(model.base_model)},
            "hardware": None,
            "code": {"commit": None, "clean": None},
            "checkpoint": {
                "source": source.title,
                "commit": source.commit,
                "weights": source.weights,
                "model_type": base.config.model_type,
                "positions": limit if limit < LONGEST else None,
                "shared_layers": heads.are_shared(model),
            },
        }
        written = [f"encoder/{path.name}" for path in sorted((folder / "encoder").iterdir())]
        return files.write_manifest(folder, manifest, written)


def _configuration(source: Source) -> PretrainedConfig:
    """The configuration, of a type that can be scored."""
    values = files.read_json(source.folder / "config.json")
    kind = values.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        own = "; it asks for code of its own (auto_map), which is not run" * ("auto_map" in values)
        line = f"{source.label} model_type = {kind!r}: transformers has no such type{own}"
        raise UserError(line)
    if "quantization_config" in values:
        line = "its weights are quantised, which cannot be fine-tuned; give others"
        raise UserError(f"{source.label} {line}")
    with one_line(f"{source.label} its config.json cannot be read"):
        about = AutoConfig.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False
        )
    if about.is_encoder_decoder or getattr(about, "is_decoder", False):
        raise UserError(f"{source.label} a {kind} has a decoder; encoders are scored")
    if about.get_text_config() is not about:
        raise UserError(f"{source.label} a {kind} reads more than text")
    if type(about) not in transformers.MODEL_MAPPING:
        raise UserError(f"{source.label} transformers has no encoder of type {kind}")
    return about


def _check_memory(source: Source, about: PretrainedConfig) -> None:
    """Weights, gradients and Adam's two moments, in float32, must fit."""
    paths = [path for kind in WEIGHTS for path in files.visible(source.folder, kind)]
    size = sum(path.stat().st_size for path in paths if path.suffix == paths[0].suffix)
    wanted = 4 * size * (2 if "16" in str(about.dtype) else 1)
    on_gpu = registry.device().type == "cuda"
    there = torch.cuda.mem_get_info()[1] if on_gpu else machine.memory()
    if wanted > there:
        raise UserError(
            f"{source.label} needs {wanted / 1e9:.1f} GB for weights, gradients and Adam's "
            f"moments, there are {there / 1e9:.1f}"
        )


def _open(source: Source) -> tuple[nn.Module, list[str]]:
    """The encoder in float32, and the names of weights that the checkpoint lacks: a pooler's."""
    with one_line(f"{source.label} its weights cannot be read"):
        base, found = AutoModel.from_pretrained(
            source.folder,
            output_loading_info=True,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=any(files.visible(source.folder, WEIGHTS[0])),
        )
    missing = sorted(found["missing_keys"])
    heads.check_weights(source.label, base, missing)
    lists = [prefix.rstrip(".").rpartition(".")[0] for prefix in heads.layers(base)]
    beyond = {f".{one}.{lists.count(one)}." for one in lists}  # the layer after the last
    for name in sorted(found["unexpected_keys"]):
        if any(layer in f".{name}" for layer in beyond):
            line = f"its weights hold {name}, of a layer that config.json leaves out; mend that"
            raise UserError(f"{source.label} {line}")
    return base.eval(), missing


def _open_tokenizer(source: Source, base: nn.Module) -> Tokenizer:
    """The tokenizer, with the padding token of the configuration; every token has an embedding."""
    with one_line(f"{source.label} its tokenizer cannot be opened"):
        tok = AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False
        )
    with one_line(f"{source.label} it has no table of embeddings"):
        rows = len(base.get_input_embeddings().weight)
    if len(tok) <= len(tok.all_special_ids):  # what transformers makes of no file at all
        raise UserError(f"{source.label} has no tokenizer; its files stand beside the weights")
    if len(tok) > rows:
        has = f"its tokenizer has {len(tok)} tokens, its embedding {rows} rows"
        raise UserError(f"{source.label} {has}")
    known = (base.config.pad_token_id, tok.pad_token_id, tok.eos_token_id, tok.unk_token_id, 0)
    if len(tok("a")["input_ids"]) == len(tok("a", add_special_tokens=False)["input_ids"]):
        print(
            f"{source.label} its tokenizer adds no special tokens: the head reads the first word, "
            "and nothing stands between two sentences; a post_processor would add them"
        )
    number = next(one for one in known if isinstance(one, int) and 0 <= one < len(tok))
    if number != tok.pad_token_id:  # attention is masked there, so any token will do
        tok.pad_token = tok.convert_ids_to_tokens(number)
    base.config.pad_token_id = number
    names = [name for name in tok.model_input_names if name != "token_type_ids"]
    tok.model_input_names = [*names, *["token_type_ids"] * heads.has_types(base)]
    return tok


def _probe(source: Source, base: nn.Module, tok: Tokenizer, length: int) -> None:
    """Reads one pair of the full length; tokens must see what comes after them."""
    cut = {"truncation": "longest_first", "max_length": length, "return_tensors": "pt"}
    failed = f"{source.label} it cannot read a pair of sentences, {length} tokens"
    with one_line(failed), torch.inference_mode():
        batch = tok([12 * PROBE], [12 * PROBE], **cut, return_token_type_ids=True)
        batch = {name: batch[name] for name in tok.model_input_names if name in batch}
        before = base(**batch).last_hidden_state
        ids = batch["input_ids"].clone()
        place = ids.shape[1] // 2
        ids[:, place] = ids[ids != ids[0, place]][-1]  # any other one
        after = base(**batch | {"input_ids": ids}).last_hidden_state
    why = ""
    if before.ndim != 3 or not before.isfinite().all():
        why = "gives no finite hidden state for each token"
    elif torch.equal(before[:, place + 1 :], after[:, place + 1 :]):
        why = "no token of it sees another; has it a kernel for this machine?"
    elif torch.equal(before[:, :place], after[:, :place]):
        why = "reads from the left to the right only; encoders are scored"
    if why:
        raise UserError(f"{source.label} {why}")

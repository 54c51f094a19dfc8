"""A tiny encoder with random weights of every type in transformers' masked-LM mapping.

As a program it brings each into a run, fine-tunes it for a few steps and writes what became of it
to ``results/encoders.json``.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from makers import ROOT, small_profile
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.data import corpus, glue, tokenizer
from helpers.model import registry
from helpers.train import finetune, foreign, heads

TYPES = sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
RESULTS = ROOT / "results" / "encoders.json"
# What makes an encoder small, by whatever name its configuration has for it.
SMALL = {
    **dict.fromkeys(("hidden_size", "dim", "emb_dim", "d_model", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_inner", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "feed_forward_size"), 64),
    **dict.fromkeys(("d_head", "head_dim", "attention_head_size"), 16),
    **dict.fromkeys(("intra_bottleneck_size", "input_embedding_size", "entity_emb_size"), 32),
    **dict.fromkeys(("output_embedding_size", "true_hidden_size"), 32),
    **{"per_layer_config": {}, "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    **{
        "block_sizes": [1, 1],
        "block_repeats": [1, 1],
        "max_position_embeddings": 64,
        "entity_vocab_size": 10,
    },
    **{"shape_embed_dim": 16, "pronunciation_embed_dim": 16, "pronunciation_vocab_size": 10},
    **{"shape_vocab_size": 10, "attention_window": 16, "global_attn_every_n_layers": 2},
    **{"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * 2},
}


def small(values):
    """The fields of `SMALL` that a configuration has, inside those for text and images too."""
    parts = {name: values[name] for name in ("text_config", "vision_config") if name in values}
    inner = {name: part | small(part) for name, part in parts.items()}
    inner |= {name: values[name][-2:] for name in ("layer_types",) if values.get(name)}
    return inner | {name: value for name, value in SMALL.items() if name in values}


def make(kind, folder, source):
    """Writes a checkpoint of a type, with the tokenizer of a folder."""
    tok = tokenizer.load(source)
    cls, words = transformers.CONFIG_MAPPING[kind], {"vocab_size": len(tok)}
    values = cls(**words, pad_token_id=tok.pad_token_id).to_dict()
    changes = small(values)
    special = {"pad_token_id": tok.pad_token_id, "bos_token_id": 2, "eos_token_id": 3}
    special = {name: value for name, value in special.items() if name in values}
    about = cls(**changes | words | special)
    about.architectures = []
    with torch.device("meta"):
        size = registry.count(transformers.AutoModel.from_config(about))
    assert size < 10**7, f"{size} parameters: not small"
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(about)
    for parameter in model.parameters():
        if not parameter.any():  # some projections begin with zeros, and nothing is read through
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)


def score(kind, run, source, parameters):
    """What becomes of a type: what was measured of it, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / kind
        try:
            make(kind, folder, source)
        except Exception as error:  # not ours: there is no such checkpoint
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return {"made": False, "line": line}
        try:
            about = foreign.bring(run, str(folder))
            (record,) = finetune.run(parameters.model_copy(update={"model": about["model"]}))
        except UserError as error:
            return {"made": True, "line": str(error).partition(": ")[2]}
        except Exception as error:
            return {"made": True, "line": f"crash: {type(error).__name__}: {error}"[:300]}
    encoder = heads.open_encoder(run / "models" / about["model"] / "encoder", glue.get("rte"), 0.1)
    own = not isinstance(encoder, heads.Classifier)
    rates = len({group["base"] for group in heads.layer_rates(encoder, 1.0, 0.5)})
    found = {"shared_layers": about["checkpoint"]["shared_layers"], "own_head": own}
    return found | {"made": True, "rates": rates, "score": round(record["score"], 2), "line": ""}


def outcomes(folder):
    """Every type with what becomes of it."""
    profile = small_profile(folder, max_length=64, train_rows=32, dev_rows=16)
    data = config.Data(**profile.stage(config.Data))
    corpus.run(data)
    glue.run(data, "rte")
    tokenizer.run(config.Tokenizer(**profile.stage(config.Tokenizer)))
    source = profile.folder / "tokenizer" / "wordpiece"
    values = profile.stage(config.Finetune, tasks=["rte"], seeds=[0], model="bert")
    parameters = config.Finetune(**values)
    return {kind: score(kind, profile.folder, source, parameters) for kind in TYPES}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = outcomes(Path(place))
    files.write_json(RESULTS, {"transformers": transformers.__version__, "types": found})
    print(json.dumps(found, indent=1), file=sys.stderr)

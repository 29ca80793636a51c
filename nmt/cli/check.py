"""`nmt check`: everything that a config would do, without training."""

from pathlib import Path

from nmt.cli.messages import say, warn
from nmt.cli.options import ConfigPath, Overrides


def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Build everything in a config, print sizes and one batch, and train no model.

    A tokenizer that the run does not have yet is trained into a temporary folder, and so is the
    token store; the run directory is not touched.
    """
    import tempfile

    import numpy as np

    from nmt.build.data import build_batches, build_token_store, build_tokenizers
    from nmt.build.model import build_model
    from nmt.build.training import build_device, check_precision
    from nmt.config import load_config, to_yaml
    from nmt.data.corpus import Findings, files_exist
    from nmt.data.store import SIDES
    from nmt.text.lines import open_output
    from nmt.text.tokenizer import PAD_ID

    settings = load_config(config, overrides or ())
    device = build_device(settings.training.device)
    check_precision(settings.training.precision, device)
    for files in (settings.data.train, settings.data.valid):
        files_exist(files.src, files.tgt)
    with tempfile.TemporaryDirectory(prefix="nmt-check-") as name, open_output(None) as out:
        folder = Path(name)
        existing = Path(settings.run_dir) / "tokenizer"
        tokenizers = build_tokenizers(
            settings, existing if existing.is_dir() else folder / "tokenizer", say
        )
        train, valid = Findings(), Findings()
        store = build_token_store(settings, "train", tokenizers, folder / "train", say, train)
        build_token_store(settings, "valid", tokenizers, folder / "valid", say, valid)
        unknown = {
            settings.data.train.src: train.src.unknown,
            settings.data.train.tgt: train.tgt.unknown,
            settings.data.valid.src: valid.src.unknown,
            settings.data.valid.tgt: valid.tgt.unknown,
        }
        for path, found in unknown.items():
            if found.num_unknown:
                warn(found.advice(path))
        model = build_model(settings, len(tokenizers.src), len(tokenizers.tgt))
        batches = build_batches(settings, store, tokenizers)
        plan = batches.plan(0)
        batch = batches.batch(plan[0], 0)
        logits, _ = model(batch.src, batch.src_mask, batch.tgt_input)

        out.write(to_yaml(settings) + "\n")
        out.write(f"device: {device}\n")
        out.write(f"vocabulary: {len(tokenizers.src):,} source, {len(tokenizers.tgt):,} target\n")
        for part, module in (("encoder", model.encoder), ("decoder", model.decoder)):
            size = sum(parameter.numel() for parameter in module.parameters())
            out.write(f"{part}: {size:,} parameters\n")
        size = sum(parameter.numel() for parameter in model.parameters())
        out.write(f"model: {size:,} parameters, shared ones counted once\n")
        for side in SIDES:
            lengths = store.lengths(side)
            out.write(
                f"{side}: {lengths.sum():,} tokens in {len(store):,} sentences, "
                f"median {np.median(lengths):.0f}, longest {lengths.max()}\n"
            )
        for path, found in unknown.items():
            out.write(f"{path}: {found.share:.2%} of {found.num_tokens:,} tokens are unknown\n")
        positions = sum(
            len(indices) * (int(store.lengths("tgt")[indices].max()) + 1) for indices in plan
        )
        real = int(store.lengths("tgt").sum()) + len(store)
        out.write(
            f"epoch: {len(plan):,} batches, {1 - real / positions:.1%} of the target positions "
            "are padding\n"
        )
        out.write(
            f"first batch: src {tuple(batch.src.shape)}, tgt {tuple(batch.tgt_input.shape)}, "
            f"logits {tuple(logits.shape)}\n"
        )
        for side, tokenizer, ids in (
            ("src", tokenizers.src, batch.src[0]),
            ("tgt", tokenizers.tgt, batch.tgt_output[0]),
        ):
            pieces = tokenizer.tokens([i for i in ids.tolist() if i != PAD_ID])
            out.write(f"line {batch.lines[0]} {side}: {' '.join(pieces)}\n")

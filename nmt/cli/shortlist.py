"""`nmt shortlist`: which target tokens a source sentence can need, learned from a run's data."""

from typing import Annotated

import typer


def shortlist(
    run: Annotated[str, typer.Argument(help="Run directory with its training data.")],
    per_token: Annotated[
        int, typer.Option(help="Target tokens that each source token allows, the most probable.")
    ] = 100,
    frequent: Annotated[
        int, typer.Option(help="Most frequent target tokens, which are always allowed.")
    ] = 500,
    max_pairs: Annotated[
        int, typer.Option(help="Training pairs to learn from, taken from all over the data.")
    ] = 200_000,
) -> None:
    """Make RUN/shortlist.npz, with which --shortlist translates faster.

    The output layer then scores, for each sentence, only the tokens that may translate its
    tokens, which IBM Model 1 finds in the training data. Rarely, a word that the whole
    vocabulary would have given is not among them.
    """
    from nmt.build.saved import find_model
    from nmt.build.shortlist import build_shortlist, model_folder, shortlist_path
    from nmt.cli.messages import say
    from nmt.data.store import TokenStore

    tokenizers, data = find_model(run).tokenizers, model_folder(run) / "data"
    found = build_shortlist(
        tokenizers, data / "train", per_token=per_token, frequent=frequent, max_pairs=max_pairs
    )
    found.save(shortlist_path(run))
    say(f"{shortlist_path(run)}: {found.describe(TokenStore(data / 'valid'))}")

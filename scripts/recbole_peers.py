"""Train RecBole's sequential models and write their ranked lists; run in RecBole's environment, by run_peers.sh.

    python scripts/recbole_peers.py --data DIR/NAME --output peers --models SASRec,GRU4Rec

`--data` is what `export_dataset.py --format recbole` wrote. Each model is trained for every point of a small grid; the
epoch with the best validation NDCG@10 is kept, as RecBole measures it, and the grid's point with the best validation
NDCG@10 of the lists. recbole-MODEL.parquet holds the test lists for `evaluate.py --lists`, recbole-MODEL.json the grid;
with `--loss BPR` they are recbole-MODEL-bpr.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from distill.metrics import hit_ranks, ndcg  # nothing of distill that needs more than NumPy

MODELS = ("Caser", "HGN", "GRU4Rec", "BERT4Rec", "SASRec", "FDSA", "S3Rec", "LightSANs")
TRANSFORMER_DROPOUTS = ("hidden_dropout_prob", "attn_dropout_prob")
DROPOUTS = {"Caser": ("dropout_prob",), "GRU4Rec": ("dropout_prob",), "HGN": ()}  # names of the rates to tune
EXTRAS = {  # what a model needs beyond the common settings
    "FDSA": {"selected_features": ["categories"]},
    "S3Rec": {"item_attribute": "categories", "save_step": 1_000_000},  # no checkpoints: they are pickles
}


def rates(text: str) -> list[float]:
    """Read numbers with commas."""
    return [float(part) for part in text.split(",")]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="exported folder; its name is the data set's")
    parser.add_argument("--output", type=Path, required=True, help="folder of the lists")
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}, with commas")
    parser.add_argument("--epochs", type=int, default=200, help="at most (default 200)")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better one (default 10)")
    parser.add_argument("--pretrain_epochs", type=int, default=50, help="of S3Rec (default 50; RecBole: 500)")
    parser.add_argument("--lr", type=rates, default="0.001,0.003", help="to try (default 0.001,0.003)")
    parser.add_argument("--dropout", type=rates, default="0.3,0.5", help="to try (default 0.3,0.5)")
    losses = "cross-entropy over all items, or BPR against one item drawn at random (default CE)"
    parser.add_argument("--loss", choices=("CE", "BPR"), default="CE", help=losses)
    parser.add_argument("--batch_size", type=int, default=256, help="examples of a step (default 256; RecBole: 2048)")
    parser.add_argument("--max_history", type=int, default=20, help="items of a history (default 20)")
    parser.add_argument("--width", type=int, default=50, help="items of a list (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exclude_bought", choices=("true", "false"), default="true", help="as the other rows do")
    args = parser.parse_args(argv)
    args.models = args.models.split(",")
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"unknown model {unknown[0]!r}; expected some of {', '.join(MODELS)}")
    if not (args.data / f"{args.data.name}.inter").is_file():
        parser.error(f"no {args.data.name}.inter in {args.data}; write it with scripts/export_dataset.py")
    return args


def main(args: argparse.Namespace) -> None:
    """Train the models whose lists are not finished."""
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        identity = identify(name, args)
        path = args.output / f"recbole-{name.lower()}{'' if args.loss == 'CE' else '-bpr'}.parquet"
        record = path.with_suffix(".json")
        if path.is_file() and record.is_file() and json.loads(record.read_text())["identity"] == identity:
            print(f"{name}: finished, at {path} (remove it to repeat)")
            continue
        runs = [run_point(name, lr, rate, args) for lr, rate in grid(name, args)]
        best = max(runs, key=lambda run: run["valid_ndcg@10"])
        facts = [{key: value for key, value in run.items() if key != "lists"} for run in runs]
        values = {"identity": identity, "chosen": facts[runs.index(best)], "grid": facts}
        write(path, best["lists"], values)
        print(f"{name}: wrote {path}, validation NDCG@10 {best['valid_ndcg@10']:.4f}")


def write(path: Path, lists: pa.Table, facts: dict) -> None:
    """Write a model's lists and the JSON beside them, each whole or not at all, and JSON only beside its own lists."""
    record, partial = path.with_suffix(".json"), path.with_suffix(".partial")
    record.unlink(missing_ok=True)
    pq.write_table(lists, partial)
    partial.replace(path)
    partial.write_text(json.dumps(facts, indent=2) + "\n")
    partial.replace(record)


def identify(name: str, args: argparse.Namespace) -> dict:
    """Return all that decides a model's lists: settings, the files that it reads, and RecBole's version."""
    values = {key: value for key, value in vars(args).items() if key not in ("data", "output", "models", "loss")}
    if args.loss != "CE":
        values["loss"] = args.loss
    files = {"interactions": "inter"} | ({"items": "item"} if name in EXTRAS else {})
    for key, suffix in files.items():
        with open(args.data / f"{args.data.name}.{suffix}", "rb") as file:
            values[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return values | {"recbole": recbole.__version__}


def grid(name: str, args: argparse.Namespace) -> list[tuple[float, float | None]]:
    """List the points (learning rate, dropout rate or None) to try."""
    return list(itertools.product(args.lr, args.dropout if DROPOUTS.get(name, TRANSFORMER_DROPOUTS) else [None]))


def settings(name: str, lr: float, rate: float | None, args: argparse.Namespace) -> dict:
    """Return RecBole's settings: leave-one-out in time order, ranking of all items, the loss that was asked for."""
    return {
        "data_path": str(args.data.resolve().parent),
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "item": ["item_id", "categories"] if name in EXTRAS else ["item_id"],
        },
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "train_neg_sample_args": None if args.loss == "CE" else {"distribution": "uniform", "sample_num": 1},
        "loss_type": args.loss,
        "MAX_ITEM_LIST_LENGTH": args.max_history,
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "repeatable": True,
        "train_batch_size": args.batch_size,
        "epochs": args.epochs,
        "stopping_step": args.patience,
        "pretrain_epochs": args.pretrain_epochs,
        "learning_rate": lr,
        "seed": args.seed,
        "reproducibility": True,
        "show_progress": False,
        "checkpoint_dir": str(args.output / "unused"),
        "log_wandb": False,
        **{key: rate for key in DROPOUTS.get(name, TRANSFORMER_DROPOUTS)},
        **EXTRAS.get(name, {}),
    }


def run_point(name: str, lr: float, rate: float | None, args: argparse.Namespace) -> dict:
    """Train a model at a point of its grid; return its facts, and its test lists as a table."""
    started = time.time()
    config = Config(model=name, dataset=args.data.name, config_dict=settings(name, lr, rate, args))
    init_seed(args.seed, True)
    dataset = create_dataset(config)
    sequences = read_sequences(dataset) if args.exclude_bought == "true" else None
    train_data, valid_data, test_data = data_preparation(config, dataset)
    model = get_model(name)(config, train_data.dataset).to(config["device"])
    epoch = train(model, config, train_data, valid_data)
    valid_lists, _ = rank(model, valid_data, sequences, 2, 10)
    valid_ranks = hit_ranks(valid_lists, valid_data.dataset.inter_feat[dataset.iid_field].numpy())
    facts = {
        "lr": lr,
        "dropout": rate,
        "seed": args.seed,
        "best_epoch": epoch,
        "valid_ndcg@10": float(ndcg(valid_ranks, 10).mean()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.time() - started),
    }
    print(f"{name}: {facts}", flush=True)
    lists, scores = rank(model, test_data, sequences, 1, args.width)
    return facts | {"lists": as_table(dataset, test_data, lists, scores)}


def read_sequences(dataset) -> dict[int, np.ndarray]:
    """Read the items of each user in time order, in RecBole's numbers."""
    rows = dataset.inter_feat.sort_values(dataset.time_field, kind="stable")
    return {user: group.to_numpy() for user, group in rows.groupby(dataset.uid_field)[dataset.iid_field]}


def train(model, config: Config, train_data, valid_data) -> int:
    """Train with early stopping and put the best epoch's weights into the model; return that epoch, from 1.

    RecBole itself keeps them in a checkpoint, which is a pickle. S3Rec is pretrained first; the stages change in place,
    because RecBole hands the weights over in a pickle too.
    """
    if config["model"] == "S3Rec":
        get_trainer(config["MODEL_TYPE"], "S3Rec")(config, model).fit(train_data, saved=False, show_progress=False)
        model.train_stage, model.loss_fct = "finetune", torch.nn.CrossEntropyLoss()
    best = {"score": -np.inf}

    def keep(epoch: int, score: float) -> None:
        print(f"{config['model']}: epoch {epoch + 1}, validation NDCG@10 {score:.4f}", file=sys.stderr, flush=True)
        if score > best["score"]:
            best.update(score=score, epoch=epoch + 1, weights=copy.deepcopy(model.state_dict()))

    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    try:
        trainer.fit(train_data, valid_data, verbose=False, saved=False, show_progress=False, callback_fn=keep)
    except ValueError as error:  # the loss is not a number; BERT4Rec's where a batch has no masked item
        name, rest = config["model"], len(train_data.dataset) % config["train_batch_size"]
        print(
            f"error: {name}: {error}. The last batch has {rest} examples: try another --batch_size or --lr.",
            file=sys.stderr,
        )
        sys.exit(2)
    model.load_state_dict(best["weights"])
    return best["epoch"]


@torch.no_grad()
def rank(model, data, sequences: dict[int, np.ndarray] | None, held_out: int, width: int) -> tuple:
    """Rank all items for each user of a split.

    Args:
        model: trained.
        data: RecBole's loader of the split.
        sequences: of all users; None: bought items may be ranked.
        held_out: how many of a sequence's last items the split must not know.
        width: items of a list.

    Returns:
        Items in RecBole's numbers, -1 for none, and their scores, both [users, width].
    """
    model.eval()
    dataset, lists, scores = data.dataset, [], []
    for start in range(0, len(dataset), 512):
        batch = dataset.inter_feat[start : start + 512]
        part = model.full_sort_predict(batch.to(model.device)).view(len(batch), dataset.item_num).cpu()
        part[:, 0] = -torch.inf  # padding
        if sequences is not None:
            for row, user in enumerate(batch[dataset.uid_field].tolist()):
                part[row, sequences[user][:-held_out]] = -torch.inf
        values, items = part.topk(min(width, dataset.item_num))
        lists.append(items.masked_fill(values.isinf(), -1).numpy())
        scores.append(values.numpy())
    return np.concatenate(lists), np.concatenate(scores)


def as_table(dataset, data, lists: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Write lists with the ids of the data set, in the columns of `evaluate.py --lists`."""
    users = dataset.id2token(dataset.uid_field, data.dataset.inter_feat[dataset.uid_field].numpy())
    items = [dataset.id2token(dataset.iid_field, row[row >= 0]).tolist() for row in lists]
    kept = [row[: len(ids)] for row, ids in zip(scores, items, strict=True)]
    return pa.table({"user_id": users.tolist(), "items": items, "scores": kept})


if __name__ == "__main__":
    arguments = parse()
    sys.argv = sys.argv[:1]  # RecBole would read its settings from the command line
    main(arguments)

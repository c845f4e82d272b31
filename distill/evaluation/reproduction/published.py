"""Published figures, with the publication that each row comes from."""

from __future__ import annotations

LOHREC = "LOHRec, EMNLP Findings 2025"
LC_REC = "LC-Rec, arXiv 2311.09049"  # LOHRec's Table 1 has no row of its teacher

RECBOLE = "recbole-"  # starts the names of the lists that scripts/run_peers.sh writes

PUBLISHED_METRICS = {
    "table1": ("recall@5", "recall@10", "ndcg@5", "ndcg@10"),
    "table2": ("recall@10", "ndcg@10", "diversity@10"),
}

# table -> data set -> system -> values in the order of PUBLISHED_METRICS
FIGURES: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "table1": {
        "instruments": {
            "caser": (0.0543, 0.0710, 0.0355, 0.0409),
            "hgn": (0.0813, 0.1048, 0.0668, 0.0744),
            "gru4rec": (0.0821, 0.1031, 0.0698, 0.0765),
            "bert4rec": (0.0671, 0.0822, 0.0560, 0.0608),
            "sasrec": (0.0751, 0.0947, 0.0627, 0.0690),
            "fmlp": (0.0786, 0.0988, 0.0638, 0.0704),
            "fdsa": (0.0834, 0.1046, 0.0681, 0.0750),
            "s3rec": (0.0863, 0.1136, 0.0626, 0.0714),
            "p5-cid": (0.0827, 0.1016, 0.0708, 0.0768),
            "tiger": (0.0863, 0.1064, 0.0738, 0.0803),
            "smooth": (0.0882, 0.1086, 0.0752, 0.0810),
            "distill": (0.0949, 0.1151, 0.0814, 0.0870),
            "dtr": (0.1021, 0.1254, 0.0875, 0.0920),
            "dwr": (0.1013, 0.1230, 0.0868, 0.0912),
            "teacher": (0.1002, 0.1220, 0.0856, 0.0926),
        },
        "arts": {
            "caser": (0.0379, 0.0541, 0.0262, 0.0313),
            "hgn": (0.0622, 0.0875, 0.0462, 0.0544),
            "gru4rec": (0.0749, 0.0964, 0.0590, 0.0659),
            "bert4rec": (0.0559, 0.0713, 0.0451, 0.0500),
            "sasrec": (0.0757, 0.1016, 0.0508, 0.0592),
            "fmlp": (0.0757, 0.1046, 0.0541, 0.0634),
            "fdsa": (0.0734, 0.0933, 0.0595, 0.0660),
            "s3rec": (0.0767, 0.1051, 0.0521, 0.0612),
            "p5-cid": (0.0724, 0.0902, 0.0607, 0.0664),
            "tiger": (0.0788, 0.1012, 0.0631, 0.0703),
            "smooth": (0.0807, 0.1030, 0.0645, 0.0717),
            "distill": (0.0914, 0.1113, 0.0725, 0.0799),
            "dtr": (0.0970, 0.1212, 0.0795, 0.0860),
            "dwr": (0.0945, 0.1202, 0.0766, 0.0842),
            "teacher": (0.1011, 0.1266, 0.0828, 0.0906),
        },
        "games": {
            "caser": (0.0367, 0.0617, 0.0227, 0.0307),
            "hgn": (0.0517, 0.0856, 0.0333, 0.0442),
            "gru4rec": (0.0586, 0.0964, 0.0381, 0.0502),
            "bert4rec": (0.0482, 0.0763, 0.0311, 0.0401),
            "sasrec": (0.0581, 0.0940, 0.0365, 0.0481),
            "fmlp": (0.0571, 0.0930, 0.0361, 0.0476),
            "fdsa": (0.0644, 0.1041, 0.0404, 0.0531),
            "s3rec": (0.0606, 0.1002, 0.0364, 0.0491),
            "p5-cid": (0.0506, 0.0803, 0.0342, 0.0437),
            "tiger": (0.0599, 0.0939, 0.0392, 0.0501),
            "smooth": (0.0618, 0.0962, 0.0415, 0.0522),
            "distill": (0.0680, 0.1018, 0.0435, 0.0540),
            "dtr": (0.0729, 0.1103, 0.0515, 0.0586),
            "dwr": (0.0716, 0.1088, 0.0499, 0.0569),
            "teacher": (0.0800, 0.1174, 0.0560, 0.0681),
        },
    },
    "table2": {
        "instruments": {
            "dwr": (0.1278, 0.0944, 0.3711),
            "dwr-without-distill": (0.1092, 0.0821, 0.3423),
            "distill": (0.1169, 0.0877, 0.3525),
            "tiger": (0.1078, 0.0797, 0.2913),
        },
        "arts": {
            "dwr": (0.1288, 0.0892, 0.3740),
            "dwr-without-distill": (0.1036, 0.0724, 0.3490),
            "distill": (0.1176, 0.0808, 0.3533),
            "tiger": (0.1030, 0.0712, 0.2971),
        },
        "games": {
            "dwr": (0.1179, 0.0639, 0.3553),
            "dwr-without-distill": (0.0964, 0.0534, 0.3161),
            "distill": (0.1090, 0.0535, 0.3355),
            "tiger": (0.0928, 0.0492, 0.3116),
        },
    },
}

# data set -> users, items, interactions, sparsity, mean length: LOHRec's Table 3
STATISTICS: dict[str, tuple[float, ...]] = {
    "instruments": (24773, 9923, 205153, 0.9992, 8.32),
    "arts": (45142, 20957, 390832, 0.9996, 8.66),
    "games": (50547, 16860, 452989, 0.9995, 8.96),
}


def published_figures(table: str, dataset: str, system: str) -> dict[str, float]:
    """Return the published metrics of a system, ours or RecBole's; empty if there are none."""
    values = FIGURES[table].get(dataset, {}).get(system.removeprefix(RECBOLE))
    return dict(zip(PUBLISHED_METRICS[table], values, strict=True)) if values else {}


def source(system: str) -> str:
    """Name the publication that a system's figures come from."""
    return LC_REC if system == "teacher" else LOHREC

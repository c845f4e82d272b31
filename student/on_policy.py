"""Learning from the student's own beams, in batches that are trained prefix by prefix (`Batch.on_policy`).

Labels show what the teacher thinks along the IDs of real next items. At inference the student follows its own beams,
along prefixes that no label covers. `OnPolicyTeacher` has it taught there (GKD: Agarwal et al., ICLR 2024);
`rewarded_beams` are ranked by what they are worth (GRPO).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from distill.data.dataset import PAD
from distill.list_losses import rewards
from distill.runtime.errors import UserError
from distill.teachers.forced import ForcedTeacher
from student.batch import Batch
from student.recommender import Recommender


class OnPolicyTeacher:
    """Gives batches the student's own items as targets, with the teacher's distributions along their IDs.

    Args:
        recommender: the student in training.
        teacher: scores what the student proposes.
        width: beams, of which one is drawn by its probability among them.
    """

    def __init__(self, recommender: Recommender, teacher: ForcedTeacher, width: int):
        self.recommender, self.teacher, self.width = recommender, teacher, width

    def relabel(self, batch: Batch) -> Batch:
        """Replace targets and log-probabilities.

        Raises:
            UserError: see `own_beams`.
        """
        assert batch.draws is not None
        histories = batch.sequences.cpu().numpy()
        items = draw_items(*own_beams(self.recommender, histories, self.width), batch.draws.cpu().numpy())
        items = np.where(items == PAD, batch.targets.cpu().numpy(), items)  # nothing left to recommend
        log_probs = self.teacher.codeword_log_probs(histories, items)
        return replace(batch, targets=torch.from_numpy(items), log_probs=torch.from_numpy(log_probs))


def rewarded_beams(recommender: Recommender, batch: Batch, width: int) -> Batch:
    """Make the student's own beams the candidates of a batch, and their rewards the candidates' scores.

    Raises:
        UserError: see `own_beams`.
    """
    items = torch.from_numpy(own_beams(recommender, batch.sequences.cpu().numpy(), width)[0])
    return replace(batch, candidates=items, candidate_scores=rewards(items, batch.targets.cpu()))


@torch.no_grad()
def own_beams(recommender: Recommender, histories: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Search with the network in training: the ranker if there is one, which otherwise only ranks.

    Args:
        recommender: the student.
        histories: item numbers, oldest first, padded with -1 on the right [n, length].
        width: beams.

    Returns:
        Items, best first, -1 for none, and their log-probabilities; both [n, width].

    Raises:
        UserError: the weights are sharded, so that no process can search with them.
    """
    model = recommender.ranker or recommender.model
    if any(hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        raise UserError(
            "--on_policy and --list_loss grpo search with the student at every step, and its weights are sharded "
            "here; launch with DDP or ZeRO-2."
        )
    models, training = (recommender.model, recommender.ranker), model.training
    recommender.model, recommender.ranker = model.eval(), None
    try:
        return recommender.rank_items(histories, width, recommender.facts["exclude_bought"])
    finally:
        recommender.model, recommender.ranker = models
        model.train(training)


def draw_items(items: np.ndarray, scores: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draw one item of each list by its probability among the list's items.

    Args:
        items: item numbers, best first, -1 for none [n, width].
        scores: log-probabilities, −∞ for none [n, width].
        draws: random numbers in [0, 1) [n].

    Returns:
        [n].
    """
    shares = np.exp(scores.astype(np.float64) - scores[:, :1])
    up_to = np.cumsum(np.where(items == PAD, 0, shares), axis=1)
    place = (up_to <= draws[:, None] * up_to[:, -1:]).sum(1)
    return items[np.arange(len(items)), np.minimum(place, items.shape[1] - 1)]

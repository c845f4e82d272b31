"""On-policy distillation (GKD: Agarwal et al., ICLR 2024): the student proposes IDs, the teacher scores these.

Offline labels show the student what the teacher thinks along the IDs of real next items. At inference the student
follows its own beams, along prefixes that no label covers. Here some batches teach it there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from distill.data.dataset import PAD
from distill.runtime.errors import UserError
from distill.teachers.forced import ForcedTeacher
from student.batches import Batch
from student.recommender import Recommender


class OnPolicy:
    """Gives batches the student's own items as targets, with the teacher's distributions along their IDs.

    Args:
        recommender: the student in training.
        teacher: scores what the student proposes.
        width: beams, of which one is drawn by its probability among them.
    """

    def __init__(self, recommender: Recommender, teacher: ForcedTeacher, width: int):
        self.recommender, self.teacher, self.width = recommender, teacher, width

    @torch.no_grad()
    def relabel(self, batch: Batch) -> Batch:
        """Replace targets and labels of a batch that is trained prefix by prefix (`batch.on_policy`).

        Raises:
            UserError: the weights are sharded, so that no process can search with them.
        """
        model = self.recommender.model
        if any(hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            raise UserError("--on_policy searches with the student at every step, and its weights are sharded here; "
                            "launch with DDP or ZeRO-2.")  # fmt: skip
        assert batch.draws is not None
        histories, training = batch.sequences.cpu().numpy(), model.training
        model.eval()
        try:
            lists = self.recommender.rank_items(histories, self.width, self.recommender.facts["exclude_bought"])
        finally:
            model.train(training)
        items = draw_items(*lists, batch.draws.cpu().numpy())
        items = np.where(items == PAD, batch.targets.cpu().numpy(), items)  # nothing left to recommend
        log_probs = self.teacher.codeword_log_probs(histories, items)
        return replace(batch, targets=torch.from_numpy(items), log_probs=torch.from_numpy(log_probs))


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

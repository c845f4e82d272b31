"""The demo's known distribution: the row `oracle`, and how far models are from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from distill.baselines.counting import smoothed
from distill.baselines.item_scorer import ItemScorer
from distill.data.dataset import Dataset, Examples
from distill.data.demo import simulator
from distill.metrics import kl_to_truth
from distill.ranking import mask_history, scores_of

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of popularity, in a counter that is compared with the truth


@dataclass(frozen=True)
class Truth:
    """The simulator's distribution over the next item.

    Attributes:
        probabilities: of all users [users, n_items].
        histories: of the first users, for whom distances are measured [first users, length].
        simulator: what it was read from.
    """

    probabilities: np.ndarray
    histories: np.ndarray
    simulator: simulator.Simulator | None = None

    @staticmethod
    def load(dataset: Dataset, examples: Examples, users: int) -> Truth | None:
        """Ask the simulator of a demo data set; None for other data sets."""
        if not (dataset.artifact.folder / simulator.FILE).is_file():
            return None
        known = simulator.Simulator.load(dataset.artifact.folder)
        return Truth(known.next_item_probabilities(examples.histories), examples.histories[:users], known)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Probabilities of some items after any histories [users, k]."""
        return scores_of(self.simulator.next_item_probabilities(histories), items, 0.0)

    def kl_of_scores(self, log_probs: np.ndarray) -> float:
        """Mean KL from the truth to a model in nats.

        Args:
            log_probs: exact scores of all items of at least the first users; they need not be normalised
                [users, n_items].
        """
        log_probs = log_probs[: len(self.histories)].astype(float)
        log_probs -= logsumexp(log_probs, axis=1, keepdims=True)
        return float(kl_to_truth(self.probabilities[: len(self.histories)], log_probs).mean())

    def kl_of_counter(self, model: ItemScorer, counts: np.ndarray, dataset: Dataset) -> float:
        """The same for a model that gives some items nothing: it is mixed with popularity first.

        Args:
            model: its scores are normalised.
            counts: interactions of each item in the training part [n_items].
            dataset: the share of popularity is the one with the best likelihood of its validation targets.
        """
        valid = dataset.examples("valid").take(slice(0, 1000))
        scores = model.scores(valid.histories)
        rows = np.arange(len(valid))
        likelihood = [np.log(smoothed(scores, counts, share)[rows, valid.targets]).mean() for share in SHARES]
        share = SHARES[int(np.argmax(likelihood))]
        probabilities = smoothed(model.scores(self.histories), counts, share)
        mask_history(probabilities, self.histories, 0.0)
        with np.errstate(divide="ignore"):
            log_probs = np.log(probabilities / probabilities.sum(1, keepdims=True))
        return float(kl_to_truth(self.probabilities[: len(self.histories)], log_probs).mean())

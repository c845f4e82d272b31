"""A teacher behind a server (`scripts/serve_teacher.py`): one teacher for several students, on a machine of its own."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from distill.runtime.errors import UserError
from distill.runtime.logs import log

FACTS, ANSWER = "/v1/teacher", "/v1/codeword_log_probs"


@dataclass
class RemoteTeacher:
    """Asks a server. Implements `ForcedTeacher`.

    A server that does not answer is asked again, with longer and longer pauses: it may be starting again.

    Attributes:
        url: of the server, such as http://127.0.0.1:8001.
        timeout: seconds until one question counts as unanswered.
        patience: seconds of waiting until the student gives up.
    """

    url: str
    timeout: float = 120.0
    patience: float = 3600.0

    def facts(self) -> dict[str, Any]:
        """Ask for the teacher's identity: teacher, semantic_ids (fingerprints), levels, codebook_size.

        Raises:
            UserError: no answer at once, or another server's answer.
        """
        try:
            facts = json.loads(self._open(FACTS, None))
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"No teacher at {self.url} ({error}). Start it with scripts/serve_teacher.py.") from None
        except ValueError:
            facts = None
        wanted = {"teacher", "semantic_ids", "levels", "codebook_size"}
        if not isinstance(facts, dict) or not wanted <= facts.keys():
            raise UserError(f"{self.url}{FACTS} does not answer as scripts/serve_teacher.py does.")
        return facts

    def codeword_log_probs(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `ForcedTeacher.codeword_log_probs`.

        Raises:
            UserError: the server refuses the question, does not answer for `patience` seconds, or answers something
                else.
        """
        question = {
            "histories": [history[history >= 0].tolist() for history in histories],
            "items": items.tolist(),
        }
        answer = self._ask(json.dumps(question).encode())
        try:
            log_probs = safetensors.numpy.load(answer)["log_probs"]
        except (SafetensorError, KeyError):
            raise UserError(f"{self.url}{ANSWER} does not answer as scripts/serve_teacher.py does.") from None
        if log_probs.ndim != 3 or len(log_probs) != len(items):
            raise UserError(
                f"{self.url} was asked for the log-probabilities of {len(items)} items and answered with an array of "
                f"shape {log_probs.shape}."
            )
        return log_probs.astype(np.float16, copy=False)

    def _ask(self, body: bytes) -> bytes:
        """Ask until the server answers."""
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                return self._open(ANSWER, body)
            except (OSError, http.client.HTTPException) as error:
                waited = time.monotonic() - started
                if waited + pause > self.patience:
                    raise UserError(
                        f"No answer from the teacher at {self.url} for {waited:.0f} s ({error}). The checkpoints stay; "
                        "start it with scripts/serve_teacher.py, then the training again."
                    ) from None
                log.info(f"No answer from the teacher at {self.url} ({error}); asking again in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 30.0)

    def _open(self, path: str, body: bytes | None) -> bytes:
        """Send one request.

        Raises:
            UserError: the server refuses it.
            OSError, HTTPException: no answer, or one that breaks off.
        """
        request = urllib.request.Request(self.url.rstrip("/") + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            text = error.read().decode("utf-8", "replace")[:500]
            raise UserError(f"The teacher at {self.url} refuses a question ({error.code}): {text}") from None

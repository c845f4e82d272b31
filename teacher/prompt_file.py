"""The prompt of a teacher that was tuned elsewhere: a text that the user brings, with a placeholder for the history."""

from __future__ import annotations

import re
from pathlib import Path

from distill.runtime.errors import UserError

PROMPT_FILE = "prompt.txt"  # its name in the teacher's folder
HISTORY = "{history}"
PLACEHOLDER = re.compile(r"\{\w*\}")


def read_prompt(path: Path) -> str:
    """Read the prompt's text. One newline at its end is taken for the editor's and left out.

    Args:
        path: a text file. It holds `{history}` once, where the IDs of the user's items go, and ends where the
            answer begins.

    Raises:
        UserError: no such file, not UTF-8, without `{history}`, or with another placeholder.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read the prompt {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The prompt {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    placeholders = PLACEHOLDER.findall(text)
    if placeholders != [HISTORY]:
        names = ", ".join(placeholders) or "none"
        raise UserError(
            f"The prompt {path} must hold the placeholder {HISTORY} once and no other; found: {names}. Write the whole "
            f"prompt that the model was tuned with, its instruction included, and {HISTORY} where LC-Rec puts the IDs "
            "of the user's items."
        )
    return text.removesuffix("\n")


def fill(prompt: str, history: str) -> str:
    """Put the text of a history into a prompt."""
    return prompt.replace(HISTORY, history)

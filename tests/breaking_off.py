"""Break a training off after a checkpoint, as a power cut would."""

from distill.runtime.checkpoints import Checkpoints


class BrokenOffError(BaseException):
    """In place of a power cut."""


def break_at(monkeypatch, step, name="", half=False):
    """Break off after the checkpoint of a step, or in the middle of writing it.

    Args:
        monkeypatch: undoes it.
        step: of the checkpoint.
        name: what the name of the training phase ends with.
        half: leave the checkpoint unfinished.
    """
    save = Checkpoints.save

    def broken(self, progress):
        save(self, progress)
        if progress.step == step and self.name.endswith(name):
            if half:
                last = self.all()[-1]
                last.rename(last.with_name(last.name + ".partial"))
            raise BrokenOffError

    monkeypatch.setattr(Checkpoints, "save", broken)
